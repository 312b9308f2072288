"""From scores to figures and tables, against arithmetic by hand."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vplab.evaluation.plot import plot_shots, plot_tuned
from vplab.evaluation.results import Results
from vplab.evaluation.scores import ClassScore, ClickScore, ShotScore, StepScore
from vplab.evaluation.splits import Splits
from vplab.evaluation.summary import (
    image_scores,
    summarize_clicks,
    summarize_learned_clicks,
    summarize_shots,
    summarize_tunings,
)
from vplab.evaluation.tables import paper_tables, tables_of
from vplab.evaluation.values import Tuning

SPLITS = Splits(("a", "b"), {0: ("x",), 1: ("y",)})


def shot(method: str, k: int, seed: int, image: str, intersection: int, union: int, truth: int) -> ShotScore:
    boundary = intersection / union if truth else None
    classes = (ClassScore(1, intersection, union, truth, boundary), ClassScore(0, 50, 100, 60, None))
    return ShotScore(method, k, seed, image, classes, 0.5)


def results(tmp_path: Path, *scores: ShotScore | ClickScore) -> Results:
    found = Results.open(tmp_path / "j", {})
    for score in scores:
        found.add_shot(score) if isinstance(score, ShotScore) else found.add_click(score)
    found.lines.close()
    return found


def four(method: str, k: int) -> list[ShotScore]:
    """Two seeds; image b does not show the class, and what is found on it counts only in the pooled IoU."""
    return [
        shot(method, k, 0, "a", 30, 40, 35),
        shot(method, k, 0, "b", 0, 10, 0),
        shot(method, k, 1, "a", 20, 40, 35),
        shot(method, k, 1, "b", 0, 0, 0),
    ]


def test_pooled_iou_counts_false_alarms_and_the_mean_of_images_does_not(tmp_path: Path) -> None:
    found = summarize_shots(results(tmp_path, *four("m", 1)), SPLITS, [1])["m"]["1"]
    assert found["iou"]["seeds"] == {"0": 30 / 50, "1": 20 / 40}
    assert found["iou"]["mean"] == pytest.approx(0.55)
    assert found["iou"]["std"] == pytest.approx(np.std([0.6, 0.5], ddof=1), abs=1e-5)
    assert found["image_iou"]["seeds"] == {"0": 30 / 40, "1": 20 / 40}
    assert found["miou_with_background"]["seeds"] == {"0": (0.6 + 0.5) / 2, "1": 0.5}
    assert found["boundary_f"]["seeds"] == {"0": 0.75, "1": 0.5}
    assert found["classes"]["1"]["iou"]["mean"] == pytest.approx(0.55)


def test_a_seed_counts_only_when_it_is_whole(tmp_path: Path) -> None:
    found = summarize_shots(results(tmp_path, *four("m", 1)[:3]), SPLITS, [1])["m"]["1"]
    assert found["num_seeds"] == 1
    assert found["iou"] == {"mean": 0.6, "std": None, "seeds": {"0": 0.6}}
    (tmp_path / "j").unlink()
    assert summarize_shots(results(tmp_path, four("m", 1)[0]), SPLITS, [1]) == {}


def test_figures_of_clicks_have_the_standard_error_over_objects(tmp_path: Path) -> None:
    scores = [
        ClickScore("s", 1, name, (StepScore("box", iou, iou), StepScore("1", 0.5, 0.5)))
        for name, iou in (("a", 0.6), ("b", 0.8))
    ]
    scores.append(ClickScore("s", 1, "c", ()))  # no object there
    found = summarize_clicks(
        results(tmp_path, *scores), lambda method, k, seed: [(method, k, seed, 1, name) for name in "abc"]
    )
    assert found["s"]["box"]["iou"] == {"mean": 0.7, "sem": pytest.approx(0.1)}
    assert found["s"]["num_objects"] == 2
    assert set(found["s"]) >= {"box", "1"}
    assert "3" not in found["s"]


def test_a_method_that_is_not_through_has_no_figures_of_clicks(tmp_path: Path) -> None:
    score = ClickScore("s", 1, "a", (StepScore("box", 0.5, 0.5),))
    assert (
        summarize_clicks(
            results(tmp_path, score), lambda method, k, seed: [(method, k, seed, 1, name) for name in "ab"]
        )
        == {}
    )


def test_images_are_rated_worst_first_and_without_those_that_show_nothing() -> None:
    rated = image_scores([*four("m", 1), shot("m", 1, 0, "c", 1, 10, 5)])
    assert [(round(value, 2), score.image) for value, score in rated] == [(0.1, "c"), (0.5, "a"), (0.75, "a")]


def summary(tmp_path: Path) -> dict[str, Any]:
    found = results(
        tmp_path,
        *four("good", 1),
        *four("good", 5),
        *(shot("poor", 1, seed, image, 1, 10, 9) for seed in (0, 1) for image in "ab"),
        ClickScore("s", 1, "a", (StepScore("box", 0.5, 0.25),)),
    )
    keys = lambda method, k, seed: [(method, k, seed, 1, "a")]  # noqa: E731
    clicks = summarize_clicks(found, keys)
    return {"shots": summarize_shots(found, SPLITS, [1]), "clicks": clicks, "tuned": {}, "tunings": {}}


def test_tables_mark_the_best_and_leave_gaps(tmp_path: Path) -> None:
    made = summary(tmp_path)
    tables = tables_of(json.loads(json.dumps(made)))
    assert [table.title for table in tables][::4] == ["Foreground IoU over shots", "Mean IoU of a marked object"]
    assert tables[0].to_markdown().splitlines()[2:] == [
        "| method | 1 | 5 |",
        "|---|--:|--:|",
        "| good | **55.0 ± 7.1** | **55.0 ± 7.1** |",
        "| poor | 10.0 ± 0.0 | - |",
    ]
    assert tables[4].to_markdown().splitlines()[-1] == "| s | **50.0** | - | - | - |"


def test_the_plot_is_a_picture_with_a_line_for_each_method(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the evaluation extra")
    picture = np.asarray(Image.open(io.BytesIO(plot_shots(summary(tmp_path), "set"))).convert("RGB")).astype(int)
    # matplotlib's first two colours.
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (np.abs(picture - colour).max(-1) < 8).sum() > 50


def marked(method: str, k: int, seed: int, iou: float) -> list[ClickScore]:
    """Two objects around a mean; image c shows none."""
    steps = [tuple(StepScore(s, iou + d, 0.5) for s in ("box", "1", "3", "5")) for d in (-0.1, 0.1)]
    return [ClickScore(method, 1, n, steps[i], {}, "", k, seed) for i, n in enumerate("ab")] + [
        ClickScore(method, 1, "c", (), {}, "", k, seed)
    ]


def keys(method: str, k: int, seed: int) -> list[tuple[str, int, int, int, str]]:
    return [(method, k, seed, 1, name) for name in "abc"]


def tuned_summary(tmp_path: Path) -> dict[str, Any]:
    found = results(
        tmp_path,
        *marked("segmenter", 0, 0, 0.5),
        *(score for seed, iou in ((0, 0.6), (1, 0.7)) for score in marked("e-peft", 5, seed, iou)),
        *(score for seed, iou in ((0, 0.8), (1, 0.9)) for score in marked("e-peft", 20, seed, iou)),
        *marked("hq-token", 5, 0, 0.4),
        *four("softmatch", 0),
        *(shot("softmatch+e-peft", 5, seed, name, 9, 10, 9) for seed in (0, 1) for name in "ab"),
    )
    for method, seed, wall_s in (("e-peft", 0, 10.0), ("e-peft", 1, 20.0), ("hq-token", 0, 30.0)):
        size = 195_960 if method == "e-peft" else 1_071_104
        metrics = {"seconds_train": wall_s - 5}
        found.tunings[method, 5, seed] = Tuning(method, 5, seed, "a", "d", size, 4 * size, 9_000_000, wall_s, metrics)
    return {
        "shots": summarize_shots(found, SPLITS, [1]),
        "clicks": summarize_clicks(found, keys),
        "tuned": summarize_learned_clicks(found, keys, (0, 1)),
        "tunings": summarize_tunings(found),
        "num_all": 20,
    }


def test_the_spread_of_tuned_clicks_is_over_seeds_and_a_seed_counts_when_whole(tmp_path: Path) -> None:
    made = tuned_summary(tmp_path)
    five = made["tuned"]["e-peft"]["5"]
    assert five["box"]["iou"]["seeds"] == {"0": 0.6, "1": 0.7}
    assert five["box"]["iou"]["mean"] == pytest.approx(0.65)
    assert (five["num_objects"], five["num_seeds"]) == (2, 2)
    assert made["tuned"]["hq-token"]["5"]["num_seeds"] == 1
    assert set(made["clicks"]) == {"segmenter"}
    half = results(tmp_path / "half", *marked("e-peft", 5, 0, 0.6)[:2])
    assert summarize_learned_clicks(half, keys, (0, 1)) == {}


def test_what_tunings_took_is_the_median_over_their_jobs(tmp_path: Path) -> None:
    made = tuned_summary(tmp_path)["tunings"]["e-peft"]
    assert (made["num_parameters"], made["adapter_bytes"]) == (195_960, 783_840)
    assert made["shots"]["5"] == {"num_jobs": 2, "wall_s": 15.0, "seconds_train": 10.0}


def test_a_tuned_matcher_without_a_shot_has_its_matcher_s_figures(tmp_path: Path) -> None:
    shots = tuned_summary(tmp_path)["shots"]
    assert list(shots["softmatch+e-peft"]) == ["0", "5"]
    assert shots["softmatch+e-peft"]["0"] == shots["softmatch"]["0"]


def test_the_paper_s_tables_start_with_the_segmenter_and_end_with_the_gain(tmp_path: Path) -> None:
    full, few, matching = paper_tables(json.loads(json.dumps(tuned_summary(tmp_path))))
    assert "all images that are not tested" in full.title
    assert all("; hq-token is HQ-SAM without its early feature" in table.title for table in (full, few))
    fused = tuned_summary(tmp_path / "fused")
    fused["tunings"]["hq-token"]["shots"]["5"]["early_channels"] = 384.0
    assert not any("early feature" in table.title for table in paper_tables(fused))
    assert full.to_markdown().splitlines()[2:] == [
        "| method | parameters | stored | box | 1 click | 3 clicks | 5 clicks |",
        "|---|--:|--:|--:|--:|--:|--:|",
        "| segmenter | 0 | - | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| e-peft | 195,960 | 784 kB | " + " | ".join(["**85.0 ± 7.1**"] * 4) + " |",
        "| hq-token | 1,071,104 | 4,284 kB | - | - | - | - |",
    ]
    assert few.columns == ("5 shots: box", "5 shots: 1 click")
    assert few.to_markdown().splitlines()[4:] == [
        "| segmenter | 50.0 | 50.0 |",
        "| e-peft | **65.0 ± 7.1** | **65.0 ± 7.1** |",
        "| hq-token | 40.0 | 40.0 |",
    ]
    assert matching.columns == ("0", "5", "gain at 5")
    # 90 of 55 per cent.
    assert matching.to_markdown().splitlines()[-1].endswith("| **90.0 ± 0.0** | +64 |")


def test_the_plot_of_tuned_methods_has_a_colour_for_each(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the evaluation extra")
    picture = np.asarray(Image.open(io.BytesIO(plot_tuned(tuned_summary(tmp_path), "set"))).convert("RGB")).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14)):
        assert (np.abs(picture - colour).max(-1) < 8).sum() > 50
