"""The queue on both databases: leases, fencing, events without gaps, replicas that share it."""

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from fakes.postgres_server import PostgresServer
from fakes.training_parts import DATASET, NUM_STEPS, SEGMENTER, FakeExecutor, FakeModels, fake_result
from vplab.errors import AlreadyExists, FailedPrecondition, Unavailable
from vplab.runtime.database import open_engine
from vplab.training.backends.sql_jobs import SqlJobs
from vplab.training.backends.sql_migrations import SCRIPTS, current_revision, migrate
from vplab.training.backends.sql_schema import HEAD_REVISION, VERSION_TABLE, metadata
from vplab.training.core.trainer import Trainer
from vplab.training.core.wake_up import WakeUp
from vplab.training.errors import LeaseLost, WorkerDied
from vplab.training.values import (
    TERMINAL_STATES,
    Checkpoint,
    Job,
    JobKind,
    JobState,
    Lease,
    NewJob,
    Preview,
    Progress,
    Stage,
    TuningMethod,
    TuningOptions,
    TuningPlan,
)

PLAN = TuningPlan(
    "scratch-adapter",
    DATASET,
    SEGMENTER,
    None,
    TuningMethod.E_PEFT,
    TuningOptions(80, 1e-3, 8, 50, 7),
    "production",
    True,
)


def new_job(**changes: object) -> NewJob:
    return NewJob(JobKind.TUNING, str(uuid.uuid4()), "f" * 64, dataclasses.replace(PLAN, **changes))  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.url(server.create_database())


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SqlJobs]:
    jobs = SqlJobs(database_url)
    await jobs.open()
    yield jobs
    await jobs.close()


def test_head_in_the_code_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD_REVISION


def test_migrations_lead_to_the_tables_of_the_code(database_url: str) -> None:
    engine = open_engine(database_url)
    assert current_revision(engine) is None
    migrate(engine)
    assert current_revision(engine) == HEAD_REVISION
    with engine.connect() as connection:
        options = {"compare_type": True, "version_table": VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


async def test_replicas_that_start_together_migrate_once_and_a_newer_schema_is_refused(database_url: str) -> None:
    replicas = [SqlJobs(database_url) for _ in range(4)]
    await asyncio.gather(*(replica.open() for replica in replicas))
    for replica in replicas:
        await replica.close()
    engine = open_engine(database_url)
    with engine.execution_options(vplab_writes=True).begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    late = SqlJobs(database_url)
    with pytest.raises(FailedPrecondition):
        await late.open()
    await late.close()


async def test_a_job_comes_back_as_it_was_stored(store: SqlJobs) -> None:
    job = await store.create(new_job(prompt_set=DATASET))
    assert job.plan == dataclasses.replace(PLAN, prompt_set=DATASET)
    assert (job.state, job.stage, job.adapter, job.end_time) == (JobState.QUEUED, Stage.QUEUE, None, None)
    assert await store.get(job.job_id) == job


async def test_a_request_makes_one_job(store: SqlJobs) -> None:
    job = new_job()
    jobs = await asyncio.gather(*(store.create(job) for _ in range(10)))
    assert len({made.job_id for made in jobs}) == 1
    assert await store.find_request(job.request_id, job.fingerprint) == jobs[0]
    for ask in (store.create(dataclasses.replace(job, fingerprint="0" * 64)), store.find_request(job.request_id, "0")):
        with pytest.raises(AlreadyExists):
            await ask


async def test_jobs_are_taken_once_and_in_order(store: SqlJobs, database_url: str) -> None:
    names = [(await store.create(new_job())).job_id for _ in range(12)]
    other = SqlJobs(database_url)
    first = await store.claim("trainer", 30)
    assert first is not None
    assert first.lease.job_id == names[0]
    claims = await asyncio.gather(*((store, other)[i % 2].claim(f"trainer-{i}", 30) for i in range(14)))
    taken = [claim.lease.job_id for claim in claims if claim is not None]
    assert sorted(taken) == sorted(names[1:])
    await other.close()


async def test_an_expired_lease_hands_the_job_on_and_fences_the_old_trainer_off(store: SqlJobs) -> None:
    job_id = (await store.create(new_job())).job_id
    first = await store.claim("first", 0.05)
    assert first is not None
    await store.save_checkpoint(first.lease, Checkpoint(40, b"forty"))
    await asyncio.sleep(0.1)
    second = await store.claim("second", 30)
    assert second is not None
    assert second.checkpoint == Checkpoint(40, b"forty")
    assert second.lease.token == first.lease.token + 1
    assert second.job.message == "taken over from first, which was heard of no more"
    for refused in (
        store.renew(first.lease, 30),
        store.record(first.lease, [Progress(41, 80, 0.1)]),
        store.save_checkpoint(first.lease, Checkpoint(60, b"sixty")),
        store.commit(first.lease),
        store.put_back(first.lease, 0, "", counts=True),
        store.finish(first.lease, JobState.FAILED, message="late"),
    ):
        with pytest.raises(LeaseLost):
            await refused
    ended = await store.finish(second.lease, JobState.SUCCEEDED, result=fake_result(PLAN), promotion="moved")
    assert (ended.state, ended.promotion) == (JobState.SUCCEEDED, "moved")
    assert await store.claim("third", 30) is None
    assert await store.get(job_id) == ended


async def test_a_renewed_lease_is_not_handed_on(store: SqlJobs) -> None:
    await store.create(new_job())
    claim = await store.claim("first", 0.3)
    assert claim is not None
    for _ in range(4):
        await asyncio.sleep(0.1)
        await store.renew(claim.lease, 0.3)
        assert await store.claim("second", 30) is None


async def test_a_job_put_back_waits_for_its_delay(store: SqlJobs) -> None:
    job_id = (await store.create(new_job())).job_id
    claim = await store.claim("first", 30)
    assert claim is not None
    await store.put_back(claim.lease, 0.2, "waits: no registry", counts=False)
    assert await store.claim("first", 30) is None
    job = await store.get(job_id)
    assert (job.state, job.message) == (JobState.QUEUED, "waits: no registry")
    await asyncio.sleep(0.25)
    again = await store.claim("first", 30)
    assert again is not None
    assert again.num_claims == 1


async def test_events_have_no_gaps_and_come_back_as_they_were(store: SqlJobs) -> None:
    job_id = (await store.create(new_job())).job_id
    claim = await store.claim("first", 30)
    assert claim is not None
    told = [Progress(1, 80, 0.5), Preview("a.png", 2, (3, 4), (5, 7)), Progress(2, 80, 0.4, 0.75)]
    await store.record(claim.lease, [Stage.TRAIN, *told])
    await store.finish(claim.lease, JobState.FAILED, message="why")
    events = await store.events(job_id, 0, 100)
    assert [event.sequence for event in events] == list(range(1, 8))
    assert [event.event for event in events[3:6]] == told
    jobs = [event.event for event in events if isinstance(event.event, Job)]
    assert [(job.state, job.stage) for job in jobs] == [
        (JobState.QUEUED, Stage.QUEUE),
        (JobState.RUNNING, Stage.FETCH),
        (JobState.RUNNING, Stage.TRAIN),
        (JobState.FAILED, Stage.TRAIN),
    ]
    assert events[-1].event == await store.get(job_id)
    assert await store.events(job_id, 3, 2) == events[3:5]


async def test_a_committed_job_cannot_be_cancelled_and_a_cancelled_one_not_committed(store: SqlJobs) -> None:
    first, second = [(await store.create(new_job())).job_id for _ in range(2)]
    claims = [await store.claim("trainer", 30) for _ in range(2)]
    assert claims[0] is not None
    assert claims[1] is not None
    await store.commit(claims[0].lease)
    assert (await store.cancel(first)).state == JobState.RUNNING
    assert (await store.cancel(second)).state == JobState.CANCELLED
    with pytest.raises(LeaseLost):
        await store.commit(claims[1].lease)


def trainer(store: SqlJobs, executor: FakeExecutor, **changes: object) -> Trainer:
    wake_up = WakeUp()
    values: dict[str, object] = {"owner": "trainer", "lease_s": 5.0, "poll_s": 0.02, "max_claims": 3}
    return Trainer(store, FakeModels(), executor, wake_up, WakeUp(), **(values | changes))  # type: ignore[arg-type]


async def until_ended(store: SqlJobs, job_ids: list[str]) -> list[Job]:
    async with asyncio.timeout(120):
        while True:
            jobs = [await store.get(job_id) for job_id in job_ids]
            if all(job.state in TERMINAL_STATES for job in jobs):
                return jobs
            await asyncio.sleep(0.02)


async def test_replicas_share_a_queue_and_every_job_ends_once(store: SqlJobs, database_url: str) -> None:
    async def briefly(step: int) -> None:
        await asyncio.sleep(0.002)

    executors = [FakeExecutor(before_step=briefly) for _ in range(3)]
    async with AsyncExitStack() as stack:
        tasks = []
        for number, executor in enumerate(executors):
            replica = SqlJobs(database_url)
            stack.push_async_callback(replica.close)
            tasks.append(asyncio.create_task(trainer(replica, executor, owner=f"replica-{number}").run()))
        job_ids = [(await store.create(new_job())).job_id for _ in range(9)]
        jobs = await until_ended(store, job_ids)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    assert sum(executor.num_committed for executor in executors) == 9
    for job_id in job_ids:
        terminal = [e for e in await store.events(job_id, 0, 1000) if e.state in TERMINAL_STATES]
        assert len(terminal) == 1


async def test_a_trainer_that_stalls_past_its_lease_does_not_finish_what_another_took_over(
    store: SqlJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first hangs with its lease renewals, as a machine that was suspended does, and comes back too late."""
    stalled, go_on = asyncio.Event(), asyncio.Event()

    async def stall(step: int) -> None:
        if step == 4:
            stalled.set()
            await go_on.wait()

    first, second = FakeExecutor(before_step=stall), FakeExecutor()
    job_id = (await store.create(new_job())).job_id
    suspended = trainer(store, first, owner="suspended", lease_s=0.5)

    renew = SqlJobs.renew

    async def never(self: SqlJobs, lease: Lease, lease_s: float) -> None:
        if lease.owner == "suspended":
            await asyncio.Event().wait()
        await renew(self, lease, lease_s)

    monkeypatch.setattr(SqlJobs, "renew", never)
    tasks = [asyncio.create_task(suspended.run())]
    async with asyncio.timeout(120):
        await stalled.wait()
    await asyncio.sleep(0.6)
    tasks.append(asyncio.create_task(trainer(store, second, owner="other").run()))
    await until_ended(store, [job_id])
    go_on.set()
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (first.num_committed, second.num_committed) == (0, 1)
    assert second.starts == [2]
    events = await store.events(job_id, 0, 1000)
    assert [event.state for event in events].count(JobState.SUCCEEDED) == 1
    assert events[-1].state == JobState.SUCCEEDED


async def test_a_job_whose_worker_dies_goes_on_from_its_checkpoint(store: SqlJobs) -> None:
    deaths = iter([3, 4, 6])
    next_death = [next(deaths)]

    async def die(step: int) -> None:
        if step == next_death[0]:
            next_death[0] = next(deaths, 0)
            raise WorkerDied("the worker ended with signal 9")

    executor = FakeExecutor(before_step=die)
    job_id = (await store.create(new_job())).job_id
    task = asyncio.create_task(trainer(store, executor).run())
    (job,) = await until_ended(store, [job_id])
    task.cancel()
    assert job.state == JobState.SUCCEEDED
    assert executor.starts == [0, 2, 2, 4]
    steps = [e.event.step for e in await store.events(job_id, 0, 1000) if isinstance(e.event, Progress)]
    assert steps[-1] == NUM_STEPS


async def test_a_job_that_always_kills_its_worker_fails_in_the_end(store: SqlJobs) -> None:
    async def die(step: int) -> None:
        raise WorkerDied("out of memory")

    executor = FakeExecutor(before_step=die)
    job_id = (await store.create(new_job())).job_id
    task = asyncio.create_task(trainer(store, executor, max_claims=3).run())
    (job,) = await until_ended(store, [job_id])
    task.cancel()
    assert (job.state, len(executor.starts)) == (JobState.FAILED, 3)
    assert job.message.startswith("given up")


async def test_a_stopped_trainer_hands_its_job_on_at_once(store: SqlJobs) -> None:
    reached = asyncio.Event()

    async def wait(step: int) -> None:
        if step == 3:
            reached.set()
            await asyncio.Event().wait()

    job_id = (await store.create(new_job())).job_id
    first, second = FakeExecutor(before_step=wait), FakeExecutor()
    task = asyncio.create_task(trainer(store, first, lease_s=600.0).run())
    async with asyncio.timeout(120):
        await reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    other = asyncio.create_task(trainer(store, second).run())
    (job,) = await until_ended(store, [job_id])
    other.cancel()
    assert (job.state, first.num_cancelled, second.starts) == (JobState.SUCCEEDED, 1, [2])


async def test_a_database_that_is_away_is_waited_for(store: SqlJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = (await store.create(new_job())).job_id
    executor, failures = FakeExecutor(), iter(range(2))
    finish = store.finish

    async def unreliable(*args: object, **options: object) -> Job:
        if next(failures, None) is not None:
            raise Unavailable("the database is away")
        return await finish(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "finish", unreliable)
    task = asyncio.create_task(trainer(store, executor).run())
    (job,) = await until_ended(store, [job_id])
    task.cancel()
    assert (job.state, executor.num_committed) == (JobState.SUCCEEDED, 1)
