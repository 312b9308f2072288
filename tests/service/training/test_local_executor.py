"""The worker process: warm between jobs, killed where it is not wanted, replaced where it died. Without torch."""

import asyncio
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from fakes.fake_worker import NUM_STEPS, SETTINGS
from fakes.training_parts import DATASET, SEGMENTER
from vplab.errors import FailedPrecondition, Internal
from vplab.training.backends import local_executor
from vplab.training.backends.local_executor import LocalExecutor
from vplab.training.errors import LeaseLost, WorkerDied
from vplab.training.values import (
    Checkpoint,
    Claim,
    Job,
    JobKind,
    JobState,
    Lease,
    Preview,
    Progress,
    Stage,
    TuningMethod,
    TuningOptions,
    TuningPlan,
)


class Reports:
    """Keeps what is told; ``lost`` makes the lease go."""

    def __init__(self) -> None:
        self.told: list[Stage | Progress | Preview | Checkpoint | str] = []
        self.lost = False
        self.trained = asyncio.Event()

    async def report(self, reports: Sequence[Stage | Progress | Preview]) -> None:
        self._check()
        self.told += reports

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        self._check()
        self.told.append(checkpoint)
        if checkpoint.step == NUM_STEPS:
            self.trained.set()

    async def commit(self) -> None:
        self._check()
        self.told.append("commit")

    def _check(self) -> None:
        if self.lost:
            raise LeaseLost("1")


def claim(what: str, checkpoint: Checkpoint | None = None) -> Claim:
    plan = TuningPlan(what, DATASET, SEGMENTER, None, TuningMethod.E_PEFT, TuningOptions())
    now = datetime(2026, 11, 23, tzinfo=UTC)
    job = Job("1", JobKind.TUNING, JobState.RUNNING, Stage.FETCH, plan, None, {}, "", "", now, None)
    return Claim(Lease("1", 1, "me"), job, checkpoint, 1, False, 0.0)


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    (tmp_path / "graphs").mkdir()
    return tmp_path / "graphs"


def exporters(graphs: Path) -> set[int]:
    """Return the processes that exported."""
    return {int(path.stem) for path in graphs.iterdir() if path.stem.isdigit()}


@pytest.fixture
async def executor(graphs: Path) -> AsyncIterator[LocalExecutor]:
    made = LocalExecutor([dataclasses.replace(SETTINGS, graph_dir=graphs)], silence_s=60.0)
    yield made
    await made.close()
    assert made.pids == []


async def test_a_job_is_told_in_order_and_the_process_stays_warm(executor: LocalExecutor) -> None:
    reports = Reports()
    result = await executor.run(claim("fine"), reports)
    assert result.adapter.name == "artifacts/fine/versions/1"
    assert reports.told[0] == Stage.TRAIN
    assert [r.step for r in reports.told if isinstance(r, Progress)] == list(range(1, NUM_STEPS + 1))
    assert [r.step for r in reports.told if isinstance(r, Checkpoint)] == list(range(1, NUM_STEPS + 1))
    assert reports.told[-1] == "commit"
    again = await executor.run(claim("fine", Checkpoint(3, b"")), reports)
    assert again.metrics["pid"] == result.metrics["pid"] == executor.pids[0] != os.getpid()
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + 3  # whoever runs the tests may have given them one
    assert (again.metrics["num_jobs"], again.metrics["niceness"]) == (2, min(niceness, 19))
    assert again.metrics["num_threads"] == SETTINGS.num_threads
    assert again.metrics["num_blas_threads"] == 1


async def test_a_failed_job_is_told_in_our_words_and_leaves_the_process(executor: LocalExecutor) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await executor.run(claim("refuses"), Reports())
    assert (refused.value.reason, refused.value.metadata) == ("MODEL_MISMATCH", {"expected": "a"})
    (pid,) = executor.pids
    with pytest.raises(Internal):
        await executor.run(claim("breaks"), Reports())
    await executor.run(claim("fine"), Reports())
    assert executor.pids == [pid]


async def test_a_worker_that_dies_is_told_and_replaced(executor: LocalExecutor) -> None:
    reports = Reports()
    with pytest.raises(WorkerDied) as died:
        await executor.run(claim("dies"), reports)
    assert "-9" in died.value.message
    assert reports.trained.is_set(), "what it said before it died counts"
    assert (await executor.run(claim("fine"), Reports())).metrics["num_jobs"] == 1


async def test_a_worker_that_hangs_is_killed() -> None:
    executor = LocalExecutor([dataclasses.replace(SETTINGS, niceness=0)], silence_s=3.0)
    with pytest.raises(WorkerDied) as died:
        await executor.run(claim("hangs"), Reports())
    assert "said nothing" in died.value.message
    assert executor.pids == []
    await executor.close()


async def test_a_job_that_is_cancelled_ends_its_process(executor: LocalExecutor) -> None:
    reports = Reports()
    running = asyncio.create_task(executor.run(claim("hangs"), reports))
    async with asyncio.timeout(60):
        await reports.trained.wait()
    (pid,) = executor.pids
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert executor.pids == []
    assert not psutil.pid_exists(pid)


async def test_a_job_whose_lease_is_lost_ends_its_process_and_is_not_published(executor: LocalExecutor) -> None:
    reports = Reports()
    reports.lost = True
    with pytest.raises(LeaseLost):
        await executor.run(claim("fine"), reports)
    assert executor.pids == []
    assert "commit" not in reports.told


async def test_a_worker_can_be_warm_before_its_first_job(executor: LocalExecutor) -> None:
    await executor.warm_up("there")
    (pid,) = executor.pids
    await executor.warm_up("not there")
    assert executor.pids == [pid]
    assert (await executor.run(claim("fine"), Reports())).metrics["pid"] == pid


async def test_a_warm_up_tries_again_while_the_registry_starts(
    executor: LocalExecutor, graphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (graphs / "earlier.onnx").touch()
    monkeypatch.setattr(local_executor, "_WARM_UP_PAUSE_S", 0.01)
    await executor.warm_up("there later")
    assert (await executor.run(claim("fine"), Reports())).metrics["num_warm_ups"] == 4
    assert exporters(graphs) == set(executor.pids)


async def test_a_job_does_not_wait_for_the_export_of_a_warm_up(executor: LocalExecutor, graphs: Path) -> None:
    (graphs / "earlier.onnx").touch()
    warming = asyncio.create_task(executor.warm_up("there"))
    while not executor.pids:
        await asyncio.sleep(0.001)
    assert (await executor.run(claim("fine"), Reports())).metrics["num_warm_ups"] == 1
    await warming
    assert exporters(graphs) == set(executor.pids)


async def test_the_first_graph_is_exported_beside_the_worker(executor: LocalExecutor, graphs: Path) -> None:
    await executor.warm_up("there")
    (exporter,) = exporters(graphs)
    assert exporter not in executor.pids
    assert not psutil.pid_exists(exporter)
    assert (await executor.run(claim("fine"), Reports())).metrics["num_warm_ups"] == 1


async def test_a_worker_with_nothing_to_do_leaves() -> None:
    executor = LocalExecutor([SETTINGS], silence_s=60.0, idle_s=0.2)
    await executor.run(claim("fine"), Reports())
    async with asyncio.timeout(120):
        while executor.pids:
            await asyncio.sleep(0.02)
    await executor.run(claim("fine"), Reports())
    await executor.close()


async def test_jobs_of_several_workers_run_side_by_side() -> None:
    executor = LocalExecutor([SETTINGS, SETTINGS], silence_s=60.0)
    results = await asyncio.gather(*(executor.run(claim("fine"), Reports()) for _ in range(6)))
    assert executor.num_slots == 2
    assert len({result.metrics["pid"] for result in results}) == 2
    await executor.close()


def test_a_worker_does_not_outlive_its_service() -> None:
    """The service is killed without a chance to end its worker."""
    source = (
        "import asyncio, os, signal\n"
        "from test_local_executor import SETTINGS, LocalExecutor, Reports, claim\n"
        "async def main():\n"
        "    executor = LocalExecutor([SETTINGS], silence_s=60.0)\n"
        "    reports = Reports()\n"
        "    task = asyncio.create_task(executor.run(claim('hangs'), reports))\n"
        "    await reports.trained.wait()\n"
        "    print(executor.pids[0], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[2])])
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    worker = int(result.stdout.splitlines()[-1])
    for _ in range(600):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("the worker is still there")
