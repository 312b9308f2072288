"""Clicks and boxes as a person who knows the object would give them."""

import numpy as np

from vplab.vision.simulated_clicks import next_click, spread_clicks, tight_box


def disc(centre_xy, radius, size=40):
    y, x = np.mgrid[:size, :size]
    return np.hypot(x - centre_xy[0], y - centre_xy[1]) <= radius


def test_the_first_click_is_the_middle_of_the_object():
    point, label = next_click(np.zeros((40, 40), bool), disc((12, 25), 8))
    assert label == 1
    assert np.abs(point - (12, 25)).max() <= 1


def test_the_next_click_goes_to_the_largest_error_of_either_kind():
    target, predicted = disc((10, 10), 6), disc((10, 10), 6) | disc((30, 28), 5)
    point, label = next_click(predicted, target)
    assert label == 0
    assert np.abs(point - (30, 28)).max() <= 1


def test_an_object_cut_by_the_border_is_clicked_inside_it():
    point, label = next_click(np.zeros((40, 40), bool), np.arange(40)[None, :] + np.zeros((40, 1)) < 6)
    assert label == 1
    assert 1 <= point[0] <= 4


def test_a_box_holds_the_first_and_last_pixel():
    mask = np.zeros((10, 12), bool)
    mask[2:6, 3:9] = True
    assert tight_box(mask).tolist() == [3, 2, 9, 6]


def test_spread_clicks_reach_every_piece_before_they_repeat_one():
    pieces = [disc((8, 8), 6), disc((30, 9), 4), disc((20, 31), 5)]
    points = spread_clicks(np.logical_or.reduce(pieces), 3).astype(int)
    assert [int(np.flatnonzero([piece[y, x] for piece in pieces])[0]) for x, y in points] == [0, 2, 1]


def test_a_speck_gets_fewer_clicks_than_asked_for():
    mask = np.zeros((40, 40), bool)
    mask[5:7, 5:7] = True
    assert len(spread_clicks(mask, 4)) == 1
