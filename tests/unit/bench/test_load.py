import asyncio
import time

import pytest

from fakes.bench_targets import Answering
from vplab.bench.load import MIN_CALLS, Load, Step
from vplab.bench.requests import Requests
from vplab.bench.samples import OK, Samples, figures
from vplab.bench.schedules import poisson_arrivals


async def measure(connection: Answering, step: Step, stop: asyncio.Event | None = None) -> Samples:
    load = Load(connection, Requests([b"a", b"b"]))
    return await load.run(step, time.monotonic(), stop or asyncio.Event())


async def test_callers_wait_for_their_answer_before_the_next_call() -> None:
    connection = Answering(wait_s=0.02)
    found = await measure(connection, Step(num_callers=3, duration_s=0.3, warm_up_s=0))
    assert set(found.codes) == {OK}
    assert (found.latency_s >= 0.02).all()
    # Each caller alone cannot make more than 0.3 / 0.02 calls, and one that had begun.
    assert len(found.codes) <= 3 * 16
    assert found.window_s == pytest.approx(0.3, abs=0.05)


async def test_calls_of_the_warm_up_are_made_but_not_counted() -> None:
    connection = Answering(wait_s=0.01)
    found = await measure(connection, Step(num_callers=1, duration_s=0.1, warm_up_s=0.2))
    assert len(connection.bodies) > len(found.codes) >= found.is_counted.sum()


async def test_calls_longer_than_the_window_are_waited_for() -> None:
    found = await measure(Answering(wait_s=0.2), Step(num_callers=2, duration_s=0.05, warm_up_s=0))
    assert len(found.codes) == 2 * MIN_CALLS
    assert (found.end_s > found.window_s).all()
    assert figures([found])["throughput_per_s"] == pytest.approx(2 / 0.2, rel=0.2)


async def test_a_call_that_the_warm_up_began_is_throughput_of_the_window_it_ended_in() -> None:
    found = await measure(Answering(wait_s=0.4), Step(num_callers=5, duration_s=0.6, warm_up_s=0.2))
    assert len(found.codes) == 5 + found.is_counted.sum()
    assert figures([found])["throughput_per_s"] == pytest.approx(5 / 0.4, rel=0.2)


async def test_a_server_that_stands_still_is_charged_for_every_call_that_was_due() -> None:
    """A generator that only counted from when it called would see one slow call and otherwise fast ones."""
    found = await measure(
        Answering(stands_still_s=0.5), Step(num_callers=0, duration_s=0.6, warm_up_s=0, rate_per_s=200)
    )
    # Of about 120 calls some 100 were due while nothing moved, and they wait half of it on average.
    assert (found.latency_s > 0.1).sum() > 50
    assert found.lag_s.max() > 0.3


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    connection = Answering(wait_s=0.5)
    found = await measure(connection, Step(num_callers=0, duration_s=0.2, warm_up_s=0, rate_per_s=300))
    assert len(found.codes) == len(connection.bodies) == len(poisson_arrivals(300, 0.2, 0))


async def test_refusals_are_counted_and_their_callers_pause() -> None:
    connection = Answering(fails_every=1)
    found = await measure(connection, Step(num_callers=1, duration_s=0.2, warm_up_s=0))
    assert set(found.codes) == {"RESOURCE_EXHAUSTED"}
    assert len(found.codes) < 10


async def test_a_step_that_is_stopped_keeps_what_it_saw() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)
    found = await measure(Answering(wait_s=0.01), Step(num_callers=1, duration_s=60, warm_up_s=0), stop)
    assert 0 < found.window_s < 10
    assert len(found.codes) > 1


async def test_some_answers_are_kept() -> None:
    found = await measure(Answering(), Step(num_callers=1, duration_s=0.1, warm_up_s=0))
    assert set(found.answers) == {b"a", b"b"}
