"""A device's work function that notes its batches and holds the first until it is let go."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from vplab.runtime.device_queue import open_queues


class GatedBatches:
    """Stands around ``run``."""

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
        self._run = run
        self.sizes: list[int] = []
        self.let_go = threading.Event()

    def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        """Run a batch."""
        self.sizes.append(len(items))
        assert self.let_go.wait(60)
        return self._run(items)

    async def wait_begun(self) -> None:
        """Return once the first batch is held."""
        async with asyncio.timeout(60):
            while not self.sizes:
                await asyncio.sleep(0.01)

    async def wait_behind(self, queue: str, count: int) -> None:
        """Return once ``count`` items wait in a queue."""
        async with asyncio.timeout(60):
            while sum(q.depth for q in open_queues() if q.name == queue) < count:
                await asyncio.sleep(0.01)
