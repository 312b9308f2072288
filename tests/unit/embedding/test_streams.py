"""Streams are answered out of order and hold the sender up."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from vplab.embedding.streams import StreamLimits, answer_each
from vplab.errors import InvalidInput


def at_most(max_in_flight: int, max_bytes: int = 1 << 20) -> StreamLimits:
    return StreamLimits(max_in_flight, max_bytes)


async def numbers(count: int, read: list[int] | None = None) -> AsyncIterator[int]:
    for i in range(count):
        if read is not None:
            read.append(i)
        yield i


async def test_every_request_is_answered_in_any_order() -> None:
    async def later_first(i: int) -> int:
        await asyncio.sleep((5 - i) * 0.01)
        return i

    answers = [answer async for answer in answer_each(numbers(5), later_first, at_most(5))]
    assert answers == [4, 3, 2, 1, 0]


async def test_no_more_is_read_than_may_be_outstanding() -> None:
    read: list[int] = []

    async def at_once(i: int) -> int:
        return i

    answers = answer_each(numbers(100, read), at_once, at_most(4))
    await anext(answers)
    await asyncio.sleep(0.05)
    assert len(read) == 4  # the answer in hand is not taken until the next one is asked for
    await anext(answers)
    await asyncio.sleep(0.05)
    assert len(read) == 5
    await answers.aclose()


async def test_large_requests_are_read_only_while_there_is_room() -> None:
    read: list[int] = []
    go = asyncio.Event()

    async def when_told(i: int) -> int:
        await go.wait()
        return i

    answers = answer_each(numbers(10, read), when_told, at_most(64, max_bytes=250), size_bytes=lambda _: 100)
    first = asyncio.create_task(anext(answers))
    await asyncio.sleep(0.05)
    assert len(read) == 3  # 300 bytes: the one that passes the bound is there already
    go.set()
    assert sorted([await first] + [answer async for answer in answers]) == list(range(10))


async def test_a_failure_ends_the_stream_and_cancels_the_rest() -> None:
    cancelled = []

    async def one_fails(i: int) -> int:
        if i == 2:
            raise InvalidInput("bad")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(i)
            raise
        return i

    with pytest.raises(InvalidInput):
        async for _ in answer_each(numbers(4), one_fails, at_most(8)):
            pass
    assert {0, 1} <= set(cancelled)


async def test_a_broken_request_stream_is_raised() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise InvalidInput("not a message")

    async def same(i: int) -> int:
        return i

    with pytest.raises(InvalidInput):
        async for _ in answer_each(broken(), same, at_most(2)):
            pass


async def test_an_empty_stream_ends() -> None:
    async def same(i: int) -> int:
        return i

    assert [a async for a in answer_each(numbers(0), same, at_most(2))] == []
