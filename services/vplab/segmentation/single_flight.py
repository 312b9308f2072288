"""Work that several callers want at once is done once."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SingleFlight(Generic[Value]):
    """Shares one running task among the callers of a key.

    The task outlives them: loading a model, or a prompt set's references, takes longer than a first caller waits, and
    the next one wants it too. So it runs without the first caller's deadline.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[Value]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[Value]]) -> Value:
        """Return the result of ``work``, or of the one that runs for this key already."""
        task = self._flights.get(key)
        if task is None:
            task = asyncio.create_task(_awaited(work), context=contextvars.Context())
            self._flights[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Cancel what runs."""
        for task in self._flights.values():
            task.cancel()

    def _forget(self, key: Hashable, task: "asyncio.Task[Value]") -> None:
        if self._flights.get(key) is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it where every caller has gone


async def _awaited(work: Callable[[], Awaitable[Value]]) -> Value:
    return await work()
