"""Things in memory, bounded by their bytes; the least recently used go first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from vplab.segmentation import metrics

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Used from the event loop only."""

    def __init__(
        self, name: str, max_bytes: int, size_bytes: Callable[[Value], int], *, keeps_newest: bool = False
    ) -> None:
        """name: of the metric's label. keeps_newest: keep the last one put even when it alone exceeds the bound."""
        self._max_bytes = max_bytes
        self._size_bytes = size_bytes
        self._min_entries = 1 if keeps_newest else 0
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self.num_bytes = 0
        self._hits, self._misses = (metrics.CACHE_LOOKUPS.labels(name, outcome) for outcome in ("hit", "miss"))
        self._bytes = metrics.CACHE_BYTES.labels(name)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """Return a value and make it the most recently used."""
        value = self._entries.get(key)
        if value is None:
            self._misses.inc()
            return None
        self._hits.inc()
        self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value."""
        known = self._entries.pop(key, None)
        if known is not None:
            self.num_bytes -= self._size_bytes(known)
        self._entries[key] = value
        self.num_bytes += self._size_bytes(value)
        while self.num_bytes > self._max_bytes and len(self._entries) > self._min_entries:
            _, dropped = self._entries.popitem(last=False)
            self.num_bytes -= self._size_bytes(dropped)
        self._bytes.set(self.num_bytes)
