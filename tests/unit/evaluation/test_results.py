"""Results on disk: what a later run finds there."""

from pathlib import Path

import pytest

from vplab.errors import FailedPrecondition
from vplab.evaluation.results import Results
from vplab.evaluation.scores import ClassScore, ClickScore, ShotScore, StepScore
from vplab.evaluation.values import Tuning

SHOT = ShotScore("softmatch", 5, 1, "a", (ClassScore(1, 10, 20, 15, 0.5), ClassScore(0, 80, 90, 85, None)), 0.25)
CLICK = ClickScore("segmenter", 1, "a", (StepScore("box", 0.75, 0.5), StepScore("1", 0.5, 0.25)), {"box": 0.01})


def test_scores_are_read_back(tmp_path: Path) -> None:
    with Results.open(tmp_path / "j", {"max_test": 4}) as results:
        results.add_shot(SHOT)
        results.add_click(CLICK)
        results.add_fit("softmatch", 5, 1, 1.5)
        results.note_model("segmenter", "artifacts/s/versions/1", "d1")
    with Results.open(tmp_path / "j", {"max_test": 4}) as again:
        assert again.shots == {("softmatch", 5, 1, "a"): SHOT}
        assert again.clicks == {("segmenter", 0, 0, 1, "a"): CLICK}
        assert again.fit_s == {("softmatch", 5, 1): 1.5}
        assert again.models == {"segmenter": {"name": "artifacts/s/versions/1", "digest": "d1"}}


def test_a_failure_is_no_answer_until_a_later_line_is_one(tmp_path: Path) -> None:
    key = ("softmatch", 5, 1, "a")
    with Results.open(tmp_path / "j", {}) as results:
        results.add_shot(ShotScore(*key, SHOT.classes, error="broken"))
        assert not results.has_shot(key)
        results.add_shot(SHOT)
    with Results.open(tmp_path / "j", {}) as again:
        assert again.has_shot(key)


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    Results.open(tmp_path / "j", {"max_test": 4}).lines.close()
    with pytest.raises(FailedPrecondition, match="max_test: 4 then, 5 now"):
        Results.open(tmp_path / "j", {"max_test": 5})


def test_figures_of_two_versions_of_a_model_are_never_mixed(tmp_path: Path) -> None:
    with Results.open(tmp_path / "j", {}) as results:
        results.note_model("segmenter", "artifacts/s/versions/1", "d1")
    with Results.open(tmp_path / "j", {}) as again:
        again.note_model("segmenter", "artifacts/s/versions/1", "d1")
        with pytest.raises(FailedPrecondition, match="the segmenter was artifacts/s/versions/1"):
            again.note_model("segmenter", "artifacts/s/versions/2", "d2")


@pytest.mark.parametrize("cut", range(1, 80, 13))
def test_a_line_that_a_kill_cut_short_is_measured_again(tmp_path: Path, cut: int) -> None:
    with Results.open(tmp_path / "j", {}) as results:
        results.add_click(CLICK)
        results.add_shot(SHOT)
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes()[:-cut])
    with Results.open(tmp_path / "j", {}) as again:
        assert list(again.clicks) == [("segmenter", 0, 0, 1, "a")]
        assert not again.shots


def test_tunings_and_the_name_of_a_run_outlive_it(tmp_path: Path) -> None:
    tuning = Tuning("e-peft", 5, 1, "artifacts/x/versions/2", "d" * 64, 195_960, 800_000, 9_000_000, 12.5, {"a": 1.0})
    with Results.open(tmp_path / "j", {}) as results:
        run_id = results.begin_run()
        assert results.begin_run() == run_id
        results.add_tuning(tuning)
    with Results.open(tmp_path / "j", {}) as again:
        assert again.tunings == {("e-peft", 5, 1): tuning}
        assert again.begin_run() == run_id
        again.end_run()
        assert again.begin_run() != run_id


def test_figures_of_before_there_were_adapters_are_read(tmp_path: Path) -> None:
    line = {
        "kind": "click",
        "method": "segmenter",
        "class_id": 1,
        "image": "a",
        "steps": [],
        "seconds": {},
        "error": "",
    }
    with Results.open(tmp_path / "j", {}) as results:
        results.lines.append(line)
    with Results.open(tmp_path / "j", {}) as again:
        assert list(again.clicks) == [("segmenter", 0, 0, 1, "a")]
