"""Trainers killed at random moments: every job ends once, with the adapter that an undisturbed job gives."""

import asyncio
import random
import signal
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import pytest

from fakes.service_process import answering, service_process, socket_address
from fakes.small_sam import ENCODER, SEGMENTER, small_site
from fakes.training_site import scratches
from vplab.client import AsyncClient, ClientOptions
from vplab.client.training.values import TuningEvent, TuningJob, TuningOptions, TuningProgress, TuningRequest

SEED = 20261123
NUM_STEPS = 20
REQUEST = TuningRequest(
    "scratches",
    scratches(size_hw=(90, 120)),
    options=TuningOptions(num_steps=NUM_STEPS, seed=3),
    promote_alias="production",
)

Phase = Literal["queue", "fetch", "embed", "first fold", "second fold", "export", "publish", "promote"]
ORDER: tuple[Phase, ...] = ("queue", "fetch", "embed", "first fold", "second fold", "export", "publish", "promote")
# Ten kills, three or four to each job; those of a job come in the order in which it goes through its phases.
PHASES: tuple[Phase, ...] = (*ORDER, "first fold", "embed")
NUM_JOBS = 3


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after the job's first event of a phase, or of a step in it."""

    job: int
    phase: Phase
    step: int
    """Of the whole training; 0 where the phase has none."""
    delay_s: float
    spares_service: bool
    """Whether only the worker process is killed."""


def drawn_moments(draw: random.Random) -> list[Moment]:
    phases = draw.sample(PHASES, len(PHASES))
    moments = []
    for index, phase in enumerate(phases):
        step = {"first fold": draw.randint(1, NUM_STEPS), "second fold": NUM_STEPS + draw.randint(1, 6)}.get(phase, 0)
        # In the queue there is no worker, and without a service nobody would notice that one is gone.
        spares_service = phase != "queue" and draw.random() < 0.3
        moments.append(Moment(index % NUM_JOBS, phase, step, draw.uniform(0, 0.3), spares_service))
    return sorted(moments, key=lambda moment: (moment.job, ORDER.index(moment.phase), moment.step))


def test_the_moments_are_spread_over_all_phases_and_both_kinds_of_process() -> None:
    moments = drawn_moments(random.Random(SEED))
    assert len(moments) == 10
    assert {moment.phase for moment in moments} == set(ORDER)
    assert {moment.spares_service for moment in moments} == {False, True}


@pytest.mark.slow
async def test_jobs_whose_trainers_are_killed_ten_times_end_once_with_the_undisturbed_adapter(tmp_path: Path) -> None:
    async with small_site(tmp_path) as site:
        addresses = {"registry": site.registry_address, "training": socket_address(tmp_path, "training")}
        async with AsyncClient(**addresses, options=ClientOptions()) as client:
            with trainer(tmp_path) as process:
                await answering(client, "training", process)
                undisturbed = await followed(client, (await client.training.create_tuning_job(REQUEST)).name)
                names = [(await client.training.create_tuning_job(REQUEST)).name for _ in range(NUM_JOBS)]
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 40) == 0
            await kill_at(client, tmp_path, names, drawn_moments(random.Random(SEED)))
            with trainer(tmp_path) as process:
                await answering(client, "training", process)
                jobs = [undisturbed, *[await followed(client, name) for name in names]]
            await _check(client, jobs)


async def _check(client: AsyncClient, jobs: Sequence[Sequence[TuningEvent]]) -> None:
    adapters = []
    for events in jobs:
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        ends = [event.event for event in events if isinstance(event.event, TuningJob) and event.event.is_done]
        assert [(end.state, end.message) for end in ends] == [("succeeded", "")]
        assert ends[0].adapter is not None
        adapters.append(ends[0].adapter.name)
    versions = [version async for version in client.registry.list_versions("artifacts/scratches")]
    assert sorted(version.name for version in versions) == sorted(adapters)
    assert len(set(adapters)) == len(jobs)
    await _check_promotions(client, jobs, newest=versions[0].name)
    files = [{file.path: file.sha256 for file in version.manifest.files} for version in versions]
    assert "adapter.safetensors" in files[0]
    assert all(each == files[0] for each in files)
    # Some kills come just before or after a job's time, which is how random moments are; most must have hit.
    told = [e.event.message for events in jobs for e in events if isinstance(e.event, TuningJob)]
    assert sum(message.startswith(("taken over from", "waits: the worker ended")) for message in told) >= 6


async def _check_promotions(client: AsyncClient, jobs: Sequence[Sequence[TuningEvent]], newest: str) -> None:
    """Each job moved the alias once, unless a job that was not in its way meanwhile had moved it further."""
    said = {e[-1].event.name: e[-1].event.promotion for e in jobs if isinstance(e[-1].event, TuningJob)}
    assert all(words.startswith("moved ") or words.endswith("which is newer") for words in said.values()), said
    moves = [change async for change in client.registry.list_alias_changes("artifacts/scratches/aliases/production")]
    movers = sorted(change.reason for change in moves)
    assert movers == sorted(name for name, words in said.items() if words.startswith("moved "))
    assert (await client.registry.get_version("artifacts/scratches/aliases/production")).name == newest


def trainer(folder: Path) -> "AbstractContextManager[subprocess.Popen[bytes]]":
    """Run the training service on what ``small_site`` runs in a folder, with a lease that soon expires."""
    variables = {
        "REGISTRY_ADDRESS": f"unix:{folder}/registry.sock",
        "EMBEDDING_ADDRESS": f"unix:{folder}/embedding.sock",
        "CACHE_DIR": str(folder / "training"),
        "DEFAULT_SEGMENTER": f"artifacts/{SEGMENTER}",
        "DEFAULT_FEATURE_ENCODER": f"artifacts/{ENCODER}",
        "WORKER_THREADS": "1",
        "WORKER_NICENESS": "0",
        "LEASE_S": "1",
        "POLL_S": "0.05",
    }
    return service_process("training", folder, variables)


async def kill_at(client: AsyncClient, folder: Path, names: Sequence[str], moments: Sequence[Moment]) -> None:
    """Start trainers and kill them or their workers at each of the moments in turn."""
    left = list(moments)
    seen = dict.fromkeys(names, 0)
    while left:
        with trainer(folder) as process:
            await answering(client, "training", process)
            is_alive = True
            while left and is_alive:
                moment = left.pop(0)
                name = names[moment.job]
                seen[name] = await reached(client, name, moment, seen[name])
                await asyncio.sleep(moment.delay_s)
                workers = psutil.Process(process.pid).children()
                is_alive = moment.spares_service
                for victim in workers if moment.spares_service else [process]:
                    victim.send_signal(signal.SIGKILL)
                # A worker goes with its service: it must not publish beside the one that takes its job over.
                assert not (await asyncio.to_thread(psutil.wait_procs, workers, 30))[1]


async def reached(client: AsyncClient, name: str, moment: Moment, last: int) -> int:
    """Wait until a job is at a moment, or has ended; return the sequence of the event that says so."""
    async with asyncio.timeout(900):
        async for event in client.training.watch_tuning_job(name, from_sequence=last):
            last = event.sequence
            match event.event:
                case TuningProgress(step) if moment.step and step >= moment.step:
                    break
                case TuningJob() as job if job.is_done or (not moment.step and job.stage == moment.phase):
                    break
    return last


async def followed(client: AsyncClient, name: str) -> list[TuningEvent]:
    async with asyncio.timeout(900):
        return [event async for event in client.training.watch_tuning_job(name)]
