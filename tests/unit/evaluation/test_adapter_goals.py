"""The bench script of adapters averages over the sets that have everything, and compares only what is equal."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
OTHERS = ("lora", "ia3", "prompt-tokens", "image-context", "hq-token", "full-decoder")


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("adapters")


def figures(mean: float) -> dict[str, Any]:
    return {"iou": {"mean": mean, "std": 0.01}, "num_failed": 0}


def results(*, ours: float = 0.6, others: float = 0.5, before: float = 0.2, after: float = 0.4) -> dict[str, Any]:
    """A ``results.json``; a box gives a tenth more than a click."""

    def marked(mean: float) -> dict[str, Any]:
        steps = {"box": figures(mean + 0.1), "1": figures(mean)}
        return {"1": {**steps, "num_failed": 0}, "5": {**steps, "num_failed": 0}}

    sizes = {"num_parameters": 195_960, "adapter_bytes": 791_000, "version_bytes": 9_000_000}
    took = {"num_jobs": 3, "wall_s": 30.0, "seconds_train": 25.0}
    model = {"name": "artifacts/nano-segmenter/versions/1", "digest": "d" * 64}
    return {
        "clicks": {"segmenter": {"box": figures(0.4), "1": figures(0.3)}},
        "tuned": {"e-peft": marked(ours), **{name: marked(others) for name in OTHERS}},
        "tunings": {"e-peft": {**sizes, "shots": {"5": took}}},
        "shots": {
            "softmatch": {"0": figures(before), "5": figures(0.3)},
            "softmatch+e-peft": {"0": figures(before), "5": figures(after)},
        },
        "settings": {"folder": "f", "segmenter": "", "tuning_steps": 9}, "num_all": 20, "num_seeds": 3,
        "models": {"segmenter": model}, "commit": "abc", "machine": "m", "num_test": 8,
        "folder": "/home/somebody/images",
    }  # fmt: skip


def comparators(*, forest: float, seeds: int = 3, folder: str = "f") -> dict[str, Any]:
    shots = {"random_forest": {"5": figures(forest)}, "unet": {"5": figures(0.1)}}
    return {"shots": shots, "settings": {"folder": folder, "segmenter": "other"}, "num_seeds": seeds, "commit": "old"}


def named(adapters: ModuleType, **by_task: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    tasks = {task.name.replace("-", "_"): task for task in adapters.TASKS}
    return {tasks[name]: result for name, result in by_task.items()}


def test_goals_are_judged_by_the_mean_over_the_sets(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results(ours=0.7), crackforest=results(ours=0.4))
    lines = adapters.marked_goals(found).splitlines()[2:]
    assert lines[0] == (
        "- met: e-peft above lora at five shots, mean of box and one click over 2 sets: 60.0 against 55.0, "
        "+5.0 ± 15.0 (box 65.0 and 60.0, 1 click 55.0 and 50.0)"
    )
    assert [line.startswith("- met") for line in lines[:7]] == [True] * 7
    worse = named(adapters, polypgen=results(ours=0.6), crackforest=results(ours=0.3))
    assert adapters.marked_goals(worse).splitlines()[2].startswith("- **not met**")


def test_a_set_without_one_of_two_methods_counts_for_neither(adapters: ModuleType) -> None:
    lacking = results(ours=0.9)
    del lacking["tuned"]["lora"]
    found = named(adapters, polypgen=results(ours=0.4), crackforest=lacking)
    line = adapters.marked_goals(found).splitlines()[2]
    assert line.startswith("- **not met**: e-peft above lora")
    assert "over 1 sets: 45.0 against 55.0, -10.0 (" in line, "one set tells nothing of the error"


def test_the_gain_is_that_of_the_averages(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results(before=0.3, after=0.4), crackforest=results(before=0.1, after=0.2))
    assert (
        "- met: five-shot softmatch+e-peft gains 50 % over no shot on average over 2 sets: 20.0 to 30.0, +50 % "
        "(median of the sets' own gains +67 %)" in adapters.matching_goals(found, {}).splitlines()
    )
    last = adapters.matching_table(found).splitlines()[-2:]
    assert last[0] == "| average | 20.0 | 30.0 | 30.0 |"
    assert last[1] == "| gain over 0 shots | +0 % | +50 % | +50 % |"


def test_most_sets_are_more_than_half(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results(), crackforest=results())
    beside = named(adapters, polypgen=comparators(forest=0.3), crackforest=comparators(forest=0.5))
    lines = adapters.matching_goals(found, beside).splitlines()
    assert lines[-2].startswith("- **not met**: five-shot softmatch+e-peft above the five-shot random_forest")
    assert "1 of 2; not on crackforest: crack (random_forest)" in lines[-2]
    assert lines[-1].startswith("- met: five-shot softmatch+e-peft above the five-shot unet on most sets: 2 of 2")


def test_comparators_of_other_images_or_seeds_are_refused(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results())
    adapters.refuse_unequal(found, named(adapters, polypgen=comparators(forest=0.3)))
    for other, what in ((comparators(forest=0.3, folder="g"), "folder"), (comparators(forest=0.3, seeds=2), "seeds")):
        with pytest.raises(SystemExit, match=f"polypgen: the comparators were measured with another {what}"):
            adapters.refuse_unequal(found, named(adapters, polypgen=other))


def test_the_table_names_sizes_and_the_row_before_tuning(adapters: ModuleType) -> None:
    full = results()
    full["tuned"]["e-peft"]["20"] = {"box": figures(0.9), "1": figures(0.8), "num_failed": 0}
    found = named(adapters, polypgen=full)
    head, _, before, ours, lora, *_ = adapters.marked_table(found).splitlines()[2:]
    assert head.endswith("| 1 shot: box | 1 shot: 1 click | 5 shots: box | 5 shots: 1 click | all images: box | "
                         "all images: 1 click |")  # fmt: skip
    assert before.startswith("| before tuning | 0 | 0 | 40.0 | 30.0 |")
    assert ours.startswith("| e-peft | 195,960 | 791 | **70.0** | **60.0** |")
    assert lora.startswith("| lora |")
    assert "5 images: 30.0 s (train 25.0)" in adapters.jobs(found)


def test_the_summary_of_marked_objects_says_what_our_method_brings(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results(ours=0.7), crackforest=results(ours=0.5))
    assert adapters.marked_summary(found).splitlines() == [
        "| mean IoU over 2 sets, % | before | 1 shot | 5 shots |",
        "|---|--:|--:|--:|",
        "| box | 40.0 | 70.0 | 70.0 |",
        "| 1 click | 30.0 | 60.0 | 60.0 |",
    ]


def test_the_summary_of_matching_stands_beside_what_else_learned(adapters: ModuleType) -> None:
    found = named(adapters, polypgen=results(), crackforest=results(before=0.4, after=0.6))
    beside = named(adapters, polypgen=comparators(forest=0.2), crackforest=comparators(forest=0.4))
    assert adapters.matching_summary(adapters.with_rivals(found, beside)).splitlines()[2:] == [
        "| softmatch | 30.0 | 30.0 |",
        "| softmatch+e-peft |  | 50.0 |",
        "| random_forest |  | 30.0 |",
        "| unet |  | 10.0 |",
    ]


def test_what_was_measured_before_stays_beside_what_is_measured_now(
    adapters: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(adapters, "KEPT", tmp_path / "kept.json")
    before = adapters.with_rivals(
        named(adapters, polypgen=results(others=0.7)), named(adapters, polypgen=comparators(forest=0.2))
    )
    adapters.keep(adapters.with_kept(before, {}))
    assert "/home/" not in adapters.KEPT.read_text()
    now = results(ours=0.8)
    now["tuned"], now["commit"] = {"e-peft": now["tuned"]["e-peft"]}, "new"
    (joined,) = adapters.with_kept(named(adapters, polypgen=now), adapters.read_kept()).values()
    assert joined["tuned"]["e-peft"]["5"]["1"]["iou"]["mean"] == 0.8
    assert joined["tuned"]["lora"]["5"]["1"]["iou"]["mean"] == 0.7
    assert joined["commits"] | {"e-peft": "new", "lora": "abc", "random_forest": "old"} == joined["commits"]
    assert "new (" in joined["commit"]


@pytest.mark.parametrize(("change", "stays"), [("models", {"random_forest", "unet"}), ("settings", set())])
def test_figures_of_other_models_or_images_are_not_shown(adapters: ModuleType, change: str, stays: set[str]) -> None:
    rivals = named(adapters, polypgen=comparators(forest=0.2))
    kept = adapters.with_kept(adapters.with_rivals(named(adapters, polypgen=results()), rivals), {})
    now = results() | {"tuned": {}, "tunings": {}, "shots": {}}
    now[change] = now[change] | {"folder": "g", "segmenter": {"digest": "e" * 64}}
    (joined,) = adapters.with_kept(named(adapters, polypgen=now), kept).values()
    assert set(joined["tuned"]) == set()
    assert set(joined["shots"]) == stays
