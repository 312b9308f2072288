"""Exports in the job queue's tables: the rows of kind ``export``, which have neither events nor checkpoints."""

import json
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from vplab.training.backends._job_rows import (
    due_row,
    forget_old_jobs,
    insert_job,
    leased_row,
    now_micros,
    put_back_row,
    requested_row,
    take_row,
    to_time,
    update_row,
)
from vplab.training.backends.sql_jobs import SqlJobs
from vplab.training.backends.sql_schema import jobs
from vplab.training.errors import NoSuchJob
from vplab.training.values import (
    COLLECTIONS,
    ExportClaim,
    ExportDraft,
    ExportJob,
    ExportPlan,
    JobKind,
    JobState,
    Lease,
    ModelRef,
    Stage,
)


class SqlExports:
    """Implements ExportStore."""

    def __init__(self, queue: SqlJobs) -> None:
        """queue: its database is used, and opened and closed by it."""
        self._queue = queue

    async def find_request(self, request_id: str, fingerprint: str) -> ExportJob | None:
        """Look for a request's export."""
        return await self._queue.read(lambda connection: _requested(connection, request_id, fingerprint))

    async def create(self, draft: ExportDraft, plan: ExportPlan) -> ExportJob:
        """Store an export."""

        def store(connection: sa.Connection) -> ExportJob:
            found = _requested(connection, draft.request_id, draft.fingerprint)
            if found is not None:
                return found
            forget_old_jobs(connection, self._queue.keep_jobs)
            text = json.dumps(asdict(plan), sort_keys=True)
            return _job(
                _row(connection, insert_job(connection, JobKind.EXPORT, draft.request_id, draft.fingerprint, text))
            )

        return await self._queue.write(store)

    async def get(self, job_id: str) -> ExportJob:
        """Return an export."""
        return await self._queue.read(lambda connection: _job(_row(connection, job_id)))

    async def claim(self, owner: str, lease_s: float) -> ExportClaim | None:
        """Take the next export under a new fencing token."""
        return await self._queue.write(lambda connection: _claim(connection, owner, lease_s))

    async def renew(self, lease: Lease, lease_s: float) -> None:
        """Move the end of a lease."""
        await self._queue.renew(lease, lease_s)

    async def put_back(self, lease: Lease, delay_s: float, message: str) -> None:
        """Queue an export again; waiting for somebody else is not held against it."""
        await self._queue.write(lambda connection: put_back_row(connection, lease, delay_s, message, counts=False))

    async def finish(self, lease: Lease, state: JobState, bundle: ModelRef | None, message: str) -> ExportJob:
        """End an export that is still this replica's."""

        def end(connection: sa.Connection) -> ExportJob:
            row = leased_row(connection, lease)
            result = None if bundle is None else json.dumps({"bundle": asdict(bundle)})
            values = {"state": state, "result": result, "message": message, "end_time": now_micros(connection)}
            update_row(connection, row, **values)
            return _job(_row(connection, lease.job_id))

        return await self._queue.write(end)


def _requested(connection: sa.Connection, request_id: str, fingerprint: str) -> ExportJob | None:
    row = requested_row(connection, request_id, fingerprint)
    return None if row is None else _job(row)


def _claim(connection: sa.Connection, owner: str, lease_s: float) -> ExportClaim | None:
    now = now_micros(connection)
    row = due_row(connection, JobKind.EXPORT, now)
    if row is None:
        return None
    lease = take_row(connection, row, Stage.EXPORT, owner, now, lease_s, message="")
    return ExportClaim(lease, _job(_row(connection, row.job_id)), row.num_claims + 1)


def _row(connection: sa.Connection, job_id: str) -> Any:
    query = sa.select(jobs).where(jobs.c.job_id == job_id, jobs.c.kind == JobKind.EXPORT)
    row = connection.execute(query).first()
    if row is None:
        raise NoSuchJob(f"{COLLECTIONS[JobKind.EXPORT]}/{job_id}")
    return row


def _job(row: Any) -> ExportJob:
    said = json.loads(row.plan)
    models = {name: ModelRef(**value) for name, value in said.items() if isinstance(value, dict)}
    bundle = json.loads(row.result)["bundle"] if row.result else None
    return ExportJob(
        job_id=row.job_id,
        state=JobState(row.state),
        plan=ExportPlan(said["bundle_id"], adapter=models.pop("adapter", None), **models),
        bundle=None if bundle is None else ModelRef(**bundle),
        message=row.message,
        create_time=to_time(row.create_time),
        end_time=None if row.end_time is None else to_time(row.end_time),
    )
