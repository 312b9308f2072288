"""Trainers killed at random moments: their job ends once, with the adapter that an undisturbed job gives."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fakes.segmentation_site import Site
from fakes.small_sam import SEGMENTER, publish_small_sam, write_small_sam
from fakes.training_site import scratches
from vplab.client import AsyncClient, ClientOptions
from vplab.client.training.values import TuningEvent, TuningJob, TuningOptions, TuningProgress, TuningRequest
from vplab.errors import VPLabError

NUM_KILLS = 4
REQUEST = TuningRequest("scratches", scratches(size_hw=(90, 120)), options=TuningOptions(num_steps=24, seed=3))


@contextmanager
def training_process(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``python -m vplab.training`` on a socket in the folder; whatever is left of it at the end is killed."""
    environment = os.environ | {
        "VPLAB_TRAINING_LISTEN": f"unix:{folder}/t.sock",
        "VPLAB_TRAINING_REGISTRY_ADDRESS": f"unix:{folder}/registry.sock",
        "VPLAB_TRAINING_EMBEDDING_ADDRESS": f"unix:{folder}/embedding.sock",
        "VPLAB_TRAINING_CACHE_DIR": str(folder / "training"),
        "VPLAB_TRAINING_DEFAULT_SEGMENTER": f"artifacts/{SEGMENTER}",
        "VPLAB_TRAINING_WORKER_THREADS": "1",
        "VPLAB_TRAINING_WORKER_NICENESS": "0",
        "VPLAB_TRAINING_LEASE_S": "1",
        "VPLAB_TRAINING_POLL_S": "0.05",
    }
    (folder / "t.sock").unlink(missing_ok=True)
    with (folder / "training.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "vplab.training"], env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


async def answering(client: AsyncClient, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(6000):
        assert process.poll() is None, "the service ended by itself"
        try:
            if (await client.replica("training").health(timeout_s=1))[""] == "serving":
                return
        except VPLabError:
            await asyncio.sleep(0.05)
    raise AssertionError("the service does not answer")


async def watched(client: AsyncClient, name: str, events: list[TuningEvent], limit: int | None = None) -> None:
    """Append a job's events from the last one on, up to its end or a number of them."""
    wanted = None if limit is None else len(events) + limit
    last = events[-1].sequence if events else 0
    async for event in client.training.watch_tuning_job(name, from_sequence=last):
        events.append(event)
        if len(events) == wanted:
            return


@pytest.mark.slow
async def test_a_job_whose_trainers_are_killed_ends_once_with_the_same_adapter(tmp_path: Path) -> None:
    draw = random.Random(20261123)
    small_sam = await asyncio.to_thread(write_small_sam, tmp_path / "small-sam")
    site = Site(tmp_path)
    addresses = {"registry": site.registry_address, "training": f"unix:{tmp_path}/t.sock"}
    async with site.registry.running():
        await publish_small_sam(site, small_sam)
        async with site.embedding(), AsyncClient(**addresses, options=ClientOptions()) as client:
            with training_process(tmp_path) as process:
                await answering(client, process)
                undisturbed: list[TuningEvent] = []
                await watched(client, (await client.training.create_tuning_job(REQUEST)).name, undisturbed)
            events = await _disturbed(client, tmp_path, draw)
            first, last = undisturbed[-1].event, events[-1].event
            assert isinstance(first, TuningJob)
            assert isinstance(last, TuningJob)
            assert (first.state, last.state, last.message) == ("succeeded", "succeeded", "")
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert [event.state for event in events].count("succeeded") == 1
            versions = [version async for version in client.registry.list_versions("artifacts/scratches")]
            assert first.adapter is not None
            assert last.adapter is not None
            assert {version.name for version in versions} == {first.adapter.name, last.adapter.name}
            files = [{file.path: file.sha256 for file in version.manifest.files} for version in versions]
            assert files[0] == files[1]


async def _disturbed(client: AsyncClient, folder: Path, draw: random.Random) -> list[TuningEvent]:
    """Kill the service or its worker after a random number of events, again and again, then let the job end."""
    name, events = "", list[TuningEvent]()
    for kill in range(NUM_KILLS + 1):
        with training_process(folder) as process:
            await answering(client, process)
            name = name or (await client.training.create_tuning_job(REQUEST)).name
            if kill == NUM_KILLS:
                await watched(client, name, events)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 40) == 0
                continue
            async with asyncio.timeout(900):
                await watched(client, name, events, draw.randrange(1, 25))
            if kill % 2:
                for worker in psutil.Process(process.pid).children():
                    worker.kill()
                async with asyncio.timeout(900):
                    await watched(client, name, events, draw.randrange(1, 10))
            process.send_signal(signal.SIGKILL)
    assert any(isinstance(event.event, TuningProgress) for event in events)
    return events
