"""Decoder graphs in memory: loaded beside the thread that serves, bounded in number and bytes."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import structlog
from prometheus_client import Gauge

from vplab.errors import DataLoss, FailedPrecondition
from vplab.runtime.single_flight import SingleFlight
from vplab.segmentation.ports import GraphLoader, ModelSource
from vplab.segmentation.values import ModelRef
from vplab.vision.specs import SegmenterSpec

_log = structlog.get_logger(__name__)

# A version that cannot be loaded never can be, but its files may be repaired; so it is tried again, though not often.
_REMEMBER_FAILURE_S = 30.0


class HasGraph(Protocol):
    """A version whose files hold a decoder graph that obeys its spec."""

    @property
    def model(self) -> ModelRef: ...

    @property
    def spec(self) -> SegmenterSpec: ...


class HasBytes(Protocol):
    """Something in memory."""

    @property
    def num_bytes(self) -> int: ...


Version = TypeVar("Version", bound=HasGraph)
Graph = TypeVar("Graph", bound=HasBytes)


class LoadedGraphs(Generic[Version, Graph]):
    """Loads graphs when they are asked for; the least recently used leave.

    One that leaves stays in memory until the work that holds it has ended. The newest is kept even when it alone
    exceeds the bound.
    """

    def __init__(
        self,
        source: ModelSource,
        loader: GraphLoader[Graph],
        kind: str,
        gauge: Gauge | None,
        *,
        max_loaded: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """kind: ``segmenter``, ``adapter`` or ``bank``, for the log. gauge: counts the graphs."""
        self._source = source
        self._loader = loader
        self._kind = kind
        self._role = f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
        self._gauge = gauge
        self._max_loaded = max_loaded
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, tuple[Version, Graph]] = OrderedDict()
        self._failures: dict[str, tuple[float, FailedPrecondition | DataLoss]] = {}
        self._loading: SingleFlight[Graph] = SingleFlight(outlives_callers=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"load-{kind}")

    def holds(self, version: Version) -> bool:
        """Say whether a version is in memory."""
        return version.model.digest in self._loaded

    def loaded(self) -> Sequence[tuple[Version, Graph]]:
        """Return what is in memory."""
        return list(self._loaded.values())

    async def get(self, version: Version) -> Graph:
        """Return a graph, loading and warming it up if needed.

        Raises NotFound, Unavailable, DataLoss if a file does not have its digest, ModelUnsupported.
        """
        digest = version.model.digest
        known = self._loaded.get(digest)
        if known is not None:
            self._loaded.move_to_end(digest)
            return known[1]
        failed_at, failure = self._failures.get(digest, (0.0, None))
        if failure is not None and time.monotonic() - failed_at < _REMEMBER_FAILURE_S:
            raise failure.with_traceback(None)
        return await self._loading.run(digest, lambda: self._load(version))

    def close(self) -> None:
        """Begin no further load."""
        self._loading.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, version: Version) -> Graph:
        model, began = version.model, time.monotonic()
        try:
            async with self._source.files(model) as folder:
                run = asyncio.get_running_loop().run_in_executor
                loaded = await run(self._thread, self._loader.load, model.name, self._role, folder, version.spec)
        except (FailedPrecondition, DataLoss) as error:
            self._failures[model.digest] = (time.monotonic(), error)
            _log.error(f"{self._kind}_refused", name=model.name, digest=model.digest, error=error.message)
            raise
        self._failures.pop(model.digest, None)
        self._loaded[model.digest] = (version, loaded)
        self._make_room()
        seconds = round(time.monotonic() - began, 3)
        _log.info(f"{self._kind}_loaded", name=model.name, digest=model.digest, seconds=seconds)
        return loaded

    def _make_room(self) -> None:
        while len(self._loaded) > 1 and self._is_over():
            digest, (version, _) = self._loaded.popitem(last=False)
            _log.info(f"{self._kind}_unloaded", name=version.model.name, digest=digest)
        if self._gauge is not None:
            self._gauge.set(len(self._loaded))

    def _is_over(self) -> bool:
        num_bytes = sum(graph.num_bytes for _, graph in self._loaded.values())
        is_over_bytes = self._max_bytes is not None and num_bytes > self._max_bytes
        return is_over_bytes or (self._max_loaded is not None and len(self._loaded) > self._max_loaded)
