"""What is to be measured, and what cannot be and why."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from vplab.errors import Unimplemented
from vplab.evaluation.methods import (
    MATCHERS,
    SEGMENTER,
    MethodNames,
    make_click_method,
    make_learning_click_method,
    make_shot_method,
    parts_of,
)
from vplab.evaluation.ports import ClickMethod, LearningClickMethod, ShotMethod
from vplab.evaluation.run import Measuring
from vplab.evaluation.served import MAX_REFERENCES, Services
from vplab.evaluation.splits import Splits
from vplab.evaluation.tuned import Tuner


@dataclass(frozen=True)
class Skipped:
    """Something that was asked for and has no figure."""

    method: str
    num_shots: int | None
    reason: str


@dataclass
class Plan:
    """The work of one command, in the order in which it is done."""

    clicks: list[ClickMethod] = field(default_factory=list)
    shots: list[tuple[ShotMethod, int, int]] = field(default_factory=list)
    """Method, number of shots, seed."""
    tuned: list[tuple[LearningClickMethod, int, int]] = field(default_factory=list)
    """Method, number of shots, seed."""
    skipped: list[Skipped] = field(default_factory=list)

    def run(self, measuring: Measuring, services: Services | None, on_method: Callable[[str], None]) -> None:
        """Measure everything that the results do not hold yet; ``on_method`` is told what begins."""
        with _one_blas_thread():
            for clicks in self.clicks:
                on_method(f"{clicks.name}, objects")
                measuring.measure_clicks(clicks)
            for learning, num_shots, seed in self.tuned:
                on_method(f"{learning.name}, {num_shots} shots, seed {seed}, objects")
                measuring.measure_learned_clicks(learning, num_shots, seed)
            for method, num_shots, seed in self.shots:
                on_method(f"{method.name}, {num_shots} shots, seed {seed}")
                measuring.measure_shots(method, num_shots, seed, None if services is None else services.propose)

    def count(self, measuring: Measuring) -> tuple[int, int]:
        """Return how many images there are to measure, and how many of them are done."""
        clicks = [key for method in self.clicks for key in measuring.click_keys(method.name)]
        clicks += [key for method, k, seed in self.tuned for key in measuring.click_keys(method.name, k, seed)]
        shots = [key for method, k, seed in self.shots for key in measuring.shot_keys(method.name, k, seed)]
        done = sum(map(measuring.results.has_click, clicks)) + sum(map(measuring.results.has_shot, shots))
        return len(clicks) + len(shots), done


def make_plan(
    names: MethodNames,
    num_shots: Sequence[int],
    splits: Splits,
    services: Services | None,
    tuner: Tuner | None = None,
    *,
    is_segments: bool,
) -> Plan:
    """Decide what can be measured. Raises Unimplemented for a chosen method that is not installed.

    A tuned method without a shot is the untuned one, which then is measured under its own name.
    """
    plan, counts = Plan(), sorted(set(num_shots))
    tuned, shots = ((), ()) if is_segments else (names.tuned, names.shot)
    untuned = {SEGMENTER} if tuned and 0 in counts else set()
    for name in (*names.click, *sorted(untuned - set(names.click))):
        try:
            plan.clicks.append(make_click_method(name, services))
        except Unimplemented as error:
            _skip_or_raise(plan, name, error, names)
    for name in tuned:
        learning = make_learning_click_method(name, tuner)
        for count in counts:
            if count and _has(plan, name, count, splits, is_served=False):
                plan.tuned += [(learning, count, seed) for seed in splits.shots]
    for name in shots:
        try:
            method = make_shot_method(name, services, tuner)
        except Unimplemented as error:
            _skip_or_raise(plan, name, error, names)
            continue
        for count in counts:
            if count < method.min_shots and (parts := parts_of(name)):
                method_there = make_shot_method(parts[0], services)
                if _has(plan, name, count, splits, is_served=True):
                    plan.shots += [(method_there, count, seed) for seed in splits.shots]
            elif count < method.min_shots:
                plan.skipped.append(Skipped(name, count, f"it learns from {method.min_shots} validated image at least"))
            elif _has(plan, name, count, splits, is_served=name in MATCHERS or parts_of(name) is not None):
                plan.shots += [(method, count, seed) for seed in splits.shots]
    plan.shots = list(
        {(method.name, count, seed): (method, count, seed) for method, count, seed in plan.shots}.values()
    )
    return plan


def _has(plan: Plan, name: str, count: int, splits: Splits, *, is_served: bool) -> bool:
    """Say whether there are so many shots, and note it if not. is_served: whether they have to be references."""
    if not splits.has(count):
        reason = f"{splits.num_candidates} images that show a class are left to learn from"
        if 0 < count < splits.num_needed:
            reason = f"no image shows every class: {splits.num_needed} shots at least do together"
        plan.skipped.append(Skipped(name, count, reason))
    elif is_served and count > MAX_REFERENCES:
        plan.skipped.append(Skipped(name, count, f"a prompt set has {MAX_REFERENCES} references at most"))
    else:
        return True
    return False


def _one_blas_thread() -> AbstractContextManager[object]:
    """Keep linear algebra to one thread: vectors are short here, and its threads spin while they wait for each other.

    On a busy machine of two cores the random walker took twenty times as long with two.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # without scikit-learn there is no comparator that computes like this
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _skip_or_raise(plan: Plan, name: str, error: Unimplemented, names: MethodNames) -> None:
    if names.is_chosen:
        raise error
    plan.skipped.append(Skipped(name, None, error.message))
