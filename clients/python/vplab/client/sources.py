"""Streams that a caller hands over, whether asynchronous or plain."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


async def as_async(items: AsyncIterable[Item] | Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items; a plain iterable is read in a thread, because reading a camera or a disk blocks."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    iterator = iter(items)

    def next_or_end() -> Any:
        return next(iterator, _END)

    while (item := await asyncio.to_thread(next_or_end)) is not _END:
        yield item
