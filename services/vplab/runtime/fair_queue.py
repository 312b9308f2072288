"""Work that waits in one class, in an order that is fair between clients.

Source: start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Virtual time is the start tag of what was served
last. An item's start tag is that time or, where later, the end of its client's last item, which is its start tag plus
what it is expected to cost. The least tag goes first: a client's flood is spread over virtual time, and whoever comes
with a single item is served next.
"""

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

Load = TypeVar("Load")

# Of what has never run, so that a flood is spread before the first run has said what it costs.
_UNKNOWN_SECONDS: Final = 1e-3
# Tickets that were left stay in heaps until they are as many as wait, and these.
_SLACK: Final = 64


class Ticket(Generic[Load]):
    """A place in the queue. One that was left is light: it lies about in heaps for a while."""

    __slots__ = ("client", "key", "load", "order", "seconds")

    def __init__(self, load: Load, client: Hashable, key: Hashable, seconds: float) -> None:
        """key: equal for items that may run together. seconds: of the device, 0 where that is not known."""
        self.load: Load | None = load
        """What waits; None once it left."""
        self.client = client
        self.key = key
        self.seconds = seconds
        self.order: tuple[float, int] = (0.0, 0)
        """Start tag, and number of arrival."""


_Heap = list[tuple[tuple[float, int], Ticket[Load]]]


class _Client(Generic[Load]):
    __slots__ = ("ends", "waiting")

    def __init__(self) -> None:
        self.ends = 0.0
        """Tag at which its last item would be done."""
        self.waiting: dict[Ticket[Load], None] = {}
        """In order of arrival."""


class FairQueue(Generic[Load]):
    """Not thread-safe. Every operation takes time that grows at most with the logarithm of what waits."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, _Client[Load]] = {}
        self._by_size: dict[int, dict[Hashable, None]] = {}
        self._largest = 0
        self._heap: _Heap[Load] = []
        self._heaps: dict[Hashable, _Heap[Load]] = {}
        self._time = 0.0
        self._num_arrived = 0
        self._num_waiting = 0
        self._num_active = 0
        self._num_left = 0
        """Of the tickets in heaps, at most."""
        self._tidy_clients_at = _SLACK
        self._seconds = 0.0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def seconds(self) -> float:
        """What all that waits is expected to cost."""
        return self._seconds

    def add(self, ticket: Ticket[Load]) -> None:
        """Put an item behind its client's others."""
        client = self._clients.get(ticket.client)
        if client is None:
            client = self._clients[ticket.client] = _Client()
        start = max(self._time, client.ends)
        client.ends = start + (ticket.seconds or _UNKNOWN_SECONDS)
        self._num_arrived += 1
        ticket.order = (start, self._num_arrived)
        client.waiting[ticket] = None
        self._count(ticket, client, 1)
        heapq.heappush(self._heap, (ticket.order, ticket))
        heapq.heappush(self._heaps.setdefault(ticket.key, []), (ticket.order, ticket))

    def remove(self, ticket: Ticket[Load], *, is_served: bool = False) -> Load:
        """Take an item out. is_served: time moves on to it; else its client is not charged."""
        client, load = self._clients[ticket.client], ticket.load
        assert load is not None, "a ticket leaves once"
        ticket.load = None
        self._num_left += 1
        del client.waiting[ticket]
        self._count(ticket, client, -1)
        if is_served:
            self._time = max(self._time, ticket.order[0])
        else:
            client.ends = max(self._time, client.ends - (ticket.seconds or _UNKNOWN_SECONDS))
        self._tidy()
        return load

    def first(self) -> Ticket[Load] | None:
        """Return the item whose turn it is, without taking it."""
        _drop_left(self._heap)
        return self._heap[0][1] if self._heap else None

    def next_of(self, key: Hashable, most: int) -> list[Ticket[Load]]:
        """Return up to ``most`` items of a key in order, without taking them."""
        heap = self._heaps.get(key, [])
        found: _Heap[Load] = []
        while len(found) < most:
            _drop_left(heap)
            if not heap:
                break
            found.append(heapq.heappop(heap))
        for entry in found:
            heapq.heappush(heap, entry)
        if not heap:
            self._heaps.pop(key, None)
        return [ticket for _, ticket in found]

    def seconds_before(self, client: Hashable) -> float:
        """Return what is expected to run before the next item of a client: its own, and as much of each other's."""
        known = self._clients.get(client)
        return 0.0 if known is None else min(self._seconds, max(0.0, known.ends - self._time) * self._num_active)

    def num_of(self, client: Hashable) -> int:
        """Return how many items of a client wait."""
        known = self._clients.get(client)
        return 0 if known is None else len(known.waiting)

    def newest_of_largest(self) -> Ticket[Load] | None:
        """Return the newest item of the client with most that waits, None where nothing does."""
        if not self._num_waiting:
            return None
        client = next(reversed(self._by_size[self._largest]))
        return next(reversed(self._clients[client].waiting))

    def all(self) -> list[Ticket[Load]]:
        """Return everything that waits, in order."""
        return [ticket for _, ticket in sorted(entry for entry in self._heap if entry[1].load is not None)]

    def _count(self, ticket: Ticket[Load], client: _Client[Load], step: int) -> None:
        size = len(client.waiting)
        self._num_waiting += step
        self._num_active += (size == 1) if step > 0 else -(size == 0)
        self._seconds = self._seconds + step * ticket.seconds if self._num_waiting else 0.0
        before = self._by_size.get(size - step)
        if before is not None:
            before.pop(ticket.client, None)
            if not before:
                del self._by_size[size - step]
        if size:
            self._by_size.setdefault(size, {})[ticket.client] = None
        self._largest = size if size > self._largest or self._largest not in self._by_size else self._largest

    def _tidy(self) -> None:
        if not self._num_waiting:
            # A busy period ends: with nothing to compare with, nobody has had more than others.
            self._clients.clear()
            self._heap.clear()
            self._heaps.clear()
            self._time, self._num_left = 0.0, 0
            return
        if self._num_left > self._num_waiting + _SLACK:
            self._num_left = 0
            self._heap = [entry for entry in self._heap if entry[1].load is not None]
            heapq.heapify(self._heap)
            self._heaps = {}
            for entry in sorted(self._heap):
                self._heaps.setdefault(entry[1].key, []).append(entry)  # sorted lists are heaps
        if len(self._clients) > self._tidy_clients_at:
            self._clients = {k: c for k, c in self._clients.items() if c.waiting or c.ends > self._time}
            self._tidy_clients_at = 2 * len(self._clients) + _SLACK


def _drop_left(heap: _Heap[Load]) -> None:
    while heap and heap[0][1].load is None:
        heapq.heappop(heap)
