"""The encoders in memory: loaded beside the thread that serves, bounded in number and bytes."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import structlog

from vplab.embedding import metrics
from vplab.embedding.ports import EncoderLoader, LoadedEncoder, ModelSource
from vplab.embedding.values import EncoderVersion
from vplab.errors import DataLoss, FailedPrecondition
from vplab.runtime.single_flight import SingleFlight

_log = structlog.get_logger(__name__)

# A version that cannot be loaded never can be, but its files may be repaired; so it is tried again, though not often.
_REMEMBER_FAILURE_S = 30.0


class EncoderPool:
    """Loads encoders when they are first needed; the least recently used leave.

    A new one is loaded before an old one leaves, so for a moment there is one more than the bound; and one that leaves
    stays in memory until the work that holds it has ended.
    """

    def __init__(self, source: ModelSource, loader: EncoderLoader, max_encoders: int, max_bytes: int) -> None:
        self._source = source
        self._loader = loader
        self._max_encoders = max_encoders
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, LoadedEncoder] = OrderedDict()
        self._loading: SingleFlight[LoadedEncoder] = SingleFlight(outlives_callers=True)
        self._failures: dict[str, tuple[float, FailedPrecondition | DataLoss]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="load-encoder")

    def loaded(self, version: EncoderVersion) -> LoadedEncoder | None:
        """Return an encoder if it is in memory, without counting as a use."""
        return self._loaded.get(version.model.digest)

    async def get(self, version: EncoderVersion) -> LoadedEncoder:
        """Return an encoder, loading and warming it up if needed.

        Raises NotFound, Unavailable, DataLoss if a file does not have its digest, ModelUnsupported.
        """
        digest = version.model.digest
        encoder = self._loaded.get(digest)
        if encoder is not None:
            self._loaded.move_to_end(digest)
            return encoder
        failed_at, failure = self._failures.get(digest, (0.0, None))
        if failure is not None and time.monotonic() - failed_at < _REMEMBER_FAILURE_S:
            raise failure.with_traceback(None)
        return await self._loading.run(digest, lambda: self._load(version))

    def close(self) -> None:
        """Begin no further load."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, version: EncoderVersion) -> LoadedEncoder:
        model, began = version.model, time.monotonic()
        try:
            async with self._source.files(version) as folder:
                run = asyncio.get_running_loop().run_in_executor
                encoder = await run(self._thread, self._loader.load, model.name, folder, version.spec)
        except (FailedPrecondition, DataLoss) as error:
            self._failures[model.digest] = (time.monotonic(), error)
            cause = str(error.__cause__ or "")
            _log.error("encoder_refused", name=model.name, digest=model.digest, error=error.message, cause=cause)
            raise
        self._failures.pop(model.digest, None)
        self._loaded[model.digest] = encoder
        self._evict()
        seconds = time.monotonic() - began
        metrics.LOAD_SECONDS.observe(seconds)
        _log.info("encoder_loaded", name=model.name, digest=model.digest, seconds=round(seconds, 3))
        return encoder

    def _evict(self) -> None:
        while len(self._loaded) > 1 and (len(self._loaded) > self._max_encoders or self._num_bytes() > self._max_bytes):
            digest, _ = self._loaded.popitem(last=False)
            _log.info("encoder_unloaded", digest=digest)
        metrics.ENCODERS_LOADED.set(len(self._loaded))
        metrics.ENCODER_BYTES.set(self._num_bytes())

    def _num_bytes(self) -> int:
        return sum(encoder.num_bytes for encoder in self._loaded.values())
