"""What the core needs from outside; backends implement these."""

from collections.abc import Sequence
from typing import Protocol

from vplab.training.values import (
    Checkpoint,
    Claim,
    DatasetVersion,
    DraftDataset,
    ExportClaim,
    ExportDraft,
    ExportJob,
    ExportPlan,
    Job,
    JobEvent,
    JobState,
    Lease,
    ModelRef,
    NewJob,
    Preview,
    Progress,
    Report,
    Stage,
    TuningPlan,
    TuningResult,
)


class JobStore(Protocol):
    """The queue, shared by every replica; each method is one transaction and may raise Unavailable.

    A method that takes a lease changes nothing and raises LeaseLost when that is no longer the job's current one, so
    whoever was slow, or came back from the dead, cannot disturb the trainer that took over.
    """

    async def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """Return the job that has this request_id. Raises AlreadyExists (REQUEST_ID_REUSED) for another fingerprint."""
        ...

    async def create(self, job: NewJob) -> Job:
        """Queue a job with its first event, or return the one that has this request_id.

        Raises AlreadyExists (REQUEST_ID_REUSED).
        """
        ...

    async def get(self, job_id: str) -> Job:
        """Return a job. Raises NoSuchJob."""
        ...

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return up to ``page_size`` jobs, newest first, and where the next page starts (None at the end)."""
        ...

    async def events(self, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Return up to ``limit`` events with a sequence above ``after``, in order.

        Raises NoSuchJob, SequenceOutOfRange if there is no event ``after`` yet.
        """
        ...

    async def cancel(self, job_id: str) -> Job:
        """End a job unless it ended or is committed, and return it as it is now. Raises NoSuchJob."""
        ...

    async def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Take the oldest job that waits, or whose lease expired; None if there is none."""
        ...

    async def renew(self, lease: Lease, lease_s: float) -> None:
        """Let a lease last ``lease_s`` seconds from now. Raises LeaseLost."""
        ...

    async def record(self, lease: Lease, reports: Sequence[Report]) -> None:
        """Append what happened to the job's events. Raises LeaseLost."""
        ...

    async def save_checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint in place of the one before. Raises LeaseLost."""
        ...

    async def commit(self, lease: Lease) -> None:
        """Note that the adapter is published from now on: a cancel no longer ends the job. Raises LeaseLost."""
        ...

    async def put_back(self, lease: Lease, delay_s: float, message: str, *, counts: bool) -> None:
        """Let the job wait for another try, after a delay; ``counts`` is whether this one may be held against the job.

        Raises LeaseLost.
        """
        ...

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: TuningResult | None = None,
        promotion: str = "",
        message: str = "",
    ) -> Job:
        """End a job with its terminal event and drop its checkpoint. Raises LeaseLost."""
        ...


class WorkReports(Protocol):
    """What an executor tells while it works; every method raises LeaseLost once the job is no longer its own."""

    async def report(self, reports: Sequence[Stage | Progress | Preview]) -> None:
        """Tell watchers."""
        ...

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep where the job can go on."""
        ...

    async def commit(self) -> None:
        """Ask for leave to publish; from then on the job cannot be cancelled."""
        ...


class Executor(Protocol):
    """Where jobs are worked on: a warm process of this machine, or a pod."""

    @property
    def num_slots(self) -> int:
        """How many jobs it works on at a time; 0 works on none."""
        ...

    async def run(self, claim: Claim, reports: WorkReports) -> TuningResult:
        """Tune, export and publish; going on from the claim's checkpoint. Cancelling it ends the work at once.

        An adapter that an earlier, committed try published is found and returned, not made again.
        Raises WorkerDied, and kinds of ``vplab.errors``: Unavailable, DeadlineExceeded and ResourceExhausted are worth
        another try, the others are the job's own fault.
        """
        ...

    def check_available(self) -> None:
        """Raise TrainerMissing if this installation cannot train."""
        ...


class DatasetSource(Protocol):
    """Data sets in the registry."""

    async def find(self, name: str) -> DatasetVersion:
        """Return the version that a name means now, with all of its images and masks checked.

        Raises NotFound, Unavailable, InvalidInput naming the file that is wrong.
        """
        ...

    async def publish(self, dataset_id: str, draft: DraftDataset, request_id: str) -> DatasetVersion:
        """Publish what came with a request; the same request_id publishes once.

        Raises InvalidInput naming the file that is wrong, Unavailable, ResourceExhausted.
        """
        ...


class ModelSource(Protocol):
    """Models in the registry."""

    async def find_segmenter(self, name: str) -> ModelRef:
        """Return the segmenter that a name means now, if it can be tuned.

        Raises NotFound, FailedPrecondition (MODEL_UNSUPPORTED), also for a decoder in half precision.
        """
        ...

    async def early_channels(self, segmenter: ModelRef) -> int | None:
        """Return the channels of the early feature that a segmenter's image encoder gives; None where it gives none.

        Raises NotFound, FailedPrecondition (MODEL_UNSUPPORTED).
        """
        ...

    async def find_feature_encoder(self, name: str) -> ModelRef:
        """Return the encoder that a name means now. Raises NotFound, FailedPrecondition (MODEL_UNSUPPORTED)."""
        ...

    async def find_prompt_set(self, name: str) -> tuple[ModelRef, str]:
        """Return a prompt set and its segmenter's digest; a bare artifact means its newest version.

        Raises NotFound, FailedPrecondition (MODEL_UNSUPPORTED).
        """
        ...

    async def adapter_base(self, adapter_id: str) -> str | None:
        """Return the digest of the segmenter that an adapter's newest version was made for; None without versions.

        Raises FailedPrecondition if the artifact holds something else.
        """
        ...

    async def promote(self, plan: TuningPlan, version: str, reason: str, compared: ModelRef | None) -> str:
        """Move ``plan.promote_alias`` to a version by compare-and-set, once for each reason, never to an older version.

        With ``plan.promote_only_if_better`` only from the version that the new one was compared with, or from none.
        Returns what became of it, in words; it begins with "moved" where it moved. Raises Unavailable.
        """
        ...


class ExportStore(Protocol):
    """The exports' part of the queue; leases and errors as in JobStore."""

    async def find_request(self, request_id: str, fingerprint: str) -> ExportJob | None:
        """Return the export that has this request_id. Raises AlreadyExists (REQUEST_ID_REUSED)."""
        ...

    async def create(self, draft: ExportDraft, plan: ExportPlan) -> ExportJob:
        """Queue an export, or return the one that has this request_id. Raises AlreadyExists (REQUEST_ID_REUSED)."""
        ...

    async def get(self, job_id: str) -> ExportJob:
        """Return an export. Raises NoSuchJob."""
        ...

    async def claim(self, owner: str, lease_s: float) -> ExportClaim | None:
        """Take the oldest export that waits, or whose lease expired; None if there is none."""
        ...

    async def renew(self, lease: Lease, lease_s: float) -> None:
        """Let a lease last ``lease_s`` seconds from now. Raises LeaseLost."""
        ...

    async def put_back(self, lease: Lease, delay_s: float, message: str) -> None:
        """Let the export wait for another try, after a delay. Raises LeaseLost."""
        ...

    async def finish(self, lease: Lease, state: JobState, bundle: ModelRef | None, message: str) -> ExportJob:
        """End an export. Raises LeaseLost."""
        ...


class BundleMaker(Protocol):
    """Line bundles in the registry."""

    async def plan(self, draft: ExportDraft) -> ExportPlan:
        """Resolve the names of a request.

        Raises NotFound, AdapterBaseMismatch and, where a version is not what it was named for or ``bundle_id`` holds
        something else, FailedPrecondition, all with the field in message and metadata; and Unavailable.
        """
        ...

    async def make(self, plan: ExportPlan, job_name: str) -> ModelRef:
        """Make and publish a bundle; what an earlier try of the job published is found and returned.

        Raises kinds of ``vplab.errors``: Unavailable, DeadlineExceeded and ResourceExhausted are worth another try.
        """
        ...
