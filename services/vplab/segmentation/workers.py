"""Threads for pictures and matching, in two kinds: what is done at once, and what takes its time."""

from collections.abc import Callable
from typing import TypeVar

from vplab.runtime import request
from vplab.runtime.fair_threads import FairThreads

Value = TypeVar("Value")


class Workers:
    """Runs functions off the event loop, for the call in progress: by its class, and fairly between clients.

    A thread that matches an image also waits for the decoder, a second and more altogether, and cannot be interrupted.
    So that a click never waits for one, what is quick has threads of its own; and so that a line does not wait for a
    folder whose decoding waits for the line's, long work of the class BATCH has too.
    """

    def __init__(self, num_threads: int, num_quick_threads: int, max_waiting: int) -> None:
        """num_threads: for long work, and as many for that of the class BATCH. max_waiting: of each kind."""
        self._quick = FairThreads("pictures", num_quick_threads, max_waiting=max_waiting)
        self._long = FairThreads("matching", num_threads, max_waiting=max_waiting, num_background_threads=num_threads)

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do what takes milliseconds: a digest, prompts, masks. Raises as FairThreads.run."""
        return await self._quick.run(work, request.priority(), request.client())

    async def run_long(self, work: Callable[[], Value]) -> Value:
        """Do what takes longer, or waits for something else. Raises as FairThreads.run."""
        return await self._long.run(work, request.priority(), request.client())

    async def close(self) -> None:
        """Drop what waits."""
        await self._quick.close()
        await self._long.close()
