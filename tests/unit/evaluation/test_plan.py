"""Which methods there are, and what is left out and why."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vplab.client import Client
from vplab.errors import InvalidInput, Unimplemented
from vplab.evaluation import methods
from vplab.evaluation.methods import choose_methods
from vplab.evaluation.plan import Plan, make_plan
from vplab.evaluation.ports import ClickMethod
from vplab.evaluation.results import Results
from vplab.evaluation.served import Services
from vplab.evaluation.splits import Splits
from vplab.evaluation.tuned import Tuner

SPLITS = Splits(("t",), {0: ("a", "b", "c"), 1: ("c", "a", "b")}, others=("d",))


@pytest.fixture
def tuner(tmp_path: Path) -> Iterator[Tuner]:
    """A tuner that nobody asks for anything."""
    with Client("127.0.0.1:1") as client, Results.open(tmp_path / "j", {}) as results:
        yield Tuner(Services(client, lambda name: b""), results)


def planned(plan: Plan) -> tuple[list[str], list[tuple[str, int, int]], list[tuple[str, int, int]]]:
    """The names of clicks, and what is tuned and learned by name, number of shots and seed."""
    named = [[(method.name, number, seed) for method, number, seed in steps] for steps in (plan.tuned, plan.shots)]
    return [method.name for method in plan.clicks], named[0], named[1]


def missing(package: str) -> Callable[[], ClickMethod]:
    def make() -> ClickMethod:
        raise ImportError(f"no {package}", name=package)

    return make


def test_every_method_is_meant_without_names() -> None:
    names = choose_methods(None)
    assert set(names.shot) >= {"softmatch", "prototype", "graph", "random_forest", "unet"}
    assert set(names.click) >= {"segmenter", "plain_box", "grabcut", "random_walker"}
    assert names.are_served


def test_names_choose_methods_of_both_kinds() -> None:
    names = choose_methods(["plain_box", "random_forest"])
    assert (names.shot, names.click, names.are_served) == (("random_forest",), ("plain_box",), False)


def test_both_spellings_of_a_name_are_the_same_method() -> None:
    names = choose_methods(["e_peft", "random-forest", "softmatch+e_peft", "plain-box"])
    assert names == choose_methods(["e-peft", "random_forest", "softmatch+e-peft", "plain_box"])


def test_an_unknown_name_is_refused_with_those_known() -> None:
    with pytest.raises(InvalidInput, match="'sam' is none of softmatch"):
        choose_methods(["sam"])


def test_methods_that_need_a_validated_image_are_left_out_of_zero_shots() -> None:
    pytest.importorskip("sklearn", reason="comparators need the evaluation extra")
    plan = make_plan(choose_methods(["random_forest"]), (0, 1, 3, 5), SPLITS, None, is_segments=False)
    assert [(number, seed) for _, number, seed in plan.shots] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert [skipped.num_shots for skipped in plan.skipped] == [0, 5]
    assert "validated image" in plan.skipped[0].reason
    assert "3 images that show a class" in plan.skipped[1].reason


def test_segments_without_a_meaning_have_no_shots() -> None:
    plan = make_plan(choose_methods(["plain_box", "random_forest"]), (1,), SPLITS, None, is_segments=True)
    assert [method.name for method in plan.clicks] == ["plain_box"]
    assert not plan.shots


def test_a_method_that_is_not_installed_is_left_out_unless_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.CLICK_METHODS, "grabcut", missing("cv3"))
    chosen = choose_methods(["grabcut"])
    with pytest.raises(Unimplemented, match=r"grabcut needs cv3: pip install 'vplab\[evaluation,training\]'"):
        make_plan(chosen, (1,), SPLITS, None, is_segments=True)
    everything = methods.MethodNames((), ("plain_box", "grabcut"), is_chosen=False)
    plan = make_plan(everything, (1,), SPLITS, None, is_segments=True)
    assert [method.name for method in plan.clicks] == ["plain_box"]
    assert [(skipped.method, skipped.num_shots) for skipped in plan.skipped] == [("grabcut", None)]


def test_adapters_are_named_as_the_tuning_methods_are_and_measured_only_when_named() -> None:
    names = choose_methods(["softmatch+e-peft", "hq-token", "graph+lora", "e-peft"])
    assert (names.shot, names.click, names.tuned) == (("softmatch+e-peft", "graph+lora"), (), ("hq-token", "e-peft"))
    assert names.are_served
    assert names.are_tuned
    everything = choose_methods(None)
    assert not everything.are_tuned
    assert choose_methods(["e-peft-paper"]).tuned == ("e-peft-paper",)
    for wrong in ("softmatch+magic", "random_forest+e-peft", "softmatch+", "e_pft"):
        with pytest.raises(InvalidInput, match="nor a matcher with an adapter such as"):
            choose_methods([wrong])


def test_without_a_shot_a_tuned_method_is_the_untuned_one(tuner: Tuner) -> None:
    names = choose_methods(["softmatch+e-peft", "softmatch+lora", "e-peft"])
    plan = make_plan(names, (0, 2), SPLITS, tuner.services, tuner, is_segments=False)
    clicks, tuned, shots = planned(plan)
    assert clicks == ["segmenter"]
    assert tuned == [("e-peft", 2, 0), ("e-peft", 2, 1)]
    assert shots == [
        ("softmatch", 0, 0), ("softmatch", 0, 1),
        *((f"softmatch+{adapter}", 2, seed) for adapter in ("e-peft", "lora") for seed in (0, 1)),
    ]  # fmt: skip
    assert not plan.skipped


def test_what_is_asked_for_anyway_is_measured_once(tuner: Tuner) -> None:
    names = choose_methods(["segmenter", "softmatch", "softmatch+e-peft", "e-peft"])
    clicks, _, shots = planned(make_plan(names, (0, 1), SPLITS, tuner.services, tuner, is_segments=False))
    assert clicks == ["segmenter"]
    assert shots.count(("softmatch", 0, 0)) == 1


def test_all_images_are_a_number_of_shots_and_what_lies_between_is_left_out(tuner: Tuner) -> None:
    assert (SPLITS.num_all, SPLITS.shots_of(1, 4), SPLITS.shots_of(1, 0)) == (4, ("c", "a", "b", "d"), ("c",))
    many = Splits(("t",), {0: tuple(f"{number}" for number in range(70))}, others=("x", "y"))
    plan = make_plan(
        choose_methods(["e-peft", "softmatch+e-peft"]), (64, 71, 72), many, tuner.services, tuner, is_segments=False
    )
    _, tuned, shots = planned(plan)
    assert [number for _, number, _ in tuned] == [64, 72]
    assert [number for _, number, _ in shots] == [64]
    reasons = {(skipped.method, skipped.num_shots): skipped.reason for skipped in plan.skipped}
    assert "70 images that show a class" in reasons["e-peft", 71]
    assert "64 references" in reasons["softmatch+e-peft", 72]


def test_segments_without_a_meaning_cannot_be_tuned_to(tuner: Tuner) -> None:
    plan = make_plan(choose_methods(["e-peft"]), (0, 1), SPLITS, tuner.services, tuner, is_segments=True)
    assert planned(plan) == ([], [], [])
