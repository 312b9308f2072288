"""Agreement of two masks, against arithmetic by hand."""

import numpy as np
import pytest

from vplab.vision.measures import boundary_f, iou, largest_piece, outline


def square(top, left, side, size=40):
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_iou_of_a_known_pair():
    a, b = np.zeros((10, 12), bool), np.zeros((10, 12), bool)
    a[2:6, 3:9] = True
    b[2:6, 6:12] = True
    assert iou(a, b) == pytest.approx(12 / 36)


def test_two_empty_masks_agree_and_one_does_not():
    empty = np.zeros((8, 8), bool)
    assert iou(empty, empty) == 1
    assert boundary_f(empty, empty, 1) == 1
    assert iou(empty, square(1, 1, 3, 8)) == 0
    assert boundary_f(empty, square(1, 1, 3, 8), 1) == 0


def test_an_outline_is_one_pixel_wide_and_the_border_is_none():
    assert int(outline(square(10, 10, 6)).sum()) == 20
    assert not outline(np.ones((9, 9), bool)).any()
    assert int(outline(square(0, 0, 5)).sum()) == 9


def test_a_shift_within_the_tolerance_costs_nothing_and_one_beyond_it_does():
    target = square(10, 10, 12)
    assert boundary_f(square(11, 10, 12), target, 1.0) == 1
    assert boundary_f(square(14, 10, 12), target, 1.0) < 0.8


def test_the_boundary_score_is_f_of_precision_and_recall():
    target, predicted = square(2, 2, 10), square(2, 2, 10) | square(25, 25, 10)
    # Both squares have 36 outline pixels: half of what is predicted is right, all of what is true is found.
    assert boundary_f(predicted, target, 0.5) == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_a_thin_line_missed_by_some_pixels_keeps_its_boundary_score_but_not_its_iou():
    target, predicted = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    target[20, 5:35] = True
    predicted[21, 5:35] = True
    assert iou(predicted, target) == 0
    assert boundary_f(predicted, target, 1.0) == 1


def test_the_largest_piece_joins_corners():
    mask = square(2, 2, 3) | square(5, 5, 4) | square(30, 30, 4)
    assert (largest_piece(mask) == (square(2, 2, 3) | square(5, 5, 4))).all()
