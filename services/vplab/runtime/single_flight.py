"""Work that several callers want at once is done once."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from vplab.errors import DeadlineExceeded, ResourceExhausted

Value = TypeVar("Value")


class SingleFlight(Generic[Value]):
    """Shares one running task among the callers of a key.

    The task belongs to none of them: it is cancelled when the last caller has gone (unless ``outlives_callers``). Its
    deadline and place in a queue are those of the caller who started it; a caller who joined does not fail by them but
    starts anew.
    """

    def __init__(self, *, outlives_callers: bool = False) -> None:
        self._flights: dict[Hashable, _Flight[Value]] = {}
        self._outlives_callers = outlives_callers

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[Value]]) -> Value:
        """Return the result of ``work``, or of the one that runs for this key already."""
        while True:
            flight = self._flights.get(key)
            is_first = flight is None
            if flight is None:
                flight = self._start(key, work)
            try:
                return await self._join(key, flight)
            except (DeadlineExceeded, ResourceExhausted):
                if is_first or self._outlives_callers:
                    raise

    def _start(self, key: Hashable, work: Callable[[], Awaitable[Value]]) -> "_Flight[Value]":
        # What outlives its callers must not take over the first one's deadline with its context.
        context = contextvars.Context() if self._outlives_callers else None
        flight = _Flight(asyncio.create_task(_awaited(work), context=context))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    async def _join(self, key: Hashable, flight: "_Flight[Value]") -> Value:
        flight.num_callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.num_callers -= 1
            if not flight.num_callers and not flight.task.done() and not self._outlives_callers:
                self._forget(key, flight)  # at once, so that nobody joins what is being cancelled
                flight.task.cancel()

    def close(self) -> None:
        """Cancel what runs."""
        for flight in self._flights.values():
            flight.task.cancel()

    def _forget(self, key: Hashable, flight: "_Flight[Value]") -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # seen, so that asyncio does not report it where every caller has gone


async def _awaited(work: Callable[[], Awaitable[Value]]) -> Value:
    return await work()


class _Flight(Generic[Value]):
    def __init__(self, task: "asyncio.Future[Value]") -> None:
        self.task = task
        self.num_callers = 0
