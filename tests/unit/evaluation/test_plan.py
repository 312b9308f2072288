"""Which methods there are, and what is left out and why."""

from collections.abc import Callable

import pytest

from vplab.errors import InvalidInput, Unimplemented
from vplab.evaluation import methods
from vplab.evaluation.methods import choose_methods
from vplab.evaluation.plan import make_plan
from vplab.evaluation.ports import ClickMethod
from vplab.evaluation.splits import Splits

SPLITS = Splits(("t",), {0: ("a", "b", "c"), 1: ("c", "a", "b")})


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


def test_an_unknown_name_is_refused_with_those_known() -> None:
    with pytest.raises(InvalidInput, match="'sam' is none of softmatch"):
        choose_methods(["sam"])


def test_methods_that_need_a_validated_image_are_left_out_of_zero_shots() -> None:
    pytest.importorskip("sklearn", reason="comparators need the evaluation extra")
    plan = make_plan(choose_methods(["random_forest"]), (0, 1, 3, 4), SPLITS, None, is_segments=False)
    assert [(number, seed) for _, number, seed in plan.shots] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert [skipped.num_shots for skipped in plan.skipped] == [0, 4]
    assert "validated image" in plan.skipped[0].reason
    assert "3 images that show every class" in plan.skipped[1].reason


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
