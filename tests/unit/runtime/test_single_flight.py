"""Callers share work, and never each other's bad luck."""

import asyncio
import contextvars

import pytest

from vplab.errors import DeadlineExceeded, InvalidInput
from vplab.runtime.single_flight import SingleFlight


class Work:
    """Counts its runs and ends when told."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.num_begun = 0
        self.num_cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> object:
        self.num_begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_of_one_key_share_one_run() -> None:
    flights, work = SingleFlight[object](), Work("value")
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(3)]
    await settle()
    work.go.set()
    assert await asyncio.gather(*callers) == ["value"] * 3
    assert work.num_begun == 1
    assert len(flights) == 0


async def test_different_keys_run_apart() -> None:
    flights, work = SingleFlight[object](), Work("a", "b")
    work.go.set()
    assert {await flights.run(1, work), await flights.run(2, work)} == {"a", "b"}


async def test_a_failure_reaches_every_caller_and_is_not_kept() -> None:
    flights, work = SingleFlight[object](), Work(InvalidInput("bad"), "good")
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(2)]
    await settle()
    work.go.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(r) for r in results] == [InvalidInput, InvalidInput]
    assert await flights.run("key", work) == "good"


async def test_the_first_caller_leaving_does_not_stop_the_others() -> None:
    flights, work = SingleFlight[object](), Work("value")
    first = asyncio.create_task(flights.run("key", work))
    await settle()
    second = asyncio.create_task(flights.run("key", work))
    await settle()
    first.cancel()
    await settle()
    work.go.set()
    assert await second == "value"
    assert work.num_begun == 1


async def test_the_last_caller_leaving_stops_the_work() -> None:
    flights, work = SingleFlight[object](), Work("value")
    callers = [asyncio.create_task(flights.run("key", work)) for _ in range(2)]
    await settle()
    for caller in callers:
        caller.cancel()
    await settle()
    assert work.num_cancelled == 1
    assert len(flights) == 0


async def test_a_newcomer_does_not_join_what_is_being_cancelled() -> None:
    flights, work = SingleFlight[object](), Work("value")
    first = asyncio.create_task(flights.run("key", work))
    await settle()
    first.cancel()
    second = asyncio.create_task(flights.run("key", work))
    await settle()
    work.go.set()
    assert await second == "value"


async def test_a_joiner_does_not_fail_by_the_first_callers_deadline() -> None:
    flights, work = SingleFlight[object](), Work(DeadlineExceeded("too late"), "value")
    first = asyncio.create_task(flights.run("key", work))
    await settle()
    second = asyncio.create_task(flights.run("key", work))
    await settle()
    work.go.set()
    with pytest.raises(DeadlineExceeded):
        await first
    assert await second == "value"


async def test_work_that_outlives_its_callers_goes_on_in_a_context_of_its_own() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen = []
    flights, work = SingleFlight[object](outlives_callers=True), Work("value")

    async def look() -> object:
        seen.append(variable.get())
        return await work()

    variable.set("the caller's")
    caller = asyncio.create_task(flights.run("key", look))
    await settle()
    caller.cancel()
    await settle()
    assert work.num_cancelled == 0
    assert seen == ["none"]
    work.go.set()
    assert await flights.run("key", look) == "value"
    assert work.num_begun == 1
