"""Rows of the job queue's table, whatever kind the jobs are of: made, found, taken under a lease and put back.

Leases are measured by the database's clock, so replicas whose clocks differ agree on who may work on a job.
"""

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from vplab.errors import AlreadyExists
from vplab.training.backends.sql_schema import jobs
from vplab.training.errors import LeaseLost
from vplab.training.values import TERMINAL_STATES, JobKind, JobState, Lease, Stage

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def insert_job(connection: sa.Connection, kind: JobKind, request_id: str, fingerprint: str, plan: str) -> str:
    """Queue a job of any kind and return its id."""
    now, job_id = now_micros(connection), uuid.uuid4().hex
    values = {
        "job_id": job_id,
        "kind": kind,
        "request_id": request_id,
        "fingerprint": fingerprint,
        "plan": plan,
        "state": JobState.QUEUED,
        "stage": Stage.QUEUE,
        "committed": False,
        "message": "",
        "create_time": now,
        "owner": "",
        "token": 0,
        "due_time": now,
        "num_claims": 0,
        "last_event": 0,
    }
    connection.execute(sa.insert(jobs).values(values))
    return job_id


def requested_row(connection: sa.Connection, request_id: str, fingerprint: str) -> Any:
    """Return the row of the job of any kind that has this request_id, or None. Raises AlreadyExists."""
    row = connection.execute(sa.select(jobs).where(jobs.c.request_id == request_id)).first()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        message = "the request_id was used for a different request"
        raise AlreadyExists(message, reason="REQUEST_ID_REUSED", metadata={"request_id": request_id})
    return row


def forget_old_jobs(connection: sa.Connection, keep_jobs: int) -> None:
    """Delete ended jobs of any kind, with all that belongs to them, but for the newest ``keep_jobs``."""
    ended = sa.select(jobs.c.number).where(jobs.c.state.in_(TERMINAL_STATES)).order_by(jobs.c.number.desc())
    oldest_kept = connection.execute(ended.offset(keep_jobs - 1).limit(1)).scalar()
    if oldest_kept is not None:
        connection.execute(sa.delete(jobs).where(jobs.c.state.in_(TERMINAL_STATES), jobs.c.number < oldest_kept))


def due_row(connection: sa.Connection, kind: JobKind, now: int) -> Any:
    """Return the oldest job that waits, or whose lease has run out, locked; None where there is none."""
    waits = jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING)) & (jobs.c.due_time <= now) & (jobs.c.kind == kind)
    # A row that another replica is just taking is passed over, not waited for.
    query = sa.select(jobs).where(waits).order_by(jobs.c.number).limit(1).with_for_update(skip_locked=True)
    return connection.execute(query).first()


def take_row(
    connection: sa.Connection, row: Any, stage: Stage, owner: str, now: int, lease_s: float, message: str
) -> Lease:
    """Give a job to an owner under a new fencing token."""
    update_row(
        connection,
        row,
        state=JobState.RUNNING,
        stage=stage,
        owner=owner,
        token=row.token + 1,
        due_time=now + to_micros(lease_s),
        num_claims=row.num_claims + 1,
        start_time=now if row.start_time is None else row.start_time,
        message=message,
    )
    return Lease(row.job_id, row.token + 1, owner)


def leased_row(connection: sa.Connection, lease: Lease) -> Any:
    """Return the job's row, locked, if the lease is its current one. Raises LeaseLost."""
    row = connection.execute(sa.select(jobs).where(jobs.c.job_id == lease.job_id).with_for_update()).first()
    if row is None or row.token != lease.token or row.state != JobState.RUNNING:
        raise LeaseLost(lease.job_id)
    return row


def renew_row(connection: sa.Connection, lease: Lease, lease_s: float) -> None:
    """Move the end of a lease. Raises LeaseLost."""
    row = leased_row(connection, lease)
    update_row(connection, row, due_time=now_micros(connection) + to_micros(lease_s))


def put_back_row(connection: sa.Connection, lease: Lease, delay_s: float, message: str, *, counts: bool) -> None:
    """Queue a job again. counts: whether the try is held against it. Raises LeaseLost."""
    row = leased_row(connection, lease)
    due_time = now_micros(connection) + to_micros(delay_s)
    num_claims = row.num_claims if counts else max(0, row.num_claims - 1)
    values = {"state": JobState.QUEUED, "stage": Stage.QUEUE, "due_time": due_time, "message": message}
    update_row(connection, row, **values, num_claims=num_claims)


def update_row(connection: sa.Connection, row: Any, **values: Any) -> None:
    """Change some columns of a job."""
    connection.execute(sa.update(jobs).where(jobs.c.number == row.number).values(values))


def now_micros(connection: sa.Connection) -> int:
    """Return the database's time; SQLite's is this machine's."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1000
    query = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
    return int(connection.execute(query).scalar_one())


def to_micros(seconds: float) -> int:
    """Return a span as the table has it."""
    return round(seconds * 1e6)


def to_time(micros: int) -> datetime:
    """Return a moment of the table."""
    return _EPOCH + timedelta(microseconds=micros)
