"""Follows the changes of aliases for any number of watchers.

One question a moment to the database, whatever the number of watchers, tells of changes by other replicas; changes made
here are told at once. Polling rather than PostgreSQL's LISTEN: it is the same for SQLite, survives connection poolers
and dropped connections, and half a second does not matter to a model that takes longer to load. A watcher holds one
page of changes and reads the next when its caller has taken them, so a slow one costs no memory.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import structlog

from vplab.errors import VPLabError
from vplab.registry.core.aliases import Aliases
from vplab.registry.offload import Offload
from vplab.registry.values import AliasChange

PAGE: Final = 100

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class AliasEvent:
    """A change, or None in a heartbeat, and the revision up to which the watcher has seen everything."""

    change: AliasChange | None
    revision: int


class AliasFeed:
    """Tells watchers of changes; belongs to one event loop."""

    def __init__(self, aliases: Aliases, offload: Offload, *, poll_s: float, heartbeat_s: float) -> None:
        self._aliases = aliases
        self._offload = offload
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._latest = 0
        self._moved = asyncio.Event()
        self._asked = asyncio.Event()
        self._watchers = 0
        self._poller: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Look for changes now, because one was just made."""
        self._asked.set()

    async def watch(self, artifact_id: str | None, from_revision: int | None) -> AsyncIterator[AliasEvent]:
        """Yield every change after a revision (None: from now on) in order, and heartbeats; never ends.

        The first event is a heartbeat with the revision it starts from. Raises RevisionExpired.
        """
        if from_revision is None:
            from_revision = await self._offload(self._aliases.latest_revision)
        position = from_revision
        self._enter()
        try:
            news = await self._offload(self._aliases.news, artifact_id, position, PAGE)
            yield AliasEvent(None, position)
            while True:
                for change in news.changes:
                    yield AliasEvent(change, change.revision)
                position = news.revision
                while position >= max(news.latest, self._latest):
                    if not await self._wait_for_move():
                        yield AliasEvent(None, position)
                news = await self._offload(self._aliases.news, artifact_id, position, PAGE)
        finally:
            self._leave()

    async def _wait_for_move(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._heartbeat_s):
                await self._moved.wait()
                return True
        return False

    def _enter(self) -> None:
        self._watchers += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    def _leave(self) -> None:
        self._watchers -= 1
        if self._watchers == 0 and self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def _poll(self) -> None:
        while True:
            self._asked.clear()
            try:
                latest = await self._offload(self._aliases.latest_revision)
            except VPLabError as error:
                _log.warning("cannot look for alias changes", error=error.message)
            else:
                if latest != self._latest:
                    self._latest = latest
                    moved, self._moved = self._moved, asyncio.Event()
                    moved.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._asked.wait()
