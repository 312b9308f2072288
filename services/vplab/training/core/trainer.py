"""Takes jobs from the queue and brings them to their end, one at a time.

A job that is taken belongs to this trainer as long as it renews the lease. Whatever happens to the trainer, the job
goes on elsewhere from its last checkpoint once the lease expires; what a trainer does after that the store refuses.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from vplab.errors import Unavailable, VPLabError
from vplab.training import metrics
from vplab.training.core.leasing import (
    AWAY_S,
    RETRY_S,
    WORTH_ANOTHER_TRY,
    patiently,
    while_leased,
    work_through,
)
from vplab.training.core.wake_up import WakeUp
from vplab.training.errors import LeaseLost, WorkerDied
from vplab.training.ports import Executor, JobStore, ModelSource
from vplab.training.values import (
    Checkpoint,
    Claim,
    JobState,
    Lease,
    Preview,
    Progress,
    Stage,
    TuningPlan,
    TuningResult,
)

_BEFORE, _AFTER, _PROMOTED = "validation_iou_before", "validation_iou_after", "validation_iou_promoted"
_KNOWN = "validation_images_known_to_promoted"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Trainer:
    """One loop over the queue; an executor with several slots has as many trainers."""

    store: JobStore
    models: ModelSource
    executor: Executor
    wake_up: WakeUp
    cancelled: WakeUp
    """Told when a job is cancelled here, so that its trainer lets go of it at once."""
    owner: str
    """What this trainer is called in the queue and its messages."""
    lease_s: float
    poll_s: float
    max_claims: int

    async def run(self) -> None:
        """Work on jobs, oldest first, for ever."""
        claim = self.store.claim
        await work_through(lambda: claim(self.owner, self.lease_s), self._work_on, self.wake_up, self.poll_s)

    async def _work_on(self, claim: Claim) -> None:
        log = _log.bind(job=claim.job.name, token=claim.lease.token)
        log.info("job_taken", num_claims=claim.num_claims, checkpoint=claim.checkpoint and claim.checkpoint.step)
        metrics.TAKEN.labels("first" if claim.lease.token == 1 else "again").inc()
        self.wake_up.tell()
        try:
            with metrics.RUNNING.track_inprogress():
                await self._bring_to_its_end(claim)
        except LeaseLost:
            log.info("job_left_to_others")  # cancelled, or taken over while this trainer was slow
        except asyncio.CancelledError:
            await self._hand_on(claim.lease)
            raise
        finally:
            self.wake_up.tell()

    async def _bring_to_its_end(self, claim: Claim) -> None:
        if claim.num_claims > self.max_claims:
            message = f"given up: taken up {self.max_claims} times without getting any further; its trainers died"
            await self._finish(claim.lease, JobState.FAILED, message=message)
            return
        try:
            result, promotion = await while_leased(
                self.store, claim.lease, self.lease_s, self.cancelled, self._tune(claim)
            )
        except WORTH_ANOTHER_TRY as error:
            await self._put_back(claim, error)
        except LeaseLost:
            raise
        except VPLabError as error:
            _log.warning("job_failed", job=claim.job.name, error=error.message, reason=error.reason)
            await self._finish(claim.lease, JobState.FAILED, message=error.message)
        except Exception:
            _log.exception("job_failed", job=claim.job.name)
            await self._finish(claim.lease, JobState.FAILED, message="internal error; the server's log says more")
        else:
            await self._finish(claim.lease, JobState.SUCCEEDED, result=result, promotion=promotion)
            for stage in Stage:
                metrics.STAGE_SECONDS.labels(stage).observe(result.metrics.get(f"seconds_{stage}", 0.0))

    async def _tune(self, claim: Claim) -> tuple[TuningResult, str]:
        reports = _Reports(self, claim.lease)
        result = await self.executor.run(claim, reports)
        await reports.commit()  # an executor that found an earlier try's adapter may not have asked
        await reports.report([Stage.PROMOTE])
        began = time.monotonic()
        promotion = await self._promote(claim, result)
        seconds = {
            f"seconds_{Stage.QUEUE}": claim.queued_s,
            "seconds_start": reports.started_s,
            f"seconds_{Stage.PROMOTE}": time.monotonic() - began,
        }
        return replace(result, metrics={**result.metrics, **seconds}), promotion

    async def _promote(self, claim: Claim, result: TuningResult) -> str:
        plan = claim.job.plan
        why_not = why_not_promoted(plan, result)
        if not plan.promote_alias or why_not:
            return why_not
        promote = self.models.promote
        told = await patiently(lambda: promote(plan, result.adapter.name, claim.job.name, result.compared))
        return f"{told}: {_compared(result)}" if plan.promote_only_if_better and told.startswith("moved") else told

    async def _put_back(self, claim: Claim, error: VPLabError) -> None:
        """Queue the job again: after a dead worker ever later, after a service that is away once it may be back."""
        died = isinstance(error, WorkerDied)
        delay_s = min(RETRY_S[0] * 2 ** (claim.num_claims - 1), RETRY_S[1]) if died else AWAY_S
        _log.warning("job_put_back", job=claim.job.name, error=error.message, delay_s=delay_s)
        metrics.PUT_BACK.labels("worker_died" if died else "dependency").inc()
        message = f"waits: {error.message}"
        await patiently(lambda: self.store.put_back(claim.lease, delay_s, message, counts=died))

    async def _finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: TuningResult | None = None,
        promotion: str = "",
        message: str = "",
    ) -> None:
        """End the job; a database that is away is waited for, which a lease that runs out meanwhile does not harm."""
        finish = self.store.finish
        job = await patiently(lambda: finish(lease, state, result=result, promotion=promotion, message=message))
        metrics.ENDED.labels(state).inc()
        _log.info("job_ended", job=job.name, state=state, message=message, promotion=promotion)

    async def _hand_on(self, lease: Lease) -> None:
        """Let another trainer go on at once, since this one is being stopped."""
        try:
            await asyncio.shield(self.store.put_back(lease, 0.0, "waits: its trainer was stopped", counts=False))
            metrics.PUT_BACK.labels("shutdown").inc()
        except (LeaseLost, Unavailable):
            return


@dataclass
class _Reports:
    """Implements WorkReports for one lease."""

    trainer: Trainer
    lease: Lease
    began: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    """Until the executor's first report: how long it took a worker to be there."""

    async def report(self, reports: Sequence[Stage | Progress | Preview]) -> None:
        self.started_s = self.started_s or time.monotonic() - self.began
        await self._do(lambda: self.trainer.store.record(self.lease, reports))

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        await self._do(lambda: self.trainer.store.save_checkpoint(self.lease, checkpoint))

    async def commit(self) -> None:
        await self._do(lambda: self.trainer.store.commit(self.lease))

    async def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        await patiently(work)
        self.trainer.wake_up.tell()


def why_not_promoted(plan: TuningPlan, result: TuningResult) -> str:
    """Return why an adapter must not be promoted, empty where it may be, or nothing was asked for."""
    if not plan.promote_alias:
        return ""
    if not result.parity_passed:
        return "not promoted: the exported graph differs from the tuned decoder"
    before, after = result.metrics.get(_BEFORE if result.compared is None else _PROMOTED), result.metrics.get(_AFTER)
    if plan.promote_only_if_better and (before is None or after is None or not after >= before):
        return f"not promoted: {_compared(result)}"
    return ""


def _compared(result: TuningResult) -> str:
    """Return the figures that a promotion depends on, in words."""

    def figure(name: str) -> str:
        value = result.metrics.get(name)
        return "unknown" if value is None else f"{value:.4f}"

    own = f"its validation IoU is {figure(_AFTER)}"
    if result.compared is None:
        return f"{own}, the segmenter's without an adapter {figure(_BEFORE)}"
    text = f"{own}, that of {result.compared.name} {figure(_PROMOTED)}"
    known = result.metrics.get(_KNOWN, 0.0)
    return f"{text}, which was tuned on {known:g} of the validation images" if known else text
