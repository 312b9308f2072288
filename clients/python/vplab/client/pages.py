"""Walking a paged list to its end."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from vplab.errors import Internal

Item = TypeVar("Item")

PAGE_SIZE = 200


async def all_pages(read_page: Callable[[str], Awaitable[tuple[Sequence[Item], str]]]) -> AsyncIterator[Item]:
    """Yield every item; ``read_page`` takes a page token and returns the items and the next token, empty at the end."""
    token, seen = "", set[str]()
    while True:
        items, token = await read_page(token)
        for item in items:
            yield item
        if not token:
            return
        if token in seen:
            raise Internal("the server repeats a page token, so the list would never end")
        seen.add(token)
