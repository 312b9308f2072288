"""Segmenters by name: resolved, loaded beside the thread that serves, and swapped when an alias moves."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

import structlog

from vplab.errors import DeadlineExceeded, Unavailable, VPLabError
from vplab.segmentation import metrics
from vplab.segmentation.followed_names import FollowedNames
from vplab.segmentation.loaded_graphs import LoadedGraphs
from vplab.segmentation.ports import LoadedSegmenter, ModelSource, SegmenterLoader
from vplab.segmentation.values import EncoderVersion, SegmenterVersion

_log = structlog.get_logger(__name__)

_RETRY_S = (1.0, 60.0)
_MAX_ENCODERS = 1024


class Segmenters:
    """Resolves names and keeps graphs in memory; an alias is asked for once and then followed.

    A new version is loaded and run once before the old one stops being served.
    """

    def __init__(self, source: ModelSource, loader: SegmenterLoader, max_loaded: int) -> None:
        self._source = source
        self._names: FollowedNames[SegmenterVersion] = FollowedNames(source.find_segmenter, self._prepare)
        self._graphs: LoadedGraphs[SegmenterVersion, LoadedSegmenter] = LoadedGraphs(
            source, loader, "segmenter", metrics.SEGMENTERS_LOADED, max_loaded=max_loaded
        )
        self._encoders: OrderedDict[str, EncoderVersion] = OrderedDict()

    async def resolve(self, name: str) -> SegmenterVersion:
        """Return the version that a full version or alias name means here.

        Raises NotFound, ModelUnsupported, Unavailable.
        """
        return await self._names.resolve(name)

    async def encoder(self, name: str) -> EncoderVersion:
        """Return how an encoder preprocesses; an alias, which can move, is asked for each time.

        Raises NotFound, ModelUnsupported, Unavailable.
        """
        known = self._encoders.get(name)
        if known is not None:
            return known
        found = await self._source.find_encoder(name)
        if len(self._encoders) >= _MAX_ENCODERS:
            self._encoders.popitem(last=False)
        return self._encoders.setdefault(found.model.name, found)

    async def get(self, version: SegmenterVersion) -> LoadedSegmenter:
        """Return a segmenter, loading and warming it up if needed. Raises as ``LoadedGraphs.get``."""
        return await self._graphs.get(version)

    def served(self) -> Sequence[tuple[SegmenterVersion, LoadedSegmenter, tuple[str, ...]]]:
        """Return the loaded segmenters with the aliases that lead to them here."""
        return [(version, graph, self._names.aliases_of(version.model)) for version, graph in self._graphs.loaded()]

    def moved(self, alias: str) -> None:
        """Take note that an alias may mean something else now."""
        self._names.moved(alias)

    async def preload(self, name: str) -> None:
        """Have a segmenter ready before it is asked for, as soon as the registry answers."""
        retry_s = _RETRY_S[0]
        while True:
            try:
                await self.get(await self.resolve(name))
                return
            except (Unavailable, DeadlineExceeded) as error:
                _log.warning("preload_waits", name=name, error=error.message, retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])
            except VPLabError as error:
                _log.error("segmenter_not_preloaded", name=name, error=error.message)
                return

    async def close(self) -> None:
        """End what is under way and begin no further load."""
        await self._names.close()
        self._graphs.close()

    async def _prepare(self, old: SegmenterVersion, new: SegmenterVersion) -> None:
        """Load what an alias means now, if what it meant is loaded."""
        if self._graphs.holds(old):
            await self._graphs.get(new)
