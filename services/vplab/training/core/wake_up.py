"""Tells those who wait in this process that something changed; what other replicas change is found by looking again."""

import asyncio


class WakeUp:
    """Belongs to one event loop. Take ``changed`` before looking, then wait for it: nothing in between is missed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change."""
        return self._changed

    def tell(self) -> None:
        """Wake up everyone who waits."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
