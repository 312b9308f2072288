"""Methods by name: our own through the services, and the comparators.

A tuned adapter will be ``MATCHER+ADAPTER``, such as ``softmatch+e-peft``: tune on the shots, then match with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vplab.client.segmentation.values import MatcherName
from vplab.errors import InvalidInput, Unimplemented
from vplab.evaluation.comparators import CLICK_METHODS, SHOT_METHODS
from vplab.evaluation.ports import ClickMethod, ShotMethod
from vplab.evaluation.served import ServedClicks, ServedMatcher, Services

Method = TypeVar("Method")

MATCHERS: dict[str, MatcherName] = {"softmatch": "softmatch", "prototype": "prototype", "graph": "graph"}
SEGMENTER = "segmenter"
"""The interactive method that is PredictMasks."""


def shot_method_names() -> tuple[str, ...]:
    """Return the methods that learn from shots."""
    return (*MATCHERS, *SHOT_METHODS)


def click_method_names() -> tuple[str, ...]:
    """Return the methods that take a box and clicks."""
    return (SEGMENTER, *CLICK_METHODS)


@dataclass(frozen=True)
class MethodNames:
    """The methods of a run."""

    shot: tuple[str, ...]
    click: tuple[str, ...]
    is_chosen: bool
    """Whether somebody asked for exactly these; a default that is not installed is left out instead of refused."""

    @property
    def are_served(self) -> bool:
        """Whether any of them needs the services."""
        return SEGMENTER in self.click or any(name in MATCHERS for name in self.shot)


def choose_methods(names: Sequence[str] | None) -> MethodNames:
    """Return the methods of these names, in our order; all without names. Raises InvalidInput for an unknown one."""
    known = (*shot_method_names(), *click_method_names())
    for name in names or ():
        if name not in known:
            raise InvalidInput(f"{name!r} is none of {', '.join(known)}", field="--methods")
    wanted = known if names is None else names
    return MethodNames(
        tuple(name for name in shot_method_names() if name in wanted),
        tuple(name for name in click_method_names() if name in wanted),
        names is not None,
    )


def make_shot_method(name: str, services: Services | None) -> ShotMethod:
    """Make a method. Raises Unimplemented naming the package that is missing."""
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


def _installed(name: str, make: Callable[[], Method]) -> Method:
    try:
        return make()
    except ImportError as error:
        message = f"{name} needs {error.name}: pip install 'vplab[evaluation,training]'"
        raise Unimplemented(message) from error
