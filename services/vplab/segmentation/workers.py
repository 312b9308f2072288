"""A bounded pool of threads for matching, resizing and decoding of pictures."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vplab.errors import ResourceExhausted

Value = TypeVar("Value")

_RETRY_AFTER_S = 0.5


class Workers:
    """Runs functions off the event loop; more than ``max_waiting`` at a time are refused."""

    def __init__(self, num_threads: int, max_waiting: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="segment")
        self._max_waiting = num_threads + max_waiting
        self._num_waiting = 0

    async def run(self, work: Callable[[], Value]) -> Value:
        """Return the result of ``work``. Raises ResourceExhausted when too much waits.

        A caller that is cancelled leaves: what had not begun is not done, what had runs to its end by itself.
        """
        if self._num_waiting >= self._max_waiting:
            raise ResourceExhausted("too much work waits for a thread", retry_after_s=_RETRY_AFTER_S)
        self._num_waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        future.add_done_callback(self._done)
        return await future

    def close(self) -> None:
        """Drop what waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: "asyncio.Future[Value]") -> None:
        self._num_waiting -= 1
        if not future.cancelled():
            future.exception()
