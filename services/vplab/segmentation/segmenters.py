"""Segmenters by name: resolved, loaded beside the thread that serves, and swapped when an alias moves."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import structlog

from vplab.errors import DataLoss, DeadlineExceeded, FailedPrecondition, Unavailable, VPLabError
from vplab.runtime.single_flight import SingleFlight
from vplab.segmentation import metrics
from vplab.segmentation.ports import LoadedSegmenter, ModelSource, SegmenterLoader
from vplab.segmentation.values import EncoderVersion, SegmenterVersion

_log = structlog.get_logger(__name__)

_RETRY_S = (1.0, 60.0)
# A version that cannot be loaded never can be, but its files may be repaired; so it is tried again, though not often.
_REMEMBER_FAILURE_S = 30.0
# Names come from callers; versions are immutable, so forgetting one only costs a call.
_MAX_NAMES = 1024

Version = TypeVar("Version")


class Segmenters:
    """Resolves names and keeps graphs in memory; an alias is asked for once and then followed.

    A new version is loaded and run once before the old one stops being served. One that leaves stays in memory until
    the work that holds it has ended.
    """

    def __init__(self, source: ModelSource, loader: SegmenterLoader, max_loaded: int) -> None:
        self._source = source
        self._loader = loader
        self._max_loaded = max_loaded
        self._names: OrderedDict[str, SegmenterVersion] = OrderedDict()
        self._encoders: OrderedDict[str, EncoderVersion] = OrderedDict()
        self._loaded: OrderedDict[str, tuple[SegmenterVersion, LoadedSegmenter]] = OrderedDict()
        self._failures: dict[str, tuple[float, FailedPrecondition | DataLoss]] = {}
        self._finding: SingleFlight[SegmenterVersion] = SingleFlight(outlives_callers=True)
        self._loading: SingleFlight[LoadedSegmenter] = SingleFlight(outlives_callers=True)
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load-segmenter")

    async def resolve(self, name: str) -> SegmenterVersion:
        """Return the version that a full version or alias name means here.

        Raises NotFound, ModelUnsupported, Unavailable.
        """
        known = self._names.get(name)
        if known is not None:
            return known
        version = await self._finding.run(name, lambda: self._source.find_segmenter(name))
        return _remember(self._names, name, version)

    async def encoder(self, name: str) -> EncoderVersion:
        """Return how an encoder preprocesses; an alias, which can move, is asked for each time.

        Raises NotFound, ModelUnsupported, Unavailable.
        """
        known = self._encoders.get(name)
        if known is not None:
            return known
        found = await self._source.find_encoder(name)
        return _remember(self._encoders, found.model.name, found)

    async def get(self, version: SegmenterVersion) -> LoadedSegmenter:
        """Return a segmenter, loading and warming it up if needed.

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

    def served(self) -> Sequence[tuple[SegmenterVersion, LoadedSegmenter, tuple[str, ...]]]:
        """Return the loaded segmenters with the aliases that lead to them here."""
        return [
            (
                version,
                loaded,
                tuple(sorted(n for n, v in self._names.items() if v.model == version.model and "/aliases/" in n)),
            )
            for version, loaded in self._loaded.values()
        ]

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

    async def follow(self) -> None:
        """Keep the aliases up to date, for ever."""
        async with aclosing(self._source.moved_aliases()) as moved:  # type: ignore[type-var]
            async for alias in moved:
                if alias in self._names and alias not in self._moving:
                    task = asyncio.create_task(self._move(alias))
                    self._moving[alias] = task
                    task.add_done_callback(partial(self._moved, alias))

    async def close(self) -> None:
        """End what is under way and begin no further load."""
        tasks = list(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._finding.close()
        self._loading.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _moved(self, alias: str, task: "asyncio.Task[None]") -> None:
        del self._moving[alias]

    async def _move(self, alias: str) -> None:
        """Load what an alias means now, if what it meant is loaded, and only then serve it."""
        retry_s = _RETRY_S[0]
        while True:
            try:
                new = await self._source.find_segmenter(alias)
                old = self._names.get(alias)
                if old is None or new.model.digest == old.model.digest:
                    return
                if old.model.digest in self._loaded:
                    await self.get(new)
            except (Unavailable, DeadlineExceeded) as error:
                _log.warning("alias_move_waits", alias=alias, error=error.message, retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])
                continue
            except VPLabError as error:
                metrics.ALIAS_MOVES.labels("refused").inc()
                _log.error("alias_move_refused", alias=alias, reason=error.reason, error=error.message)
                return
            self._names[alias] = new
            metrics.ALIAS_MOVES.labels("followed").inc()
            _log.info("alias_followed", alias=alias, old=old.model.name, new=new.model.name, digest=new.model.digest)
            # It may have moved again while this was loading, and that news found this move under way.

    async def _load(self, version: SegmenterVersion) -> LoadedSegmenter:
        model, began = version.model, time.monotonic()
        try:
            async with self._source.files(version) as folder:
                run = asyncio.get_running_loop().run_in_executor
                loaded = await run(self._thread, self._loader.load, model.name, folder, version.spec)
        except (FailedPrecondition, DataLoss) as error:
            self._failures[model.digest] = (time.monotonic(), error)
            _log.error("segmenter_refused", name=model.name, digest=model.digest, error=error.message)
            raise
        self._failures.pop(model.digest, None)
        self._loaded[model.digest] = (version, loaded)
        while len(self._loaded) > self._max_loaded:
            digest, _ = self._loaded.popitem(last=False)
            _log.info("segmenter_unloaded", digest=digest)
        metrics.SEGMENTERS_LOADED.set(len(self._loaded))
        seconds = round(time.monotonic() - began, 3)
        _log.info("segmenter_loaded", name=model.name, digest=model.digest, seconds=seconds)
        return loaded


def _remember(names: "OrderedDict[str, Version]", name: str, version: Version) -> Version:
    if len(names) >= _MAX_NAMES:
        names.popitem(last=False)
    return names.setdefault(name, version)
