"""Candidates put together into instances."""

import numpy as np

from vplab.vision.pipeline.decoding import Candidate
from vplab.vision.pipeline.grouping import group_by_overlap, group_by_points
from vplab.vision.prompts import PromptTokens

TOKENS = PromptTokens(np.zeros((2, 2), np.float32), np.array([1, -1], np.float32), None)
SIZE = 32
ONE_TO_ONE = np.array([1.0, 1.0])


def square(x, y, side, level=6.0):
    logits = np.full((SIZE, SIZE), -level, np.float32)
    logits[y : y + side, x : x + side] = level
    return logits


def candidate(logits, point_xy=(0.0, 0.0), iou=0.9, similarity=0.9):
    return Candidate(logits, iou, similarity, TOKENS, point_xy)


def test_views_of_one_object_are_averaged_by_score():
    strong, weak = candidate(square(4, 4, 12), iou=0.9), candidate(square(4, 4, 14), iou=0.7)
    (group,) = group_by_overlap([weak, strong])
    np.testing.assert_array_equal(group.logits > 0, strong.logits > 0)
    assert group.predicted_iou == 0.9
    assert group.members == (strong, weak)


def test_a_poor_view_of_an_object_has_no_say():
    good, poor = candidate(square(4, 4, 12), iou=0.9), candidate(square(4, 4, 14), iou=0.3)
    (group,) = group_by_overlap([poor, good])
    assert group.members == (good,)


def test_objects_that_do_not_overlap_stay_apart_best_first():
    groups = group_by_overlap([candidate(square(2, 2, 6), iou=0.5), candidate(square(20, 20, 8), iou=0.8)])
    assert [g.predicted_iou for g in groups] == [0.8, 0.5]


def test_a_part_joins_the_better_whole():
    groups = group_by_overlap([candidate(square(4, 4, 16), iou=0.9), candidate(square(6, 6, 4), iou=0.4)])
    assert len(groups) == 1


def test_no_candidates_make_no_groups():
    assert group_by_overlap([]) == []
    assert group_by_points([], np.zeros((SIZE, SIZE), np.float32), SIZE, ONE_TO_ONE) == []


def similarity(*squares):
    out = np.full((SIZE, SIZE), 0.1, np.float32)
    for x, y, side in squares:
        out[y : y + side, x : x + side] = 0.9
    return out


def test_masks_that_cover_each_others_points_are_one_group():
    found = group_by_points(
        [
            candidate(square(4, 4, 8), (6.0, 6.0)),
            candidate(square(8, 4, 8), (10.0, 6.0)),
            candidate(square(24, 24, 6), (26.0, 26.0)),
        ],
        similarity((4, 4, 12), (24, 24, 6)),
        SIZE,
        ONE_TO_ONE,
    )
    assert sorted(len(g.members) for g in found) == [1, 2]
    union = max(found, key=lambda g: len(g.members))
    assert (union.logits > 0).sum() == 8 * 12


def test_a_mask_that_adds_mostly_background_is_left_out_of_its_group():
    (group,) = group_by_points(
        [candidate(square(4, 4, 8), (6.0, 6.0), iou=0.9), candidate(square(4, 4, 24), (7.0, 7.0), iou=0.5)],
        similarity((4, 4, 8)),
        SIZE,
        ONE_TO_ONE,
    )
    assert (group.logits > 0).sum() == 64


def test_a_group_whose_points_lie_on_background_is_dropped_unless_it_is_all_there_is():
    stray, good = candidate(square(20, 20, 8), (22.0, 22.0)), candidate(square(4, 4, 8), (6.0, 6.0))
    both = group_by_points([stray, good], similarity((4, 4, 8)), SIZE, ONE_TO_ONE)
    assert [g.members for g in both] == [(good,)]
    assert len(group_by_points([stray], similarity(), SIZE, ONE_TO_ONE)) == 1
