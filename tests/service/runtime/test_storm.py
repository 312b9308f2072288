"""Many calls of all kinds, late, cancelled or cut off at once: nothing may be left behind."""

import asyncio
import logging
import random
import time

import grpc
from prometheus_client import REGISTRY as SERIES
from structlog.testing import capture_logs

from fakes.four_kinds import KINDS, FourKinds, begin, finish
from vplab.errors import VPLabError
from vplab.runtime import request
from vplab.runtime.device_queue import DeviceQueue, Priority
from vplab.runtime.server import running_server
from vplab.runtime.settings import ServerSettings


def left_over() -> dict[str, float]:
    names = ("grpc_server_in_flight", "vplab_queue_depth")
    samples = (sample for metric in SERIES.collect() for sample in metric.samples)
    return {str(sample.labels): sample.value for sample in samples if sample.name in names and sample.value}


async def test_a_storm_of_cancelled_and_late_calls_leaves_nothing_behind(caplog):
    draw = random.Random(0)

    def work(items):
        time.sleep(draw.random() * 0.004)
        return items

    queue = DeviceQueue(work, name="storm", capacity=16, max_batch_size=4, max_wait_s=0.002)
    queue.start()

    async def behave() -> None:
        await queue.submit(1, priority=draw.choice(list(Priority)), deadline=request.deadline())

    outcomes = set()

    async def one(channel) -> None:
        call = begin(draw.choice(KINDS), channel, timeout=draw.choice([0.002, 0.01, 0.05, 10]))
        answer = asyncio.create_task(finish(call))
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.02)
            call.cancel()
        try:
            await answer
            outcomes.add("OK")
        except (VPLabError, asyncio.CancelledError) as error:
            outcomes.add(type(error).__name__)

    with capture_logs() as lines, caplog.at_level(logging.ERROR, "grpc"):
        async with running_server(FourKinds(behave).registrations, ServerSettings(drain_grace_s=0.5)) as server:
            async with grpc.aio.insecure_channel(server.address) as channel:
                for _ in range(20):
                    await asyncio.gather(*(one(channel) for _ in range(30)))
                cut_off = [asyncio.create_task(one(channel)) for _ in range(60)]
                await asyncio.sleep(0.01)
            await asyncio.gather(*cut_off, return_exceptions=True)
        await queue.close()
    assert {"OK", "CancelledError", "DeadlineExceeded"} <= outcomes
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert [record.message for record in caplog.records if "servicer" in record.message] == []
    assert left_over() == {}
    assert (queue.depth, queue.num_running, queue.is_alive) == (0, 0, False)
