"""Names that move at the worst moments."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vplab.errors import FailedPrecondition, Unavailable
from vplab.segmentation import followed_names
from vplab.segmentation.followed_names import FollowedNames
from vplab.segmentation.values import ModelRef

ALIAS = "artifacts/a/aliases/production"


@dataclass(frozen=True)
class Version:
    number: int

    @property
    def model(self) -> ModelRef:
        return ModelRef(f"artifacts/a/versions/{self.number}", f"digest {self.number}")


@dataclass
class World:
    """A registry whose answers and whose loading can be held up."""

    now: int = 1
    asked: int = 0
    prepared: list[tuple[int, int]] = field(default_factory=list)
    before_answer: Callable[[], None] = lambda: None
    may_prepare: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[Exception] = field(default_factory=list)
    names: FollowedNames[Version] = field(init=False)

    def __post_init__(self) -> None:
        self.may_prepare.set()
        self.names = FollowedNames(self.find, self.prepare)

    async def find(self, name: str) -> Version:
        self.asked += 1
        found = Version(self.now)
        act, self.before_answer = self.before_answer, lambda: None
        act()
        await asyncio.sleep(0)  # the answer is on its way
        return found

    async def prepare(self, old: Version, new: Version) -> None:
        await self.may_prepare.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.prepared.append((old.number, new.number))

    def move(self, number: int) -> None:
        self.now = number
        self.names.moved(ALIAS)

    async def settled(self) -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        return (await self.names.resolve(ALIAS)).number


async def test_a_name_is_asked_for_once() -> None:
    world = World()
    assert [v.number for v in await asyncio.gather(*(world.names.resolve(ALIAS) for _ in range(3)))] == [1, 1, 1]
    assert world.asked == 1


async def test_news_that_overtakes_the_first_answer_is_not_lost() -> None:
    world = World()
    world.before_answer = lambda: world.move(2)
    assert (await world.names.resolve(ALIAS)).number == 2


async def test_news_that_overtakes_a_later_answer_is_not_lost() -> None:
    world = World()
    await world.names.resolve(ALIAS)
    world.before_answer = lambda: world.move(3)
    world.move(2)
    assert await world.settled() == 3
    assert world.prepared == [(1, 3)]


async def test_the_old_version_is_meant_until_the_new_one_is_prepared() -> None:
    world = World()
    await world.names.resolve(ALIAS)
    world.may_prepare.clear()
    world.move(2)
    assert await world.settled() == 1
    world.move(3)  # while 2 is being prepared
    world.may_prepare.set()
    assert await world.settled() == 3
    assert world.prepared == [(1, 2), (2, 3)]


async def test_a_version_that_cannot_be_prepared_is_passed_over() -> None:
    world = World(failures=[FailedPrecondition("no graph")])
    await world.names.resolve(ALIAS)
    world.move(2)
    assert await world.settled() == 1
    world.move(3)
    assert await world.settled() == 3


async def test_a_move_waits_for_a_registry_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_names, "_RETRY_S", (0.0, 0.0))
    world = World(failures=[Unavailable("away"), Unavailable("away")])
    await world.names.resolve(ALIAS)
    world.move(2)
    assert await world.settled() == 2


async def test_aliases_nobody_asked_for_are_not_followed() -> None:
    world = World()
    world.move(2)
    assert (await world.settled(), world.asked, world.prepared) == (2, 1, [])


async def test_versions_name_the_aliases_that_lead_to_them() -> None:
    world = World()
    first = await world.names.resolve(ALIAS)
    await world.names.resolve("artifacts/a/versions/1")
    assert world.names.aliases_of(first.model) == (ALIAS,)
    await world.names.close()
