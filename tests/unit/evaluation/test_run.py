"""Measuring a method whose answers are known."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fakes.evaluation_folders import BoxClicks, BrightShots, LearningBoxes, write_pair, write_squares
from vplab.errors import Internal, InvalidInput, Unavailable
from vplab.evaluation.folder import FolderOptions, read_folder
from vplab.evaluation.results import Results
from vplab.evaluation.run import Measuring, click_prediction, shot_prediction
from vplab.evaluation.splits import make_splits
from vplab.evaluation.values import LabelledImage
from vplab.vision.label_images import read_labels


@pytest.fixture
def measuring(tmp_path: Path) -> Iterator[Measuring]:
    folder = read_folder(write_squares(tmp_path / "set", 20), FolderOptions())
    with Results.open(tmp_path / "journal.jsonl", {}) as results:
        yield Measuring(folder, make_splits(folder, 8, 2), results, tmp_path / "predictions")


def test_a_method_that_finds_everything_scores_full(measuring: Measuring) -> None:
    measuring.measure_shots(BrightShots(), 1, 0)
    assert len(measuring.results.shots) == 8
    for score in measuring.results.shots.values():
        for found in score.classes:
            assert found.intersection == found.union


def test_shots_are_nested_and_come_from_the_split(measuring: Measuring) -> None:
    method = BrightShots()
    measuring.measure_shots(method, 1, 1)
    measuring.measure_shots(method, 5, 1)
    (one, classes, seed), (five, _, _) = method.fitted
    assert one == five[:1] == measuring.splits.shots[1][:1]
    assert five == measuring.splits.shots[1][:5]
    assert (classes, seed) == ((1,), 1)
    assert set(method.seen) == set(measuring.splits.test)


def test_what_is_measured_is_not_fitted_again(measuring: Measuring) -> None:
    measuring.measure_shots(BrightShots(), 1, 0)
    again = BrightShots()
    measuring.measure_shots(again, 1, 0)
    assert not again.fitted
    assert not again.seen


@pytest.mark.parametrize("num_in_flight", [1, 3])
def test_a_run_that_breaks_off_goes_on_with_what_is_left(measuring: Measuring, num_in_flight: int) -> None:
    calls: list[str] = []

    def give_up(name: str) -> None:
        calls.append(name)
        if len(calls) == 4:
            raise Unavailable("the service went away")

    with pytest.raises(Unavailable):
        measuring.measure_shots(BrightShots(num_in_flight=num_in_flight, before=give_up), 1, 0)
    done = len(measuring.results.shots)
    assert 0 < done < 8
    again = BrightShots(num_in_flight=num_in_flight)
    measuring.measure_shots(again, 1, 0)
    assert len(again.seen) == 8 - done
    assert len(measuring.results.shots) == 8


def test_an_image_that_fails_counts_as_empty_is_told_and_tried_again(measuring: Measuring) -> None:
    bad = next(name for name in measuring.splits.test if int(name) % 4 != 2)
    told: list[str] = []

    def fail(name: str) -> None:
        if name == bad:
            raise InvalidInput("it is too dark")

    measuring.telling(told.append).measure_shots(BrightShots(before=fail), 1, 0)
    score = measuring.results.shots["bright", 1, 0, bad]
    assert score.error == "it is too dark"
    assert score.classes[0].intersection == 0
    assert score.classes[0].union == score.classes[0].truth > 0
    assert [message for message in told if message] == [f"bright, {bad}: it is too dark"]
    again = BrightShots()
    measuring.measure_shots(again, 1, 0)
    assert again.seen == [bad]


def test_an_answer_of_the_wrong_size_is_the_methods_failure(measuring: Measuring) -> None:
    class Small(BrightShots):
        def predict(self, image_rgb: np.ndarray, name: str) -> np.ndarray:
            return np.zeros((3, 3), np.uint8)

    measuring.measure_shots(Small(), 1, 0)
    assert all("(3, 3)" in score.error for score in measuring.results.shots.values())


def test_learning_that_fails_leaves_every_image_empty(measuring: Measuring) -> None:
    class Dull(BrightShots):
        def fit(self, shots: object, class_ids: object, seed: int) -> BrightShots:
            raise Internal("nothing to learn from")

    measuring.measure_shots(Dull(), 1, 0)
    assert {score.error for score in measuring.results.shots.values()} == {"learning failed: nothing to learn from"}


def test_zero_shots_learn_from_a_reference_that_nobody_corrected(measuring: Measuring) -> None:
    proposed: list[LabelledImage] = []

    def propose(labelled: LabelledImage) -> LabelledImage:
        proposed.append(labelled)
        return replace(labelled, name="proposed")

    method = BrightShots(min_shots=0)
    measuring.measure_shots(method, 0, 0, propose)
    assert [labelled.name for labelled in proposed] == [measuring.splits.shots[0][0]]
    assert method.fitted[0][0] == ("proposed",)


def test_predictions_of_the_first_seed_are_kept(measuring: Measuring) -> None:
    measuring.measure_shots(BrightShots(), 1, 0)
    measuring.measure_shots(BrightShots(), 1, 1)
    for name in measuring.splits.test:
        kept = read_labels(shot_prediction(measuring.predictions, "bright", 1, name))
        assert (kept == measuring.folder.read(name).labels).all()


def test_a_box_is_scored_and_clicks_follow_the_largest_error(measuring: Measuring) -> None:
    method = BoxClicks()
    measuring.measure_clicks(method)
    shown = [name for name in measuring.splits.test if int(name) % 4 != 2]
    assert sorted({name for name, _, _ in method.asked}) == shown
    for name in shown:
        assert [(n, box) for image, n, box in method.asked if image == name] == [
            (0, True), *((count, False) for count in range(1, 6))
        ]  # fmt: skip
        steps = {step.step: step.iou for step in measuring.results.clicks["box", 0, 0, 1, name].steps}
        assert steps["box"] == 1
        assert 0 < steps["1"] < steps["3"] < steps["5"] < 1
        assert click_prediction(measuring.predictions, "box", 0, 1, name).is_file()


def test_a_method_for_boxes_alone_gets_no_clicks(measuring: Measuring) -> None:
    method = BoxClicks(takes_clicks=False)
    measuring.measure_clicks(method)
    assert all(box for _, _, box in method.asked)
    assert all([s.step for s in score.steps] == ["box"] for score in measuring.results.clicks.values())


def test_objects_already_marked_are_not_marked_again(measuring: Measuring) -> None:
    measuring.measure_clicks(BoxClicks())
    again = BoxClicks()
    measuring.measure_clicks(again)
    assert not again.asked


def test_a_perfect_mask_is_not_clicked_again(tmp_path: Path) -> None:
    y, x = np.mgrid[:40, :40]
    disc = (np.hypot(x - 20, y - 20) <= 3).astype(np.uint8)
    for name in "ab":
        write_pair(tmp_path / "set", name, np.zeros((40, 40, 3), np.uint8), disc)
    folder = read_folder(tmp_path / "set", FolderOptions())
    method = BoxClicks()
    with Results.open(tmp_path / "j", {}) as results:
        Measuring(folder, make_splits(folder, 1, 1), results, tmp_path / "predictions").measure_clicks(method)
        (score,) = results.clicks.values()
    assert [n for _, n, box in method.asked if not box] == [1]
    assert [step.iou for step in score.steps[1:]] == [1, 1, 1]


def test_a_method_that_learns_marks_the_same_objects_as_one_that_does_not(measuring: Measuring) -> None:
    method = LearningBoxes()
    measuring.measure_clicks(BoxClicks())
    measuring.measure_learned_clicks(method, 2, 1)
    assert method.learned == [(measuring.splits.shots[1][:2], (1,), 1)]
    plain = {key[3:]: score.steps for key, score in measuring.results.clicks.items() if key[0] == "box"}
    tuned = {key[1:3]: score for key, score in measuring.results.clicks.items() if key[0] == "boxes"}
    assert set(tuned) == {(2, 1)}
    assert {key[3:]: s.steps for key, s in measuring.results.clicks.items() if key[0] == "boxes"} == plain
    measuring.measure_learned_clicks(method, 2, 1)
    assert len(method.learned) == 1


def test_a_tuning_that_fails_counts_as_empty_for_every_object_and_is_tried_again(measuring: Measuring) -> None:
    told: list[str] = []
    failing = LearningBoxes(fails_with=Internal("the job failed"))
    measuring.telling(told.append).measure_learned_clicks(failing, 1, 0)
    scores = list(measuring.results.clicks.values())
    assert {score.error for score in scores if score.steps} == {"learning failed: the job failed"}
    assert {step.iou for score in scores for step in score.steps} == {0.0}
    assert any("the job failed" in message for message in told)
    measuring.measure_learned_clicks(LearningBoxes(), 1, 0)
    assert not [score for score in measuring.results.clicks.values() if score.error]
