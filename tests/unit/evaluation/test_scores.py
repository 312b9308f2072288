"""Scores of one image against arithmetic by hand."""

import numpy as np
import pytest

from vplab.evaluation.scores import score_labels, score_step, tolerance_px


def test_counts_of_each_class_and_of_the_background() -> None:
    truth, found = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth[:4], truth[6:] = 1, 2
    found[:2], found[6:8] = 1, 1
    one, two, background = score_labels(found, truth, [1, 2])
    assert (one.class_id, one.intersection, one.union, one.truth) == (1, 20, 60, 40)
    assert (two.class_id, two.intersection, two.union, two.truth) == (2, 0, 40, 40)
    assert (background.class_id, background.intersection, background.union) == (0, 20, 60)
    assert two.boundary_f == 0
    assert background.boundary_f is None


def test_a_class_that_is_not_there_has_no_boundary_score_but_counts_what_was_found() -> None:
    truth, found = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    found[:3] = 1
    score, _ = score_labels(found, truth, [1])
    assert (score.intersection, score.union, score.truth, score.boundary_f) == (0, 30, 0, None)


def test_the_boundary_tolerance_is_a_share_of_the_diagonal() -> None:
    assert tolerance_px((300, 400)) == pytest.approx(3.75)
    assert tolerance_px((30, 40)) == 1


def test_a_step_is_rated_by_both_measures() -> None:
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    step = score_step("3", truth, truth)
    assert (step.step, step.iou, step.boundary_f) == ("3", 1, 1)
