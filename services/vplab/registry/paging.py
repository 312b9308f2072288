"""Page tokens: where a list goes on, bound to the list it belongs to."""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from vplab.errors import InvalidInput

T = TypeVar("T")

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some of a list."""

    items: tuple[T, ...]
    next_token: str
    """Empty at the end of the list."""


@dataclass(frozen=True)
class PageRequest:
    """How many, and from where."""

    size: int = 0
    token: str = ""

    @property
    def limit(self) -> int:
        """Return the number of items asked for: 0 means 50, and nobody gets more than 1,000."""
        return min(self.size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)

    def position(self, query: Sequence[object], shape: tuple[type, ...]) -> tuple[str | int, ...] | None:
        """Return the key of the last item that was seen; None at the beginning.

        query: the method and all that selects the list; a token of another list is refused.
        shape: types of the key's parts. Raises InvalidInput.
        """
        if not self.token:
            return None
        try:
            token = json.loads(base64.b64decode(self.token.encode(), altchars=b"-_", validate=True))
            digest, key = token["q"], token["k"]
        except (binascii.Error, UnicodeError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidInput("is not a token that this service gave", field="page_token") from error
        if digest != _query_digest(query):
            raise InvalidInput("belongs to a list with other parameters", field="page_token")
        fits = isinstance(key, list) and len(key) == len(shape)
        if not fits or not all(type(part) is kind and _storable(part) for part, kind in zip(key, shape, strict=True)):
            raise InvalidInput("is not a token that this service gave", field="page_token")
        return tuple(key)


def make_page(items: Sequence[T], has_more: bool, query: Sequence[object], key: Sequence[str | int] | None) -> Page[T]:
    """Return a page; ``key`` is that of its last item, None when it is empty."""
    if not has_more or key is None:
        return Page(tuple(items), "")
    text = json.dumps({"q": _query_digest(query), "k": list(key)}, separators=(",", ":"))
    return Page(tuple(items), base64.urlsafe_b64encode(text.encode()).decode())


def _query_digest(query: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]


def _storable(part: object) -> bool:
    if isinstance(part, int):
        return abs(part) < 2**63
    return isinstance(part, str) and "\0" not in part and part.isascii()
