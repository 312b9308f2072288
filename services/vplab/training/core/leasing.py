"""The loop over a job queue, work that lasts as long as its lease, and patience with what is away."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final, Never, Protocol, TypeVar

import structlog

from vplab.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable
from vplab.training.core.wake_up import WakeUp
from vplab.training.errors import LeaseLost
from vplab.training.values import Lease

Value = TypeVar("Value")

Claimed = TypeVar("Claimed")

RETRY_S: Final = (0.2, 15.0)
AWAY_S: Final = 2.0
"""Time after which a job is due again that failed because another service is away."""
WORTH_ANOTHER_TRY: Final = (Unavailable, DeadlineExceeded, ResourceExhausted, Cancelled)
"""Errors that say nothing against the job itself."""
_RENEWALS: Final = 3
"""Of a lease in its time: two may be late."""

_log = structlog.get_logger(__name__)


class Renews(Protocol):
    """The part of a store that leases need."""

    async def renew(self, lease: Lease, lease_s: float) -> None: ...


async def work_through(
    claim: Callable[[], Awaitable[Claimed | None]],
    work_on: Callable[[Claimed], Awaitable[None]],
    wake_up: WakeUp,
    poll_s: float,
) -> Never:
    """Work on what ``claim`` takes, one at a time, for ever; where nothing is due look again after ``poll_s``, or when
    told."""
    while True:
        changed = wake_up.changed
        claimed = await patiently(claim)
        if claimed is not None:
            await work_on(claimed)
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll_s):
                await changed.wait()


async def while_leased(store: Renews, lease: Lease, lease_s: float, cancelled: WakeUp, work: Awaitable[Value]) -> Value:
    """Do the work and renew the lease meanwhile; without a lease the work is cancelled. Raises LeaseLost.

    cancelled: told when the lease may have been lost, so that it is looked at at once.
    """
    working = asyncio.ensure_future(work)
    renewing = asyncio.create_task(_renew(store, lease, lease_s, cancelled))
    try:
        await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            renewing.result()
        return await working
    finally:
        for task in (renewing, working):
            task.cancel()
        await asyncio.gather(renewing, working, return_exceptions=True)


async def patiently(work: Callable[[], Awaitable[Value]]) -> Value:
    """Try again, ever more slowly, what fails because the database or the registry is away."""
    wait_s = RETRY_S[0]
    while True:
        try:
            return await work()
        except (Unavailable, DeadlineExceeded, ResourceExhausted) as error:
            _log.warning("trainer_waits", error=error.message, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RETRY_S[1])


async def _renew(store: Renews, lease: Lease, lease_s: float, cancelled: WakeUp) -> None:
    """Renew a lease until it is lost, or could not be renewed in its time."""
    expires = time.monotonic() + lease_s
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(lease_s / _RENEWALS):
                await cancelled.changed.wait()
        asked = time.monotonic()
        try:
            await store.renew(lease, lease_s)
            expires = asked + lease_s
        except Unavailable as error:
            _log.warning("lease_not_renewed", job=lease.job_id, error=error.message)
            if time.monotonic() > expires:
                raise LeaseLost(lease.job_id) from error
            await asyncio.sleep(min(RETRY_S[0], lease_s / 10))
