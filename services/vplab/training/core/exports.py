"""Exports: ordered by the RPCs, and made one at a time by a loop over the queue, in the service's own process."""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog

from vplab.errors import Unavailable, VPLabError
from vplab.training.core.leasing import AWAY_S, WORTH_ANOTHER_TRY, patiently, while_leased, work_through
from vplab.training.core.wake_up import WakeUp
from vplab.training.errors import LeaseLost
from vplab.training.ports import BundleMaker, ExportStore
from vplab.training.values import ExportClaim, ExportDraft, ExportJob, JobState, Lease, ModelRef

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ExportJobs:
    """The use cases behind the RPCs."""

    store: ExportStore
    maker: BundleMaker
    wake_up: WakeUp

    async def create(self, draft: ExportDraft) -> ExportJob:
        """Resolve every name and queue the export. Raises AlreadyExists (REQUEST_ID_REUSED), and as ``plan``."""
        found = await self.store.find_request(draft.request_id, draft.fingerprint)
        if found is not None:
            return found
        job = await self.store.create(draft, await self.maker.plan(draft))
        _log.info("export_queued", job=job.name, prompt_set=job.plan.prompt_set.name)
        self.wake_up.tell()
        return job

    async def get(self, job_id: str) -> ExportJob:
        """Return an export. Raises NoSuchJob."""
        return await self.store.get(job_id)


@dataclass(frozen=True)
class Exporter:
    """The loop; whatever happens to it, an export is taken up again once its lease expires."""

    store: ExportStore
    maker: BundleMaker
    wake_up: WakeUp
    owner: str
    lease_s: float
    poll_s: float
    max_claims: int

    async def run(self) -> None:
        """Make bundles, oldest order first, for ever."""
        claim = self.store.claim
        await work_through(lambda: claim(self.owner, self.lease_s), self._work_on, self.wake_up, self.poll_s)

    async def _work_on(self, claim: ExportClaim) -> None:
        _log.info("export_taken", job=claim.job.name, num_claims=claim.num_claims)
        try:
            await self._bring_to_its_end(claim)
        except LeaseLost:
            _log.info("export_left_to_others", job=claim.job.name)
        except asyncio.CancelledError:
            with contextlib.suppress(LeaseLost, Unavailable):
                await asyncio.shield(self.store.put_back(claim.lease, 0.0, "waits: its server was stopped"))
            raise

    async def _bring_to_its_end(self, claim: ExportClaim) -> None:
        if claim.num_claims > self.max_claims:
            message = f"given up: taken up {self.max_claims} times; the servers that made it died"
            return await self._finish(claim.lease, JobState.FAILED, None, message)
        work = self.maker.make(claim.job.plan, claim.job.name)
        try:
            # Nobody can cancel an export, so nothing need tell that a lease may have been lost.
            bundle = await while_leased(self.store, claim.lease, self.lease_s, WakeUp(), work)
        except WORTH_ANOTHER_TRY as error:
            _log.warning("export_put_back", job=claim.job.name, error=error.message)
            message = f"waits: {error.message}"
            await patiently(lambda: self.store.put_back(claim.lease, AWAY_S, message))
        except LeaseLost:
            raise
        except VPLabError as error:
            await self._finish(claim.lease, JobState.FAILED, None, error.message)
        except Exception:
            _log.exception("export_failed", job=claim.job.name)
            await self._finish(claim.lease, JobState.FAILED, None, "internal error; the server's log says more")
        else:
            await self._finish(claim.lease, JobState.SUCCEEDED, bundle, "")

    async def _finish(self, lease: Lease, state: JobState, bundle: ModelRef | None, message: str) -> None:
        job = await patiently(lambda: self.store.finish(lease, state, bundle, message))
        _log.info("export_ended", job=job.name, state=state, message=message)
