"""What names mean here: asked for once and then followed, and never pointed at a version that is not ready."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import structlog

from vplab.errors import DeadlineExceeded, Unavailable, VPLabError
from vplab.runtime.single_flight import SingleFlight
from vplab.segmentation import metrics
from vplab.segmentation.ports import ModelSource
from vplab.segmentation.values import ModelRef

_log = structlog.get_logger(__name__)

_RETRY_S = (1.0, 60.0)
# Names come from callers; versions are immutable, so forgetting one only costs a call.
_MAX_NAMES = 1024


class HasModel(Protocol):
    """Something that is exactly one published version."""

    @property
    def model(self) -> ModelRef: ...


Version = TypeVar("Version", bound=HasModel)


class FollowedNames(Generic[Version]):
    """Version and alias names of one kind of model. When an alias moves, what it means now is prepared first."""

    def __init__(
        self, find: Callable[[str], Awaitable[Version]], prepare: Callable[[Version, Version], Awaitable[None]]
    ) -> None:
        """find: what a name means now. prepare: takes the old and the new version; until it returns the old is used."""
        self._find = find
        self._prepare = prepare
        self._versions: OrderedDict[str, Version] = OrderedDict()
        # Finding one may download it, which takes longer than a first caller waits.
        self._finding: SingleFlight[Version] = SingleFlight(outlives_callers=True)
        self._asked: set[str] = set()
        self._stale: set[str] = set()
        self._moving: dict[str, asyncio.Task[None]] = {}

    async def resolve(self, name: str) -> Version:
        """Return the version that a full version or alias name means here. Raises as ``find``."""
        known = self._versions.get(name)
        return known if known is not None else await self._finding.run(name, lambda: self._learn(name))

    def aliases_of(self, model: ModelRef) -> tuple[str, ...]:
        """Return the aliases that lead to a version here."""
        return tuple(sorted(n for n, v in self._versions.items() if v.model == model and "/aliases/" in n))

    def moved(self, alias: str) -> None:
        """Take note that an alias may mean something else now."""
        if alias in self._moving or alias in self._asked:
            self._stale.add(alias)  # the answer under way may be from before
        elif alias in self._versions:
            self._moving[alias] = asyncio.create_task(self._move(alias))

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._finding.close()

    async def _learn(self, name: str) -> Version:
        self._asked.add(name)
        try:
            version = await self._ask(name)
        finally:
            self._asked.discard(name)
        if len(self._versions) >= _MAX_NAMES:
            self._versions.popitem(last=False)
        return self._versions.setdefault(name, version)

    async def _ask(self, name: str) -> Version:
        while True:
            self._stale.discard(name)
            version = await self._find(name)
            if name not in self._stale:
                return version

    async def _move(self, alias: str) -> None:
        try:
            await self._follow(alias)
        finally:
            # Here and not in a callback: between the last answer and this nothing else runs, so no news is lost.
            del self._moving[alias]

    async def _follow(self, alias: str) -> None:
        retry_s = _RETRY_S[0]
        while True:
            try:
                new = await self._ask(alias)
                old = self._versions.get(alias)
                if old is None or new.model.digest == old.model.digest:
                    return
                await self._prepare(old, new)
            except (Unavailable, DeadlineExceeded) as error:
                _log.warning("alias_move_waits", alias=alias, error=error.message, retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])
                continue
            except VPLabError as error:
                metrics.ALIAS_MOVES.labels("refused").inc()
                _log.error("alias_move_refused", alias=alias, reason=error.reason, error=error.message)
                if alias in self._stale:
                    continue
                return
            self._versions[alias] = new
            metrics.ALIAS_MOVES.labels("followed").inc()
            _log.info("alias_followed", alias=alias, old=old.model.name, new=new.model.name, digest=new.model.digest)
            # It may have moved again while this was prepared, so it is asked for once more.


async def follow_aliases(source: ModelSource, followers: tuple[Callable[[str], None], ...]) -> None:
    """Tell every follower of each alias that may have moved, for ever."""
    async with aclosing(source.moved_aliases()) as moved:  # type: ignore[type-var]
        async for alias in moved:
            for follower in followers:
                follower(alias)
