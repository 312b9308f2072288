"""Precompute jobs in a SQL database, SQLite unless told otherwise.

The tables are this service's own and disposable: they hold work in progress and the last ended jobs, so there are no
migrations; a database of another layout is refused at the start.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from vplab.embedding.values import (
    TERMINAL_STATES,
    ImageFailure,
    Job,
    JobRequest,
    JobState,
    ModelRef,
    Precision,
)
from vplab.errors import AlreadyExists, NotFound, Unavailable
from vplab.runtime.database import open_engine

Value = TypeVar("Value")

_log = structlog.get_logger(__name__)

_MAX_FAILURES = 100
_MAX_ENDED_JOBS = 1000
_PENDING, _DONE, _FAILED = 0, 1, 2

_metadata = sa.MetaData()
_jobs = sa.Table(
    "precompute_jobs",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.String(32), nullable=False, unique=True),
    sa.Column("request_id", sa.String(36), unique=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("precision", sa.String(16), nullable=False),
    sa.Column("encoders", sa.Text, nullable=False),
    sa.Column("num_images", sa.Integer, nullable=False),
    sa.Column("num_done", sa.Integer, nullable=False, default=0),
    sa.Column("num_failed", sa.Integer, nullable=False, default=0),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("end_time", sa.Float),
    sqlite_autoincrement=True,
)
_images = sa.Table(
    "precompute_images",
    _metadata,
    sa.Column("job", sa.Integer, sa.ForeignKey("precompute_jobs.sequence", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False, default=_PENDING),
    sa.Column("kind", sa.String(64)),
    sa.Column("reason", sa.String(64)),
    sa.Column("message", sa.Text),
    sa.UniqueConstraint("job", "sha256"),
)


class SqlJobs:
    """Implements JobStore on one thread, so that SQLite never meets two writers of this process."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url, connections=1).execution_options(vplab_writes=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="precompute-jobs")

    async def open(self) -> None:
        """Make the tables where there are none."""
        await self._in_thread(lambda: _metadata.create_all(self._engine))

    async def close(self) -> None:
        """Finish what is under way and release the database."""
        await self._in_thread(self._engine.dispose)
        self._thread.shutdown(wait=True)

    async def create(self, request: JobRequest) -> Job:
        """Store a job with its images."""
        return await self._transaction(lambda connection: _create(connection, request))

    async def get(self, job_id: str) -> Job:
        """Return a job."""
        return await self._transaction(lambda connection: _job(connection, _row(connection, job_id)))

    async def list_page(self, page_size: int, before: int | None) -> tuple[Sequence[Job], int | None]:
        """Return a page; where the next one starts is the sequence number of this one's last job."""

        def read(connection: sa.Connection) -> tuple[Sequence[Job], int | None]:
            query = sa.select(_jobs).order_by(_jobs.c.sequence.desc()).limit(page_size + 1)
            if before is not None:
                query = query.where(_jobs.c.sequence < before)
            rows = connection.execute(query).all()
            page = rows[:page_size]
            return [_job(connection, row) for row in page], page[-1].sequence if len(rows) > page_size else None

        return await self._transaction(read)

    async def next_unfinished(self, under_way: Sequence[str] = ()) -> Job | None:
        """Take the oldest job that has not ended and is not under way; after a restart that is an interrupted one."""

        def take(connection: sa.Connection) -> Job | None:
            unfinished = _jobs.c.state.in_((JobState.QUEUED, JobState.RUNNING))
            query = sa.select(_jobs).where(unfinished, _jobs.c.job_id.not_in(under_way))
            row = connection.execute(query.order_by(_jobs.c.sequence).limit(1)).first()
            if row is None:
                return None
            update = sa.update(_jobs).where(_jobs.c.sequence == row.sequence).values(state=JobState.RUNNING)
            connection.execute(update)
            return _job(connection, _row(connection, row.job_id))

        return await self._transaction(take)

    async def pending_images(self, job_id: str, limit: int) -> Sequence[str]:
        """Return the next images."""

        def read(connection: sa.Connection) -> Sequence[str]:
            row = _row(connection, job_id)
            query = sa.select(_images.c.sha256).where(_images.c.job == row.sequence, _images.c.state == _PENDING)
            return connection.execute(query.order_by(_images.c.position).limit(limit)).scalars().all()

        return await self._transaction(read)

    async def record(self, job_id: str, done: Sequence[str], failed: Sequence[ImageFailure]) -> None:
        """Note outcomes; the counters follow what changed."""
        await self._transaction(lambda connection: _record(connection, job_id, done, failed))

    async def finish(self, job_id: str, state: JobState, message: str = "") -> Job:
        """End a job; its images are no longer needed, but for the failures that are shown."""

        def end(connection: sa.Connection) -> Job:
            row = _row(connection, job_id)
            if row.state not in TERMINAL_STATES:
                values = {"state": state, "message": message, "end_time": time.time()}
                connection.execute(sa.update(_jobs).where(_jobs.c.sequence == row.sequence).values(values))
                kept = _failures_query(row.sequence).with_only_columns(_images.c.position).scalar_subquery()
                connection.execute(
                    sa.delete(_images).where(_images.c.job == row.sequence, _images.c.position.not_in(kept))
                )
            return _job(connection, _row(connection, job_id))

        return await self._transaction(end)

    async def _transaction(self, work: Callable[[sa.Connection], Value]) -> Value:
        def run() -> Value:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except sa.exc.OperationalError as error:  # locked, full, gone: nothing about the request is wrong
                _log.error("job_database_unusable", error=str(error.orig))
                raise Unavailable("The job database cannot be used now") from error

        return await self._in_thread(run)

    async def _in_thread(self, work: Callable[[], Value]) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _create(connection: sa.Connection, request: JobRequest) -> Job:
    if request.request_id is not None:
        row = connection.execute(sa.select(_jobs).where(_jobs.c.request_id == request.request_id)).first()
        if row is not None:
            if row.fingerprint != request.fingerprint:
                raise AlreadyExists(
                    "the request_id was used for a different request",
                    reason="REQUEST_ID_REUSED",
                    metadata={"request_id": request.request_id},
                )
            return _job(connection, row)
    _forget_old_jobs(connection)
    job_id = uuid.uuid4().hex
    values = {
        "job_id": job_id,
        "request_id": request.request_id,
        "fingerprint": request.fingerprint,
        "state": JobState.QUEUED,
        "precision": request.precision,
        "encoders": json.dumps([[encoder.name, encoder.digest] for encoder in request.encoders]),
        "num_images": len(request.images),
        "create_time": time.time(),
    }
    connection.execute(sa.insert(_jobs).values(values))
    row = _row(connection, job_id)
    images = [{"job": row.sequence, "position": i, "sha256": sha256} for i, sha256 in enumerate(request.images)]
    if images:
        connection.execute(sa.insert(_images), images)
    return _job(connection, row)


def _record(connection: sa.Connection, job_id: str, done: Sequence[str], failed: Sequence[ImageFailure]) -> None:
    row = _row(connection, job_id)
    if row.state in TERMINAL_STATES:
        return

    def update(sha256: str, values: dict[str, Any]) -> int:
        this = (_images.c.job == row.sequence, _images.c.sha256 == sha256, _images.c.state == _PENDING)
        return connection.execute(sa.update(_images).where(*this).values(values)).rowcount

    num_done = sum(update(sha256, {"state": _DONE}) for sha256 in done)
    num_failed = sum(
        update(f.image_digest, {"state": _FAILED, "kind": f.kind, "reason": f.reason, "message": f.message})
        for f in failed
    )
    counters = {"num_done": _jobs.c.num_done + num_done, "num_failed": _jobs.c.num_failed + num_failed}
    connection.execute(sa.update(_jobs).where(_jobs.c.sequence == row.sequence).values(counters))


def _forget_old_jobs(connection: sa.Connection) -> None:
    ended = sa.select(_jobs.c.sequence).where(_jobs.c.state.in_(TERMINAL_STATES)).order_by(_jobs.c.sequence.desc())
    oldest_kept = connection.execute(ended.offset(_MAX_ENDED_JOBS - 1).limit(1)).scalar()
    if oldest_kept is not None:
        connection.execute(sa.delete(_jobs).where(_jobs.c.state.in_(TERMINAL_STATES), _jobs.c.sequence < oldest_kept))


def _row(connection: sa.Connection, job_id: str) -> Any:
    row = connection.execute(sa.select(_jobs).where(_jobs.c.job_id == job_id)).first()
    if row is None:
        raise NotFound("There is no such job", metadata={"name": f"precomputeJobs/{job_id}"})
    return row


def _failures_query(sequence: int) -> sa.Select[Any]:
    query = sa.select(_images).where(_images.c.job == sequence, _images.c.state == _FAILED)
    return query.order_by(_images.c.position).limit(_MAX_FAILURES)


def _job(connection: sa.Connection, row: Any) -> Job:
    failures = connection.execute(_failures_query(row.sequence)).all() if row.num_failed else ()
    return Job(
        job_id=row.job_id,
        state=JobState(row.state),
        num_images=row.num_images,
        num_done=row.num_done,
        num_failed=row.num_failed,
        failures=tuple(ImageFailure(f.sha256, f.kind, f.reason, f.message) for f in failures),
        encoders=tuple(ModelRef(name, digest) for name, digest in json.loads(row.encoders)),
        precision=Precision(row.precision),
        message=row.message,
        create_time=datetime.fromtimestamp(row.create_time, UTC),
        end_time=None if row.end_time is None else datetime.fromtimestamp(row.end_time, UTC),
    )
