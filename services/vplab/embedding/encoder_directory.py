"""Which version a name means, following the registry's aliases without ever serving one that is not ready."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

import structlog

from vplab.embedding import metrics
from vplab.embedding.encoder_pool import EncoderPool
from vplab.embedding.ports import ModelSource
from vplab.embedding.values import EncoderStatus, EncoderVersion
from vplab.errors import DeadlineExceeded, Unavailable, VPLabError
from vplab.runtime.single_flight import SingleFlight

_log = structlog.get_logger(__name__)

_RETRY_S = (1.0, 60.0)
# Names come from callers; versions are immutable, so forgetting one only costs a call.
_MAX_VERSIONS = 1024


class EncoderDirectory:
    """Resolves names; an alias is asked for once and then followed."""

    def __init__(self, source: ModelSource, pool: EncoderPool) -> None:
        self._source = source
        self._pool = pool
        self._aliases: dict[str, EncoderVersion] = {}
        self._versions: dict[str, EncoderVersion] = {}
        # Finding one may download it, which takes longer than a first caller waits.
        self._finding: SingleFlight[EncoderVersion] = SingleFlight(outlives_callers=True)
        self._moving: dict[str, asyncio.Task[None]] = {}

    async def resolve(self, name: str) -> EncoderVersion:
        """Return the version that a full version or alias name means here.

        Raises NotFound, ModelUnsupported, Unavailable.
        """
        known = self._aliases.get(name) or self._versions.get(name)
        if known is not None:
            return known
        version = await self._finding.run(name, lambda: self._source.find_encoder(name))
        if "/aliases/" in name:
            return self._aliases.setdefault(name, version)
        if len(self._versions) >= _MAX_VERSIONS:
            del self._versions[next(iter(self._versions))]
        self._versions[name] = version
        return version

    async def list_encoders(self) -> list[EncoderStatus]:
        """Return the encoders on offer by name: the production versions, and whatever else was asked for here."""
        versions = {version.model.name: version for version in (*self._versions.values(), *self._aliases.values())}
        try:
            versions |= {version.model.name: version for version in await self._source.list_encoders()}
        except (Unavailable, DeadlineExceeded) as error:
            _log.warning("registry_unavailable", error=error.message)
        return [self._status(versions[name]) for name in sorted(versions)]

    def served(self) -> list[tuple[EncoderStatus, tuple[str, ...]]]:
        """Return the loaded encoders with the aliases that lead to them here."""
        versions = {version.model: version for version in (*self._versions.values(), *self._aliases.values())}
        statuses = [self._status(version) for version in versions.values() if self._pool.loaded(version)]
        return [(status, self._aliases_of(status.version)) for status in statuses]

    async def follow(self) -> None:
        """Keep the aliases up to date, for ever."""
        async with aclosing(self._source.moved_aliases()) as moved:  # type: ignore[type-var]
            async for alias in moved:
                if alias in self._aliases and alias not in self._moving:
                    self._spawn(alias)

    async def preload(self, names: Iterable[str]) -> None:
        """Have encoders ready before they are asked for, as soon as the registry answers."""
        for name in names:
            retry_s = _RETRY_S[0]
            while True:
                try:
                    await self._pool.get(await self.resolve(name))
                except (Unavailable, DeadlineExceeded) as error:
                    _log.warning("preload_waits", name=name, error=error.message, retry_s=retry_s)
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, _RETRY_S[1])
                    continue
                except VPLabError as error:
                    _log.error("encoder_not_preloaded", name=name, error=error.message)
                break

    async def close(self) -> None:
        """End the moves that are under way."""
        tasks = list(self._moving.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, alias: str) -> None:
        task = asyncio.create_task(self._move(alias))
        self._moving[alias] = task
        task.add_done_callback(lambda _: self._moving.pop(alias, None))

    async def _move(self, alias: str) -> None:
        """Load what an alias means now, if what it meant is loaded, and only then serve it."""
        retry_s = _RETRY_S[0]
        while True:
            try:
                new = await self._source.find_encoder(alias)
                if new.model.digest == self._aliases[alias].model.digest:
                    return
                if self._pool.loaded(self._aliases[alias]) is not None:
                    await self._pool.get(new)
            except (Unavailable, DeadlineExceeded) as error:
                _log.warning("alias_move_waits", alias=alias, error=error.message, retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S[1])
                continue
            except VPLabError as error:
                metrics.ALIAS_MOVES.labels("refused").inc()
                _log.error("alias_move_refused", alias=alias, reason=error.reason, error=error.message)
                return
            old, self._aliases[alias] = self._aliases[alias], new
            metrics.ALIAS_MOVES.labels("followed").inc()
            _log.info("alias_followed", alias=alias, old=old.model.name, new=new.model.name, digest=new.model.digest)
            # It may have moved again while this was loading, and that news found this move under way.

    def _aliases_of(self, version: EncoderVersion) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, target in self._aliases.items() if target.model == version.model))

    def _status(self, version: EncoderVersion) -> EncoderStatus:
        loaded = self._pool.loaded(version)
        return EncoderStatus(version, loaded.execution_provider if loaded else None)
