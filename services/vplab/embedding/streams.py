"""Answering a stream of requests out of order, with a bound on what is under way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class StreamLimits:
    """What one stream may have under way."""

    max_in_flight: int
    """Requests whose answers are not taken yet."""
    max_bytes: int
    """Bytes of the requests that are not answered yet; one request alone may exceed it."""


async def answer_each(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    limits: StreamLimits,
    size_bytes: Callable[[Request], int] = lambda _: 0,
) -> AsyncIterator[Answer]:
    """Yield an answer for each request as soon as it is there.

    A request is read only while the stream is within its limits, and an answer counts until whoever iterates asks for
    the next: a slow taker holds the sender up instead of filling the memory. An exception of ``answer`` or of
    ``requests`` ends the stream and cancels the rest.
    """
    slots = asyncio.Semaphore(limits.max_in_flight)
    room = _Room(limits.max_bytes)
    # None says that no more comes; an exception, that something failed.
    answers: asyncio.Queue[tuple[Answer] | Exception | None] = asyncio.Queue()
    working: set[asyncio.Task[None]] = set()

    async def work(request: Request) -> None:
        with room.taken(size_bytes(request)):
            try:
                answers.put_nowait((await answer(request),))
            except Exception as error:
                answers.put_nowait(error)

    async def read() -> None:
        try:
            while True:
                await slots.acquire()
                await room.wait()
                request = await anext(requests, None)
                if request is None:
                    break
                task = asyncio.create_task(work(request))
                working.add(task)
                task.add_done_callback(working.discard)
                await asyncio.sleep(0)  # it takes its room before the next is read
            await asyncio.gather(*working)
            answers.put_nowait(None)
        except Exception as error:
            answers.put_nowait(error)

    reader = asyncio.create_task(read())
    try:
        while (answered := await answers.get()) is not None:
            if isinstance(answered, Exception):
                raise answered
            yield answered[0]
            slots.release()
    finally:
        tasks = [reader, *working]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Room:
    """Counts bytes and lets one wait until they are below a bound."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._is_free = asyncio.Event()
        self._is_free.set()

    async def wait(self) -> None:
        await self._is_free.wait()

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        self._change(num_bytes)
        try:
            yield
        finally:
            self._change(-num_bytes)

    def _change(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes < self._max_bytes:
            self._is_free.set()
        else:
            self._is_free.clear()
