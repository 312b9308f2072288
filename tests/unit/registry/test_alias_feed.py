import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.registry_stores import FakeClock, Stores, make_artifact, opened_registry, publish_bytes
from vplab.errors import Unavailable
from vplab.registry.alias_feed import PAGE, AliasEvent, AliasFeed
from vplab.registry.core.registry import Registry
from vplab.registry.errors import StoreUnavailable
from vplab.registry.offload import Offload
from vplab.registry.values import AliasKey, VersionKey

KEY = AliasKey("scratch", "production")


@pytest.fixture
def sqlite_registry(sqlite_stores: Stores, clock: FakeClock) -> Iterator[Registry]:
    with opened_registry(sqlite_stores, clock) as opened:
        yield opened


@pytest.fixture
def version(sqlite_registry: Registry) -> VersionKey:
    return publish_bytes(sqlite_registry, make_artifact(sqlite_registry), b"weights").key


@pytest.fixture
async def feed(sqlite_registry: Registry) -> AsyncIterator[AliasFeed]:
    offload = Offload("test", 4)
    yield AliasFeed(sqlite_registry.aliases, offload, poll_s=0.02, heartbeat_s=30)
    offload.close()


def move(registry: Registry, version: VersionKey, times: int = 1) -> None:
    for _ in range(times):
        registry.aliases.set(KEY, version, etag="*")


async def take(events: AsyncIterator[AliasEvent], count: int) -> list[int]:
    async with asyncio.timeout(60):
        return [(await anext(events)).revision for _ in range(count)]


async def test_slow_watcher_gets_everything_one_page_at_a_time(
    feed: AliasFeed, sqlite_registry: Registry, version: VersionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    news = sqlite_registry.aliases.news

    def counted(artifact_id: str | None, after: int, limit: int) -> object:
        asked.append(after)
        return news(artifact_id, after, limit)

    monkeypatch.setattr(sqlite_registry.aliases, "news", counted)
    await asyncio.to_thread(move, sqlite_registry, version, PAGE + 20)
    events = feed.watch(None, 0)
    await take(events, 2)
    await asyncio.to_thread(move, sqlite_registry, version, 5)
    await asyncio.sleep(0.2)  # several polls: the feed knows of the moves, the watcher does not ask yet
    assert asked == [0]
    assert await take(events, PAGE + 24) == list(range(2, PAGE + 26))
    assert asked == [0, PAGE]
    await events.aclose()  # type: ignore[attr-defined]


async def test_many_watchers_each_get_everything(
    feed: AliasFeed, sqlite_registry: Registry, version: VersionKey
) -> None:
    watchers = [feed.watch(None, 0) for _ in range(5)]
    assert [await take(events, 1) for events in watchers] == [[0]] * 5
    await asyncio.to_thread(move, sqlite_registry, version, 3)
    feed.ask()
    assert await asyncio.gather(*(take(events, 3) for events in watchers)) == [[1, 2, 3]] * 5
    for events in watchers:
        await events.aclose()  # type: ignore[attr-defined]


async def test_nobody_watching_asks_nothing(
    feed: AliasFeed, sqlite_registry: Registry, version: VersionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = feed.watch(None, 0)
    await take(events, 1)
    await events.aclose()  # type: ignore[attr-defined]
    asked = []
    monkeypatch.setattr(sqlite_registry.aliases, "latest_revision", lambda: asked.append(1))
    await asyncio.sleep(0.1)
    assert asked == []


async def test_feed_survives_a_database_that_is_away_for_a_while(
    feed: AliasFeed, sqlite_registry: Registry, version: VersionKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = feed.watch(None, 0)
    await take(events, 1)

    def away() -> int:
        raise StoreUnavailable("database", "does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(sqlite_registry.aliases, "latest_revision", away)
        with pytest.raises(Unavailable):
            await anext(feed.watch(None, None))
        await asyncio.sleep(0.1)
    await asyncio.to_thread(move, sqlite_registry, version)
    assert await take(events, 1) == [1]
    await events.aclose()  # type: ignore[attr-defined]
