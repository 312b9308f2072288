"""Order, bounds and drop policies of a stream of frames."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from vplab.segmentation.streams import MAX_NOTICES, Dropped, DropPolicy, FrameStream


class Bench:
    """Frames are numbers; the test says when each one's work ends."""

    def __init__(self, policy: DropPolicy, *, max_in_flight: int, num_at_once: int = 1) -> None:
        self.started: list[int] = []
        self.num_read = 0
        self.gates: dict[int, asyncio.Event] = {}
        self.stream: FrameStream[int, str] = FrameStream(
            self.work, str, policy, max_in_flight=max_in_flight, num_at_once=num_at_once
        )

    async def work(self, frame: int) -> str:
        self.started.append(frame)
        await self.gates.setdefault(frame, asyncio.Event()).wait()
        return f"done {frame}"

    def finish(self, *frames: int) -> None:
        for frame in frames:
            self.gates.setdefault(frame, asyncio.Event()).set()

    async def frames(self, count: int, until: asyncio.Event | None = None) -> AsyncIterator[int]:
        for frame in range(count):
            self.num_read += 1
            yield frame
            await asyncio.sleep(0)
        if until is not None:
            await until.wait()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def told(answers: list[object]) -> list[object]:
    return [f"dropped {a.frame_id} as {a.num_dropped}" if isinstance(a, Dropped) else a for a in answers]


async def test_answers_come_in_the_order_of_the_frames_whatever_ends_first() -> None:
    bench = Bench(DropPolicy.WAIT, max_in_flight=4, num_at_once=4)
    answers = bench.stream.answers(bench.frames(3))
    first = asyncio.ensure_future(anext(answers))
    await settle()
    bench.finish(2, 1)
    await settle()
    assert not first.done()
    bench.finish(0)
    assert [await first, *[a async for a in answers]] == ["done 0", "done 1", "done 2"]


async def test_wait_reads_no_further_frame_until_an_answer_is_taken() -> None:
    bench = Bench(DropPolicy.WAIT, max_in_flight=3)
    bench.finish(*range(10))
    answers = bench.stream.answers(bench.frames(10))
    assert await anext(answers) == "done 0"
    await settle()
    # Frame 0 counts until the next one is asked for: three are held, and no fourth was read.
    assert bench.num_read == bench.stream.num_held == 3
    assert await anext(answers) == "done 1"
    await settle()
    assert bench.num_read == 4
    assert [a async for a in answers] == [f"done {n}" for n in range(2, 10)]


async def test_oldest_drops_the_oldest_frame_that_was_not_begun() -> None:
    bench = Bench(DropPolicy.OLDEST, max_in_flight=3)
    answers = bench.stream.answers(bench.frames(6))
    first = asyncio.ensure_future(anext(answers))
    await settle()
    assert bench.started == [0]
    assert bench.stream.num_held == 3
    bench.finish(*range(6))
    found = [await first, *[a async for a in answers]]
    assert told(found) == [
        "done 0", "dropped 1 as 1", "dropped 2 as 2", "dropped 3 as 3", "done 4", "done 5"
    ]  # fmt: skip


async def test_newest_drops_the_frame_that_arrived() -> None:
    bench = Bench(DropPolicy.NEWEST, max_in_flight=2)
    answers = bench.stream.answers(bench.frames(4))
    first = asyncio.ensure_future(anext(answers))
    await settle()
    bench.finish(*range(4))
    found = [await first, *[a async for a in answers]]
    assert told(found) == ["done 0", "done 1", "dropped 2 as 1", "dropped 3 as 2"]


@pytest.mark.parametrize("policy", list(DropPolicy))
async def test_a_taker_that_never_takes_does_not_grow_what_is_held(policy: DropPolicy) -> None:
    bench = Bench(policy, max_in_flight=4, num_at_once=2)
    bench.finish(*range(100_000))
    answers = bench.stream.answers(bench.frames(100_000))
    await anext(answers)
    for _ in range(200):
        await settle()
    assert bench.stream.num_held <= 4
    assert bench.stream.num_notices <= MAX_NOTICES
    assert bench.num_read <= 4 + MAX_NOTICES + 1
    assert len(bench.started) <= 4
    await answers.aclose()


async def test_a_failure_of_the_sender_comes_after_the_answers() -> None:
    bench = Bench(DropPolicy.WAIT, max_in_flight=4)
    bench.finish(0)

    async def broken() -> AsyncIterator[int]:
        yield 0
        raise ConnectionError("gone")

    answers = bench.stream.answers(broken())
    assert await anext(answers) == "done 0"
    with pytest.raises(ConnectionError):
        await anext(answers)


async def test_a_taker_that_leaves_cancels_the_work() -> None:
    bench = Bench(DropPolicy.WAIT, max_in_flight=2, num_at_once=2)
    ended = asyncio.Event()

    async def work(frame: int) -> str:
        if frame == 0:
            return "first"
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    stream = FrameStream(work, str, DropPolicy.WAIT, max_in_flight=2, num_at_once=2)
    answers = stream.answers(bench.frames(5))
    assert await anext(answers) == "first"
    await settle()
    await answers.aclose()
    assert ended.is_set()
