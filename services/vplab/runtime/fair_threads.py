"""Threads for work that needs no device: urgent calls go first, and within a class clients take turns."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from vplab.runtime.device_queue import DeviceQueue, Priority

Value = TypeVar("Value")


class FairThreads:
    """Runs functions off the event loop, in the order of a ``DeviceQueue``; the threads run from the start.

    num_background_threads: the class BATCH gets as many of its own, which give way to everything else on the machine.
    Without them what is urgent waits for a piece of BATCH that has begun.
    """

    def __init__(self, name: str, num_threads: int, *, max_waiting: int, num_background_threads: int = 0) -> None:
        self._queue: DeviceQueue[Callable[[], Any], Any] = DeviceQueue(
            _call,
            name=name,
            capacity=max_waiting,
            num_threads=num_threads,
            num_background_threads=num_background_threads,
        )
        self._queue.start()

    async def run(self, work: Callable[[], Value], priority: Priority, client: str) -> Value:
        """Return the result of ``work``, or raise what it raises.

        A caller that is cancelled leaves: what had not begun is not done, what had runs to its end by itself.
        Raises ResourceExhausted when too much waits that is as urgent, Unavailable once it closes.
        """
        result: Value = await self._queue.submit(work, priority=priority, client=client)
        return result

    async def close(self) -> None:
        """Refuse what waits; what is being worked on ends by itself."""
        await self._queue.close(0.0)


def _call(work: Sequence[Callable[[], Any]]) -> list[Any]:
    return [each() for each in work]
