"""Which adapter lies in which row of a segmenter's bank: placed when asked for, kept while work needs it, then evicted.

The event loop hands rows out, the device's threads write them: a row is put in place right before the first run that
needs it, so no run ever sees half of one. The least recently used adapter that no work needs makes room for a new one.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from vplab.runtime.single_flight import SingleFlight
from vplab.segmentation import metrics
from vplab.segmentation.ports import Decoded, LoadedBank, Row
from vplab.segmentation.values import AdapterVersion
from vplab.vision.adapters.bank_layout import BankLayout

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Place:
    """A row of the bank and the adapter in it."""

    index: int
    version: AdapterVersion
    unwritten: Row | None
    """The row until a thread of the device has put it in place."""
    num_users: int = 0
    """Calls that need it; only when there are none may another adapter take the place."""


@dataclass(frozen=True, eq=False)
class BankedAdapter:
    """An adapter in a bank, as one call holds it: what decodes for this call."""

    bank: "AdapterBank"
    place: Place


class AdapterBank:
    """The rows of one loaded bank graph."""

    def __init__(self, graph: LoadedBank) -> None:
        self._graph = graph
        self._writing = threading.Lock()
        self._vacant = list(range(graph.capacity, 0, -1))
        self._places: OrderedDict[str, Place] = OrderedDict()
        self._reading: SingleFlight[Row] = SingleFlight(outlives_callers=True)
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def device(self) -> str:
        """Where the graph runs."""
        return self._graph.device

    @property
    def num_bytes(self) -> int:
        """About what graph and rows take of memory, empty rows too."""
        return self._graph.num_bytes

    @property
    def layout(self) -> BankLayout:
        """What a row holds."""
        return self._graph.layout

    @property
    def row_bytes(self) -> int:
        """Memory of one adapter."""
        return 2 * self._graph.layout.width

    def resident(self) -> Sequence[AdapterVersion]:
        """Return the adapters that have a row, the most recently used last."""
        return [place.version for place in self._places.values()]

    def holds(self, version: AdapterVersion) -> bool:
        """Say whether an adapter has a row."""
        return version.model.digest in self._places

    async def take(self, version: AdapterVersion, read: Callable[[], Awaitable[Row]]) -> BankedAdapter:
        """Return an adapter that keeps its row until ``give_back``; waits while work needs every row.

        read: returns its row; called only if it has none, once for any number of callers. Raises what ``read`` raises.
        """
        digest, row = version.model.digest, None
        while (place := self._places.get(digest)) is None:
            if row is None:
                row = await self._reading.run(digest, read)
            elif (index := self._vacate()) is None:
                await self._until_one_is_free()
            else:
                self._places[digest] = Place(index, version, row)
        self._places.move_to_end(digest)
        place.num_users += 1
        return BankedAdapter(self, place)

    def give_back(self, adapter: BankedAdapter) -> None:
        """End what ``take`` began; queued work of the call must have ended, or been taken out of the queue."""
        adapter.place.num_users -= 1
        if not adapter.place.num_users:
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    def run(self, places: Sequence[Place], *values: Any) -> Decoded:
        """Decode a prompt with each of ``places``, held by ``take``; on the device's threads only.

        values: the arguments of ``LoadedSegmenter.run``.
        """
        with self._writing:
            for place in dict.fromkeys(places):
                # Looked at once: the loop may evict it meanwhile.
                if (row := place.unwritten) is not None:
                    self._graph.write(place.index, row)
                    place.unwritten = None
        return self._graph.run([place.index for place in places], *values)

    def close(self) -> None:
        """Begin no further reading."""
        self._reading.close()

    def _vacate(self) -> int | None:
        """Return the index of a row that nobody needs, evicting whose it was; None while all are needed."""
        if self._vacant:
            return self._vacant.pop()
        unused = next((digest for digest, place in self._places.items() if not place.num_users), None)
        if unused is None:
            return None
        place = self._places.pop(unused)
        place.unwritten = None  # an abandoned call may still be in the queue; it must not write over who comes next
        metrics.BANK_EVICTIONS.inc()
        _log.info("adapter_evicted", name=place.version.model.name, digest=unused)
        return place.index

    async def _until_one_is_free(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
