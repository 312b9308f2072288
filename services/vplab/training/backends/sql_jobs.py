"""The job queue in a SQL database: SQLite for one machine, PostgreSQL for replicas that share it.

Leases are measured by the database's clock, so replicas whose clocks differ agree on who may work on a job. Every write
of a trainer first locks the job's row and compares its fencing token.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from vplab.errors import DataLoss, ResourceExhausted, Unavailable
from vplab.runtime.database import open_engine
from vplab.training.backends._job_json import event_from_json, event_to_json, plan_from_json, plan_to_json
from vplab.training.backends._job_rows import (
    due_row,
    forget_old_jobs,
    insert_job,
    leased_row,
    now_micros,
    put_back_row,
    renew_row,
    requested_row,
    take_row,
    to_time,
    update_row,
)
from vplab.training.backends.sql_migrations import migrate
from vplab.training.backends.sql_schema import checkpoints, events, jobs
from vplab.training.errors import NoSuchJob, SequenceOutOfRange
from vplab.training.values import (
    TERMINAL_STATES,
    Checkpoint,
    Claim,
    Job,
    JobEvent,
    JobKind,
    JobState,
    Lease,
    ModelRef,
    NewJob,
    Preview,
    Progress,
    Report,
    Stage,
    TuningResult,
)

Value = TypeVar("Value")

_log = structlog.get_logger(__name__)

_THREADS: Final = 4
_ATTEMPTS: Final = 6
# PostgreSQL: serialization failure, deadlock, lock not available.
_COLLISIONS: Final = {"40001", "40P01", "55P03"}
# PostgreSQL: disk full, out of memory.
_FULL: Final = {"53100", "53200"}


class SqlJobs:
    """Implements JobStore."""

    def __init__(self, url: str, *, keep_jobs: int = 1000) -> None:
        """Name the database; nothing connects yet. keep_jobs: ended jobs that are remembered."""
        self._engine = open_engine(url, connections=_THREADS)
        self._writer = self._engine.execution_options(vplab_writes=True)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="training-jobs")
        self.keep_jobs = keep_jobs

    async def open(self) -> None:
        """Bring the schema up to date. Raises FailedPrecondition if it is of a newer release, Unavailable."""
        await self._in_thread(lambda: _translating(lambda: migrate(self._engine)))

    async def close(self) -> None:
        """Finish what is under way and release the database."""
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    async def find_request(self, request_id: str, fingerprint: str) -> Job | None:
        """Look for a request's job."""
        return await self.read(lambda connection: _requested(connection, request_id, fingerprint))

    async def create(self, job: NewJob) -> Job:
        """Store a job with its first event."""
        return await self.write(lambda connection: _create(connection, job, self.keep_jobs))

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return await self.read(lambda connection: _job(_row(connection, job_id)))

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return a page; where the next one starts is the number of this one's last job."""

        def read(connection: sa.Connection) -> tuple[Sequence[Job], int | None]:
            query = sa.select(jobs).where(jobs.c.kind == JobKind.TUNING)
            if before is not None:
                query = query.where(jobs.c.number < before)
            rows = connection.execute(query.order_by(jobs.c.number.desc()).limit(page_size + 1)).all()
            page = rows[:page_size]
            return [_job(row) for row in page], page[-1].number if len(rows) > page_size else None

        return await self.read(read)

    async def events(self, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Return the next events."""

        def read(connection: sa.Connection) -> Sequence[JobEvent]:
            row = _row(connection, job_id)
            if after > row.last_event:
                raise SequenceOutOfRange(after, row.last_event)
            query = sa.select(events).where(events.c.job == row.number, events.c.sequence > after)
            rows = connection.execute(query.order_by(events.c.sequence).limit(limit)).all()
            return [JobEvent(r.sequence, JobState(r.state), event_from_json(r.event)) for r in rows]

        return await self.read(read)

    async def cancel(self, job_id: str) -> Job:
        """End a job that may still be ended."""

        def end(connection: sa.Connection) -> Job:
            row = _row(connection, job_id, lock=True)
            if row.state not in TERMINAL_STATES and not row.committed:
                return _end(connection, row, JobState.CANCELLED, row.result, "")
            return _job(row)

        return await self.write(end)

    async def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Take the next job under a new fencing token."""
        return await self.write(lambda connection: _claim(connection, owner, lease_s))

    async def renew(self, lease: Lease, lease_s: float) -> None:
        """Move the end of a lease."""
        await self.write(lambda connection: renew_row(connection, lease, lease_s))

    async def record(self, lease: Lease, reports: Sequence[Report]) -> None:
        """Append events, all or none."""
        await self.write(lambda connection: _record(connection, leased_row(connection, lease), reports))

    async def save_checkpoint(self, lease: Lease, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; getting further is what a claim is judged by."""
        digest = hashlib.sha256(checkpoint.data).hexdigest()

        def save(connection: sa.Connection) -> None:
            row = leased_row(connection, lease)
            values = {"step": checkpoint.step, "sha256": digest, "data": checkpoint.data}
            is_it = checkpoints.c.job == row.number
            if connection.execute(sa.update(checkpoints).where(is_it).values(values)).rowcount == 0:
                connection.execute(sa.insert(checkpoints).values(job=row.number, **values))
            update_row(connection, row, num_claims=0)

        await self.write(save)

    async def commit(self, lease: Lease) -> None:
        """Pass the point of no return."""
        await self.write(lambda c: update_row(c, leased_row(c, lease), committed=True, num_claims=0))

    async def put_back(self, lease: Lease, delay_s: float, message: str, *, counts: bool) -> None:
        """Queue a job again."""

        def release(connection: sa.Connection) -> None:
            put_back_row(connection, lease, delay_s, message, counts=counts)
            _append_job(connection, lease.job_id)

        await self.write(release)

    async def finish(
        self,
        lease: Lease,
        state: JobState,
        *,
        result: TuningResult | None = None,
        promotion: str = "",
        message: str = "",
    ) -> Job:
        """End a job that is still this trainer's."""
        text = None if result is None else _result_to_json(result, promotion)
        return await self.write(lambda c: _end(c, leased_row(c, lease), state, text, message))

    async def read(self, work: Callable[[sa.Connection], Value]) -> Value:
        """Run a transaction that changes nothing; the exports' part of the queue uses it too."""
        return await self._in_thread(lambda: self._attempt(self._engine, work))

    async def write(self, work: Callable[[sa.Connection], Value]) -> Value:
        """Run a transaction, again where it collided with another one."""
        return await self._in_thread(lambda: self._attempt(self._writer, work))

    def _attempt(self, engine: sa.Engine, work: Callable[[sa.Connection], Value]) -> Value:
        """Run a transaction, again where it collided with another one."""

        def once() -> Value:
            with engine.begin() as connection:
                return work(connection)

        for attempt in range(_ATTEMPTS - 1):
            try:
                return once()
            except DBAPIError as error:
                if not isinstance(error, IntegrityError) and _sqlstate(error) not in _COLLISIONS:
                    raise translated(error) from error
            time.sleep(random.uniform(0.0, 0.01 * 2**attempt))
        return _translating(once)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _translating(work: Callable[[], Value]) -> Value:
    try:
        return work()
    except (DBAPIError, DisconnectionError, PoolTimeout) as error:
        raise translated(error) from error


def translated(error: Exception) -> Exception:
    """Return what a database's failure means to a caller; itself if it is a fault of ours."""
    if not isinstance(error, (OperationalError, InterfaceError, DisconnectionError, PoolTimeout)):
        return error
    cause = str(getattr(error, "orig", error))
    _log.error("job_database_unusable", error=cause)
    if _sqlstate(error) in _FULL or "database or disk is full" in cause.lower():
        return ResourceExhausted("the job database's disk takes no more", reason="STORAGE_FULL")
    return Unavailable("the job database cannot be used now", metadata={"service": "database"})


def _sqlstate(error: BaseException) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _create(connection: sa.Connection, job: NewJob, keep_jobs: int) -> Job:
    found = _requested(connection, job.request_id, job.fingerprint)
    if found is not None:
        return found
    forget_old_jobs(connection, keep_jobs)
    job_id = insert_job(connection, job.kind, job.request_id, job.fingerprint, plan_to_json(job.plan))
    return _append_job(connection, job_id)


def _requested(connection: sa.Connection, request_id: str, fingerprint: str) -> Job | None:
    row = requested_row(connection, request_id, fingerprint)
    return None if row is None else _job(row)


def _claim(connection: sa.Connection, owner: str, lease_s: float) -> Claim | None:
    now = now_micros(connection)
    row = due_row(connection, JobKind.TUNING, now)
    if row is None:
        return None
    message = f"taken over from {row.owner}, which was heard of no more" if row.state == JobState.RUNNING else ""
    lease = take_row(connection, row, Stage.FETCH, owner, now, lease_s, message)
    job = _append_job(connection, row.job_id)
    queued_s = (now if row.start_time is None else row.start_time) - row.create_time
    return Claim(
        lease=lease,
        job=job,
        checkpoint=_checkpoint(connection, row.number),
        num_claims=row.num_claims + 1,
        is_committed=bool(row.committed),
        queued_s=queued_s / 1e6,
    )


def _checkpoint(connection: sa.Connection, number: int) -> Checkpoint | None:
    row = connection.execute(sa.select(checkpoints).where(checkpoints.c.job == number)).first()
    if row is None:
        return None
    if hashlib.sha256(row.data).hexdigest() != row.sha256:
        raise DataLoss("a checkpoint in the job database is damaged", metadata={"expected": row.sha256})
    return Checkpoint(row.step, bytes(row.data))


def _record(connection: sa.Connection, row: Any, reports: Sequence[Report]) -> None:
    for report in reports:
        if isinstance(report, Stage):
            connection.execute(sa.update(jobs).where(jobs.c.number == row.number).values(stage=report))
            _append_job(connection, row.job_id)
        else:
            _append(connection, row, report)


def _end(connection: sa.Connection, row: Any, state: JobState, result: str | None, message: str) -> Job:
    update_row(connection, row, state=state, result=result, message=message, end_time=now_micros(connection))
    connection.execute(sa.delete(checkpoints).where(checkpoints.c.job == row.number))
    return _append_job(connection, row.job_id)


def _append_job(connection: sa.Connection, job_id: str) -> Job:
    """Append an event that shows the job as it is now, and return it."""
    row = _row(connection, job_id)
    job = _job(row)
    _append(connection, row, job)
    return job


def _append(connection: sa.Connection, row: Any, event: Progress | Preview | Job) -> None:
    this = jobs.c.number == row.number
    sequence = connection.execute(
        sa.update(jobs).where(this).values(last_event=jobs.c.last_event + 1).returning(jobs.c.last_event)
    ).scalar_one()
    values = {"job": row.number, "sequence": sequence, "state": row.state, "event": event_to_json(event)}
    connection.execute(sa.insert(events).values(values))


def _row(connection: sa.Connection, job_id: str, *, lock: bool = False) -> Any:
    query = sa.select(jobs).where(jobs.c.job_id == job_id, jobs.c.kind == JobKind.TUNING)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NoSuchJob(f"tuningJobs/{job_id}")
    return row


def _result_to_json(result: TuningResult, promotion: str) -> str:
    adapter = [result.adapter.name, result.adapter.digest]
    return json.dumps({"adapter": adapter, "metrics": dict(result.metrics), "promotion": promotion}, sort_keys=True)


def _job(row: Any) -> Job:
    result = json.loads(row.result) if row.result else {}
    return Job(
        job_id=row.job_id,
        kind=JobKind(row.kind),
        state=JobState(row.state),
        stage=Stage(row.stage),
        plan=plan_from_json(row.plan),
        adapter=ModelRef(*result["adapter"]) if result else None,
        metrics=result.get("metrics", {}),
        message=row.message,
        promotion=result.get("promotion", ""),
        create_time=to_time(row.create_time),
        end_time=None if row.end_time is None else to_time(row.end_time),
    )
