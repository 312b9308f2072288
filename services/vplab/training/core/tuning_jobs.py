"""Creating, reading, cancelling and watching tuning jobs."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from vplab.training import metrics
from vplab.training.core.options import filled_in, with_early_features
from vplab.training.core.wake_up import WakeUp
from vplab.training.errors import AdapterBaseMismatch, OtherVersion, naming_field
from vplab.training.ports import DatasetSource, Executor, JobStore, ModelSource
from vplab.training.values import (
    TERMINAL_STATES,
    DatasetVersion,
    Job,
    JobEvent,
    JobKind,
    ModelRef,
    NewJob,
    TuningDraft,
    TuningMethod,
    TuningOptions,
    TuningPlan,
)

_PAGE: Final = 100
_MAX_ID: Final = 63

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class TuningJobs:
    """The use cases behind the RPCs."""

    store: JobStore
    datasets: DatasetSource
    models: ModelSource
    executor: Executor
    wake_up: WakeUp
    """Told of every change made here, so that nobody waits for the next look at the database."""
    cancelled: WakeUp
    default_segmenter: str
    default_feature_encoder: str
    """For jobs that name no prompt set; empty is none."""
    poll_s: float

    async def create(self, draft: TuningDraft) -> Job:
        """Check everything a job depends on, publish data that came along, and queue the job.

        Raises TrainerMissing, AlreadyExists (REQUEST_ID_REUSED), InvalidInput with the field and file at fault,
        NotFound, AdapterBaseMismatch, OtherVersion and FailedPrecondition with the field in their metadata, and
        Unavailable.
        """
        self.executor.check_available()
        found = await self.store.find_request(draft.request_id, draft.fingerprint)
        if found is not None:
            return found
        # The small questions first: whoever misspelt a name need not wait for the images to be checked.
        filled_in(draft.method, draft.options, num_images=1)
        with naming_field("segmenter"):
            segmenter = await self.models.find_segmenter(draft.segmenter or self.default_segmenter)
        _require(segmenter, draft.segmenter_digest, "segmenter_digest")
        options = await self._options(draft, segmenter)
        prompt_set = await self._prompt_set(draft, segmenter)
        feature_encoder = None
        if prompt_set is None and self.default_feature_encoder:
            with naming_field("prompt_set"):  # which, left empty, means this encoder
                feature_encoder = await self.models.find_feature_encoder(self.default_feature_encoder)
        await self._check_adapter(draft.adapter_id, segmenter)
        dataset = await self._dataset(draft)
        plan = TuningPlan(
            adapter_id=draft.adapter_id,
            dataset=dataset.model,
            segmenter=segmenter,
            prompt_set=prompt_set,
            method=draft.method,
            options=filled_in(draft.method, options, dataset.num_images),
            promote_alias=draft.promote_alias,
            promote_only_if_better=draft.promote_only_if_better,
            feature_encoder=feature_encoder,
        )
        job = await self.store.create(NewJob(JobKind.TUNING, draft.request_id, draft.fingerprint, plan))
        metrics.CREATED.labels(plan.method).inc()
        _log.info("job_queued", job=job.name, method=plan.method, dataset=dataset.model.name)
        self.wake_up.tell()
        return job

    async def get(self, job_id: str) -> Job:
        """Return a job. Raises NoSuchJob."""
        return await self.store.get(job_id)

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return jobs, newest first, and where the next page starts."""
        return await self.store.list_page(page_size, before)

    async def cancel(self, job_id: str) -> Job:
        """End a job unless it ended, or publishes its adapter already. Raises NoSuchJob."""
        job = await self.store.cancel(job_id)
        self.cancelled.tell()
        self.wake_up.tell()
        return job

    async def watch(self, job_id: str, after: int) -> AsyncGenerator[JobEvent, None]:
        """Yield the events after a sequence number until the terminal one. Raises NoSuchJob, SequenceOutOfRange."""
        while True:
            changed = self.wake_up.changed
            found = await self.store.events(job_id, after, _PAGE)
            for event in found:
                yield event
                after = event.sequence
                if isinstance(event.event, Job) and event.state in TERMINAL_STATES:
                    return
            if found:
                continue
            # Nothing new and ended: whoever asked has seen the terminal event before.
            if (await self.store.get(job_id)).state in TERMINAL_STATES and not await self.store.events(
                job_id, after, 1
            ):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.poll_s):
                    await changed.wait()

    async def _options(self, draft: TuningDraft, segmenter: ModelRef) -> TuningOptions:
        """Return the options with what depends on the segmenter settled."""
        if draft.method is not TuningMethod.HQ_TOKEN:
            return draft.options
        with naming_field("segmenter"):
            channels = await self.models.early_channels(segmenter)
        return with_early_features(draft.options, channels)

    async def _prompt_set(self, draft: TuningDraft, segmenter: ModelRef) -> ModelRef | None:
        if not draft.prompt_set:
            return None
        with naming_field("prompt_set"):
            prompt_set, base = await self.models.find_prompt_set(draft.prompt_set)
        _require(prompt_set, draft.prompt_set_digest, "prompt_set_digest")
        if base != segmenter.digest:
            raise AdapterBaseMismatch(prompt_set.name, field="prompt_set", expected=segmenter.digest, actual=base)
        return prompt_set

    async def _check_adapter(self, adapter_id: str, segmenter: ModelRef) -> None:
        with naming_field("adapter_id"):
            base = await self.models.adapter_base(adapter_id)
        # Versions of one adapter replace each other behind an alias, so they must all fit the same segmenter.
        if base is not None and base != segmenter.digest:
            name = f"artifacts/{adapter_id}"
            raise AdapterBaseMismatch(name, field="adapter_id", expected=segmenter.digest, actual=base)

    async def _dataset(self, draft: TuningDraft) -> DatasetVersion:
        if isinstance(draft.source, str):
            with naming_field("dataset"):
                dataset = await self.datasets.find(draft.source)
            _require(dataset.model, draft.dataset_digest, "dataset_digest")
            return dataset
        # Derived, so that a repeat after a crash between the two publishes nothing a second time.
        request_id = str(uuid.uuid5(uuid.UUID(draft.request_id), "dataset"))
        with naming_field("adapter_id"):  # after which the data set is named
            return await self.datasets.publish(dataset_id(draft.adapter_id), draft.source, request_id)


def _require(model: ModelRef, digest: str, field: str) -> None:
    if digest and digest != model.digest:
        raise OtherVersion(model.name, field=field, expected=digest, actual=model.digest)


def dataset_id(adapter_id: str) -> str:
    """Return the artifact that data sent along for an adapter is published under."""
    return f"{adapter_id[: _MAX_ID - len('-data')].rstrip('-')}-data"
