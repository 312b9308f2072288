"""Precompute jobs: fill the cache with the embeddings of many images, behind everything a person waits for."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from vplab.embedding import metrics
from vplab.embedding.core import EmbeddingCore, Urgency
from vplab.embedding.ports import JobStore, ModelSource
from vplab.embedding.values import (
    EncodedImage,
    EncoderVersion,
    ImageFailure,
    Job,
    JobRequest,
    JobState,
    ModelRef,
    Precision,
)
from vplab.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
    VPLabError,
)
from vplab.runtime.device_queue import Priority
from vplab.vision.specs import canonical_json

Value = TypeVar("Value")

_log = structlog.get_logger(__name__)

_RETRY_S = (0.5, 30.0)
_MAX_JOBS: Final = 16
"""Jobs that take turns; a further one waits for the end of one of these. Each has some dozens of names in memory."""


class PrecomputeJobs:
    """Creates, runs and cancels jobs.

    Jobs take turns, image by image: a long one must not hold up a short one. ``num_at_once`` images are worked on at a
    time, of all jobs together, so that more jobs take no more memory.
    """

    def __init__(
        self, store: JobStore, source: ModelSource, core: EmbeddingCore, *, num_at_once: int, max_image_bytes: int
    ) -> None:
        self._store = store
        self._source = source
        self._core = core
        self._num_at_once = num_at_once
        self._max_image_bytes = max_image_bytes
        self._changed = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        # Who waits for one gets it in order of arrival. No job has more waiting than there are, which makes it fair.
        self._turns = asyncio.Semaphore(num_at_once)

    async def create(
        self,
        *,
        dataset: str | None,
        blobs: Sequence[str],
        encoders: Sequence[str],
        precision: Precision,
        request_id: str | None,
    ) -> Job:
        """Start a job over a dataset's images, or over single blobs where ``dataset`` is None.

        Raises NotFound, ModelUnsupported, AlreadyExists (REQUEST_ID_REUSED), InvalidInput for a dataset without images.
        """
        asked = {"dataset": dataset, "blobs": list(blobs), "encoders": list(encoders), "precision": precision}
        versions = await self._core.resolve(encoders)
        images = tuple(dict.fromkeys(blobs if dataset is None else await self._source.list_dataset_images(dataset)))
        if not images:
            raise InvalidInput("the dataset has no file with an image media type", field="dataset")
        request = JobRequest(
            request_id=request_id,
            fingerprint=hashlib.sha256(canonical_json(asked)).hexdigest(),
            images=images,
            encoders=tuple(dict.fromkeys(version.model for version in versions)),
            precision=precision,
        )
        job = await self._store.create(request)
        self._changed.set()
        return job

    async def get(self, job_id: str) -> Job:
        """Return a job. Raises NotFound."""
        return await self._store.get(job_id)

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return jobs, newest first, and where the next page starts."""
        return await self._store.list_page(page_size, before)

    async def cancel(self, job_id: str) -> Job:
        """End a job; what it embedded stays cached. Raises NotFound."""
        job = await self._store.finish(job_id, JobState.CANCELLED)
        if job_id in self._running:
            self._running[job_id].cancel()
        return job

    async def run(self) -> None:
        """Work on jobs for ever, begun oldest first; those under way are taken up again by the next start."""
        try:
            while True:
                self._changed.clear()
                job = None
                if len(self._running) < _MAX_JOBS:
                    job = await self._patiently(lambda: self._store.next_unfinished(list(self._running)))
                if job is None:
                    await self._changed.wait()
                else:
                    task = self._running[job.job_id] = asyncio.create_task(self._run_to_its_end(job))
                    task.add_done_callback(partial(self._ended, job.job_id))
        finally:
            under_way = list(self._running.values())
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _ended(self, job_id: str, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # It stays among those that run: it has not ended in the store, and would be begun again at once, for ever.
            _log.error("precompute_job_stuck", job=job_id, exc_info=error)
            return
        del self._running[job_id]
        self._changed.set()

    async def _run_to_its_end(self, job: Job) -> None:
        try:
            await self._run_job(job)
        except Exception as error:
            _log.error("precompute_job_failed", job=job.job_id, exc_info=error)
            message = _message(error)
            await self._patiently(lambda: self._store.finish(job.job_id, JobState.FAILED, message))

    async def _run_job(self, job: Job) -> None:
        encoders = await self._patiently(lambda: self._core.resolve([model.name for model in job.encoders]))
        _check_digests(job.encoders, encoders)
        limit = 16 * self._num_at_once
        while images := await self._patiently(lambda: self._store.pending_images(job.job_id, limit)):
            slots = asyncio.Semaphore(self._num_at_once)
            tries = [asyncio.create_task(self._try(image, encoders, job, slots)) for image in images]
            try:
                await self._record(job.job_id, await asyncio.gather(*tries))
            finally:
                # After a failure too: what is left of a job that ended must not take turns from the others.
                for task in tries:
                    task.cancel()
        ended = await self._patiently(lambda: self._store.finish(job.job_id, JobState.SUCCEEDED))
        _log.info("precompute_job_ended", job=job.job_id, num_done=ended.num_done, num_failed=ended.num_failed)

    async def _record(self, job_id: str, outcomes: Sequence[str | ImageFailure]) -> None:
        done = [outcome for outcome in outcomes if isinstance(outcome, str)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, ImageFailure)]
        await self._patiently(lambda: self._store.record(job_id, done, failed))
        metrics.JOB_IMAGES.labels("done").inc(len(done))
        metrics.JOB_IMAGES.labels("failed").inc(len(failed))

    async def _try(
        self, image: str, encoders: Sequence[EncoderVersion], job: Job, slots: asyncio.Semaphore
    ) -> str | ImageFailure:
        """Return the image once its embeddings are kept, or why they cannot be; raise what would fail every image."""
        async with slots:
            try:
                await self._patiently(lambda: self._embed(image, encoders, job))
            except (FailedPrecondition, ResourceExhausted) as error:
                if error.reason in ("MODEL_UNSUPPORTED", "STORAGE_FULL"):
                    raise
                return _failure(image, error)
            except VPLabError as error:
                return _failure(image, error)
        return image

    async def _embed(self, image: str, encoders: Sequence[EncoderVersion], job: Job) -> None:
        # A job is a client of its own, so that devices too are shared evenly between jobs.
        urgency = Urgency(Priority.BATCH, client=f"precomputeJobs/{job.job_id}")
        async with self._turns:
            if await self._core.cached(image, encoders, job.precision):
                return
            data = await self._source.read_image(image, self._max_image_bytes)
            await self._core.persist(await self._core.embed(EncodedImage(data), encoders, job.precision, urgency))

    async def _patiently(self, work: Callable[[], Awaitable[Value]]) -> Value:
        """Try again for as long as it is only busy or away."""
        wait_s = _RETRY_S[0]
        while True:
            try:
                return await work()
            except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
                if isinstance(error, ResourceExhausted) and error.reason != ResourceExhausted.default_reason:
                    raise
                _log.info("precompute_waits", error=error.message, wait_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _RETRY_S[1])


def _check_digests(expected: Sequence[ModelRef], found: Sequence[EncoderVersion]) -> None:
    for model, version in zip(expected, found, strict=True):
        if model.digest != version.model.digest:
            raise FailedPrecondition(
                f"{model.name} is not the version the job was made for",
                reason="MODEL_MISMATCH",
                metadata={"expected": model.digest, "actual": version.model.digest},
            )


def _failure(image: str, error: VPLabError) -> ImageFailure:
    kind = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == VPLabError.__module__)
    return ImageFailure(image, kind, error.reason, error.message)


def _message(error: BaseException | None) -> str:
    return error.message if isinstance(error, VPLabError) else "internal error; the server's log says more"
