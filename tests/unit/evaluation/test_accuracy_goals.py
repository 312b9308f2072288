"""The bench script counts goals right: what is met, on how many sets, and who is better where."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("accuracy")


def results(*, nano: float, grabcut: float, ours: float | None, forest: float | None) -> dict[str, Any]:
    """A ``results.json`` with one figure for each method, the same at every step and number of shots."""

    def over(methods: dict[str, float | None], steps: tuple[str, ...], spread: str) -> dict[str, Any]:
        return {
            name: {step: {key: {"mean": mean, spread: 0.01} for key in ("iou", "boundary_f")} | {"num_failed": 0}
                   for step in steps}
            for name, mean in methods.items() if mean is not None
        }  # fmt: skip

    clicks = {"segmenter": nano, "grabcut": grabcut, "random_walker": 0.1, "plain_box": 0.3}
    model = {"name": "artifacts/nano-segmenter/versions/1", "digest": "d" * 64}
    return {
        "clicks": over(clicks, ("box", "5"), "sem"),
        "shots": over({"softmatch": ours, "random_forest": forest}, ("1", "5"), "std"),
        "models": {"segmenter": model}, "commit": "abc", "machine": "m", "num_test": 8, "num_seeds": 3,
    }  # fmt: skip


def found(accuracy: ModuleType, **by_task: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    tasks = {task.name.replace("-", "_"): task for task in accuracy.TASKS}
    return {tasks[name]: results(**figures) for name, figures in by_task.items()}


def test_a_goal_for_every_set_is_missed_by_one_and_says_which(accuracy: ModuleType) -> None:
    good = found(
        accuracy,
        polypgen={"nano": 0.8, "grabcut": 0.5, "ours": 0.4, "forest": 0.1},
        nuclei_dsb={"nano": 0.7, "grabcut": 0.7, "ours": 0.5, "forest": 0.6},
    )
    lines = accuracy.goals(
        good, {"encode_ms": 50, "encode_cpu_ms": 90, "decode_ms": 25, "decode_cpu_ms": 40}
    ).splitlines()
    assert lines[2] == (
        "- **not met**: a box with nano above grabcut, random_walker, plain_box on every set: 1 of 2; "
        "not on nuclei_dsb: nucleus (grabcut)"
    )
    assert "five clicks" in lines[3]
    assert "1 of 2" in lines[3]
    assert lines[4].startswith("- **not met**: one-shot softmatch above")
    assert "1 of 2; not on nuclei_dsb: nucleus (random_forest)" in lines[4]
    assert "- met: polypgen: polyp, five shots: 40.0 against 8 of a random forest tried once" in lines
    assert "- met: nuclei_dsb: nucleus, five shots: 50.0 against 42 of a random forest tried once" in lines
    assert lines[-2].startswith("- met: encoding takes 50.0 ms")
    assert lines[-1].startswith("- **not met**: a click takes 25.0 ms")


def test_two_thirds_are_enough_for_the_one_shot_goal(accuracy: ModuleType) -> None:
    better = {"nano": 0.8, "grabcut": 0.5, "ours": 0.4, "forest": 0.1}
    three = found(accuracy, polypgen=better, crackforest=better, nuclei_dsb=better | {"forest": 0.9})
    line = next(line for line in accuracy.goals(three, None).splitlines() if "one-shot" in line)
    assert line.startswith("- met: ")
    assert "2 of 3" in line


def test_sets_where_something_was_not_measured_are_not_counted(accuracy: ModuleType) -> None:
    some = found(
        accuracy,
        polypgen={"nano": 0.8, "grabcut": 0.5, "ours": 0.4, "forest": 0.1},
        bsds500={"nano": 0.8, "grabcut": 0.5, "ours": None, "forest": None},
    )
    lines = accuracy.goals(some, None).splitlines()
    assert "2 of 2" in lines[2]
    assert "1 of 1" in lines[4]


def test_the_best_of_each_group_is_bold_in_its_row(accuracy: ModuleType) -> None:
    one = found(accuracy, crackforest={"nano": 0.8, "grabcut": 0.5, "ours": 0.1, "forest": 0.4})
    head, _, row = accuracy.interactive_table(one).splitlines()[2:]
    assert head.startswith("| images | box: nano-segmenter | box: grabcut |")
    assert row.startswith("| crackforest: crack | **80.0 ± 1.0** | 50.0 ± 1.0 |")
    assert row.count("**") == 4
    assert "| crackforest: crack | 10.0 ± 1.0 | **40.0 ± 1.0** | 10.0 ± 1.0 | **40.0 ± 1.0** |" in accuracy.shots_table(
        one
    )
    assert "crackforest" in accuracy.thin_table(one)


def test_every_held_out_list_that_is_named_exists(accuracy: ModuleType) -> None:
    for task in accuracy.TASKS:
        if task.is_natural:
            assert (accuracy.HELD_OUT / f"{task.folder}.txt").is_file()
    assert len({task.name for task in accuracy.TASKS}) == len(accuracy.TASKS)
    assert set(accuracy.EARLIER_FOREST) <= {task.name for task in accuracy.TASKS}
