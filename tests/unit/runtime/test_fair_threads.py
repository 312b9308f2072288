"""Threads shared by classes and clients."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from vplab.errors import InvalidInput, ResourceExhausted, Unavailable
from vplab.runtime.device_queue import Priority
from vplab.runtime.fair_threads import FairThreads
from vplab.runtime.giving_way import gives_way


@asynccontextmanager
async def open_threads(num_background_threads: int = 0, max_waiting: int = 100) -> AsyncIterator[FairThreads]:
    threads = FairThreads("test", 1, max_waiting=max_waiting, num_background_threads=num_background_threads)
    try:
        yield threads
    finally:
        await threads.close()


class Held:
    """Notes the order of what is done behind a first piece of work that lasts until it is let go."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.began = threading.Event()
        self.let_go = threading.Event()

    def first(self) -> None:
        self.began.set()
        assert self.let_go.wait(20)

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self.order.append(name)


async def run_behind(threads: FairThreads, held: Held, *work: tuple[str, Priority, str]) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(threads.run(held.first, Priority.INTERACTIVE, "first"))]
    await asyncio.to_thread(held.began.wait)
    tasks += [asyncio.create_task(threads.run(held.note(name), priority, client)) for name, priority, client in work]
    await asyncio.sleep(0.01)
    return tasks


async def test_urgent_work_goes_first_and_then_clients_take_turns() -> None:
    held = Held()
    flood = [(f"flood {n}", Priority.INLINE, "flood") for n in range(4)]
    others = [("other", Priority.INLINE, "other"), ("folder", Priority.BATCH, "other"), ("click", Priority(0), "flood")]
    async with open_threads() as threads:
        tasks = await run_behind(threads, held, *flood, *others)
        held.let_go.set()
        await asyncio.gather(*tasks)
    assert held.order[0] == "click"
    assert held.order.index("other") <= 2
    assert held.order[-1] == "folder"


async def test_the_result_and_the_error_are_the_works_own() -> None:
    def refuse() -> None:
        raise InvalidInput("no", field="image")

    async with open_threads() as threads:
        assert await threads.run(lambda: 7, Priority.INLINE, "a") == 7
        with pytest.raises(InvalidInput):
            await threads.run(refuse, Priority.INLINE, "a")


async def test_work_of_no_hurry_has_threads_that_give_way() -> None:
    async with open_threads(num_background_threads=1) as threads:
        assert await threads.run(gives_way, Priority.BATCH, "a") is True
        assert await threads.run(gives_way, Priority.INLINE, "a") is False


async def test_too_much_that_waits_is_refused_and_so_is_what_comes_after_the_end() -> None:
    held = Held()
    async with open_threads(max_waiting=1) as threads:
        tasks = await run_behind(threads, held, ("second", Priority.INTERACTIVE, "first"))
        with pytest.raises(ResourceExhausted):
            await threads.run(held.note("third"), Priority.INTERACTIVE, "first")
        held.let_go.set()
        await asyncio.gather(*tasks)
    with pytest.raises(Unavailable):
        await threads.run(held.note("late"), Priority.INTERACTIVE, "first")
    assert held.order == ["second"]
