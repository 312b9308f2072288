"""Methods by name: our own through the services, and the comparators.

A tuning method such as ``e-peft`` marks objects with what it learned; ``MATCHER+ADAPTER``, such as
``softmatch+e-peft``, matches with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vplab.client.segmentation.values import MatcherName
from vplab.errors import InvalidInput, Unimplemented
from vplab.evaluation.comparators import CLICK_METHODS, SHOT_METHODS
from vplab.evaluation.ports import ClickMethod, LearningClickMethod, ShotMethod
from vplab.evaluation.served import ServedClicks, ServedMatcher, Services
from vplab.evaluation.tuned import ADAPTERS, TunedClicks, TunedMatcher, Tuner

Method = TypeVar("Method")

MATCHERS: dict[str, MatcherName] = {"softmatch": "softmatch", "prototype": "prototype", "graph": "graph"}
SEGMENTER = "segmenter"
"""The interactive method that is PredictMasks."""
_PLUS = "+"


def shot_method_names() -> tuple[str, ...]:
    """Return the methods that learn from shots."""
    return (*MATCHERS, *SHOT_METHODS)


def click_method_names() -> tuple[str, ...]:
    """Return the methods that take a box and clicks."""
    return (SEGMENTER, *CLICK_METHODS)


def adapter_names() -> tuple[str, ...]:
    """Return the tuning methods."""
    return tuple(ADAPTERS)


def parts_of(name: str) -> tuple[str, str] | None:
    """Return matcher and tuning method of ``MATCHER+ADAPTER``; None for any other name."""
    matcher, plus, adapter = name.partition(_PLUS)
    return (matcher, adapter) if plus and matcher in MATCHERS and adapter in ADAPTERS else None


@dataclass(frozen=True)
class MethodNames:
    """The methods of a run."""

    shot: tuple[str, ...]
    click: tuple[str, ...]
    is_chosen: bool
    """Whether somebody asked for exactly these; a default that is not installed is left out instead of refused."""
    tuned: tuple[str, ...] = ()
    """Tuning methods whose clicks are measured."""

    @property
    def are_tuned(self) -> bool:
        """Whether any of them needs the training service."""
        return bool(self.tuned) or any(parts_of(name) for name in self.shot)

    @property
    def are_served(self) -> bool:
        """Whether any of them needs the services."""
        return SEGMENTER in self.click or any(name in MATCHERS for name in self.shot) or self.are_tuned


def choose_methods(names: Sequence[str] | None) -> MethodNames:
    """Return the methods of these names, in our order; without names all but the tuned ones, which take long.

    Raises InvalidInput for an unknown one.
    """
    known = (*shot_method_names(), *click_method_names())
    names = None if names is None else [_as_known(name) for name in names]
    for name in names or ():
        if name not in known and name not in ADAPTERS and parts_of(name) is None:
            words = f"{', '.join((*known, *ADAPTERS))}, nor a matcher with an adapter such as softmatch+e-peft"
            raise InvalidInput(f"{name!r} is none of {words}", field="--methods")
    wanted = known if names is None else names
    return MethodNames(
        (
            *(name for name in shot_method_names() if name in wanted),
            *dict.fromkeys(name for name in wanted if parts_of(name)),
        ),
        tuple(name for name in click_method_names() if name in wanted),
        names is not None,
        tuple(dict.fromkeys(name for name in wanted if name in ADAPTERS)),
    )


def _as_known(name: str) -> str:
    """Return a name in our spelling: the training service writes e_peft, comparators are random_forest."""
    spelt = {known.replace("_", "-"): known for known in (*shot_method_names(), *click_method_names(), *ADAPTERS)}
    return _PLUS.join(spelt.get(part.replace("_", "-"), part) for part in name.split(_PLUS))


def make_shot_method(name: str, services: Services | None, tuner: Tuner | None = None) -> ShotMethod:
    """Make a method. Raises Unimplemented naming the package that is missing."""
    if parts := parts_of(name):
        assert tuner is not None
        return TunedMatcher(name, MATCHERS[parts[0]], parts[1], tuner)
    if name in MATCHERS:
        assert services is not None
        return ServedMatcher(name, MATCHERS[name], services)
    return _installed(name, SHOT_METHODS[name])


def make_click_method(name: str, services: Services | None) -> ClickMethod:
    """Make a method. Raises Unimplemented naming the package that is missing."""
    if name == SEGMENTER:
        assert services is not None
        return ServedClicks(name, services)
    return _installed(name, CLICK_METHODS[name])


def make_learning_click_method(name: str, tuner: Tuner | None) -> LearningClickMethod:
    """Make the clicks of a tuning method."""
    assert tuner is not None
    return TunedClicks(name, tuner)


def _installed(name: str, make: Callable[[], Method]) -> Method:
    try:
        return make()
    except ImportError as error:
        message = f"{name} needs {error.name}: pip install 'vplab[evaluation,training]'"
        raise Unimplemented(message) from error
