"""Answering a stream of requests out of order, with a bound on what is under way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answer_each(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Answer]], *, max_in_flight: int
) -> AsyncIterator[Answer]:
    """Yield an answer for each request as soon as it is there.

    A request is read only while fewer than ``max_in_flight`` answers are outstanding, that is, not yet taken by whoever
    iterates: a slow taker holds the sender up instead of filling the memory. An exception of ``answer`` or of
    ``requests`` ends the stream and cancels the rest.
    """
    slots = asyncio.Semaphore(max_in_flight)
    # None says that no more comes; an exception, that something failed.
    answers: asyncio.Queue[tuple[Answer] | BaseException | None] = asyncio.Queue()
    working: set[asyncio.Task[None]] = set()

    async def work(request: Request) -> None:
        try:
            answers.put_nowait((await answer(request),))
        except Exception as error:
            answers.put_nowait(error)

    async def read() -> None:
        try:
            while True:
                await slots.acquire()
                request = await anext(requests, None)
                if request is None:
                    break
                task = asyncio.create_task(work(request))
                working.add(task)
                task.add_done_callback(working.discard)
            await asyncio.gather(*working)
            answers.put_nowait(None)
        except Exception as error:
            answers.put_nowait(error)

    reader = asyncio.create_task(read())
    try:
        while (answered := await answers.get()) is not None:
            if isinstance(answered, BaseException):
                raise answered
            yield answered[0]
            slots.release()
    finally:
        tasks = [reader, *working]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
