"""Moving an alias while others move it too, by a registry that lets them in at the worst moment."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vplab.errors import Aborted, NotFound, Unavailable
from vplab.training.backends.client_models import ClientModels
from vplab.training.values import ModelRef, TuningMethod, TuningOptions, TuningPlan

ARTIFACT = "artifacts/scratches"
ALIAS = f"{ARTIFACT}/aliases/production"
MODEL = ModelRef("artifacts/other/versions/1", "0" * 64)


def version(number: int) -> str:
    return f"{ARTIFACT}/versions/{number}"


@dataclass
class Registry:
    """One alias; ``others`` are versions that somebody else moves it to just before each of our moves."""

    current: str = ""
    others: list[str] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)
    """Version and reason."""

    async def list_aliases(self, artifact: str) -> Any:
        if not self.current:
            raise NotFound(artifact)
        alias = SimpleNamespace(name=ALIAS, version=self.current, etag=f"of {self.current}")
        return SimpleNamespace(aliases=[alias])

    async def list_alias_changes(self, alias: str) -> AsyncIterator[Any]:
        assert alias == ALIAS
        for found, reason in self.changes:
            yield SimpleNamespace(version=found, reason=reason)

    async def set_alias(self, alias: str, to: str, *, etag: str, reason: str) -> None:
        if self.others:
            self.move(self.others.pop(0), "somebody else")
        if etag != (f"of {self.current}" if self.current else ""):
            raise Aborted("the alias was moved meanwhile")
        self.move(to, reason)

    def move(self, to: str, reason: str) -> None:
        self.current = to
        self.changes.append((to, reason))


async def promote(registry: Registry, number: int, compared: str = "", only_if_better: bool = False) -> str:
    plan = TuningPlan("scratches", MODEL, MODEL, None, TuningMethod.LORA, TuningOptions(), "production", only_if_better)
    known = ModelRef(compared, "0" * 64) if compared else None
    return await ClientModels(cast(Any, registry)).promote(plan, version(number), "tuningJobs/1", known)


async def test_an_alias_that_others_moved_meanwhile_is_moved_from_where_it_is_now() -> None:
    registry = Registry(version(1), others=[version(2), version(3)])
    assert await promote(registry, 4) == f"moved {ALIAS} to {version(4)}"
    assert [to for to, _ in registry.changes] == [version(2), version(3), version(4)]


async def test_an_alias_that_others_made_meanwhile_is_moved_too() -> None:
    registry = Registry(others=[version(1)])
    assert await promote(registry, 2) == f"moved {ALIAS} to {version(2)}"


async def test_a_newer_version_stays_also_when_it_comes_meanwhile() -> None:
    for registry in (Registry(version(5)), Registry(version(1), others=[version(5)])):
        words = await promote(registry, 4)
        assert words == f"not promoted: {ALIAS} is already at {version(5)}, which is newer"
        assert registry.current == version(5)


@pytest.mark.parametrize("compared", ["", version(1)])
async def test_what_it_was_not_compared_with_stays(compared: str) -> None:
    registry = Registry(version(2))
    words = await promote(registry, 4, compared, only_if_better=True)
    assert words == f"not promoted: {ALIAS} names {version(2)}, which it was not compared with"
    assert registry.changes == []


async def test_what_it_was_compared_with_is_replaced_unless_moved_meanwhile() -> None:
    registry = Registry(version(2))
    assert (await promote(registry, 4, version(2), only_if_better=True)).startswith("moved ")
    registry = Registry(version(2), others=[version(3)])
    words = await promote(registry, 4, version(2), only_if_better=True)
    assert words == f"not promoted: {ALIAS} names {version(3)}, which it was not compared with"
    assert registry.current == version(3)


async def test_a_move_that_was_made_before_the_trainer_died_is_not_made_again() -> None:
    registry = Registry(version(1))
    await promote(registry, 4)
    registry.move(version(1), "a rollback")
    assert await promote(registry, 4) == f"moved {ALIAS} to {version(4)}"
    assert registry.current == version(1), "what somebody rolled back stays rolled back"


async def test_an_alias_that_never_rests_is_left_for_another_try() -> None:
    registry = Registry(version(1), others=[version(number % 3 + 1) for number in range(1, 51)])
    with pytest.raises(Unavailable, match="moved by others 10 times"):
        await promote(registry, 4)
