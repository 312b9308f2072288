"""Tiles that cover an image, and objects put together across their borders."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vplab.vision.tiling import (
    OVERLAP,
    PlacedMask,
    Tile,
    TileMask,
    blend,
    inner_distance,
    join_views,
    tile_layout,
)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(64, 300))
def test_tiles_cover_every_pixel_and_overlap(height, width, side):
    tiles = tile_layout((height, width), side)
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        assert tile.size_hw[0] <= side
        assert tile.size_hw[1] <= side
        tile.crop(covered)[...] = True
    assert covered.all()
    starts = sorted({t.x_min for t in tiles})
    assert all(b - a <= side * (1 - OVERLAP) + 1 for a, b in itertools.pairwise(starts))


def test_an_image_within_the_side_is_one_tile_and_zero_never_tiles():
    assert tile_layout((100, 200), 200) == [Tile(0, 0, 200, 100)]
    assert tile_layout((5000, 9000), 0) == [Tile(0, 0, 9000, 5000)]


def test_borders_of_the_image_are_no_inner_borders():
    tile = Tile(0, 0, 100, 100)
    points = np.array([[0, 0], [90, 50], [99, 99]], np.float32)
    assert inner_distance(tile, (100, 200), points).tolist() == [100, 10, 1]


def views(truth, side):
    """Each tile's logits of an object given as signed distance to its border, positive inside."""
    image_hw = truth.shape
    found = []
    for tile in tile_layout(image_hw, side):
        logits = tile.crop(truth)
        placed = PlacedMask.of(logits > 0, tile.origin_xy)
        if placed is not None:
            found.append(TileMask(tile, placed, lambda logits=logits: logits))
    return found


def disc(centre_xy, radius, size_hw=(300, 500)):
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    return (radius - np.hypot(x - centre_xy[0], y - centre_xy[1])).astype(np.float32)


@pytest.mark.parametrize(("centre", "radius"), [((200, 150), 60), ((128, 128), 100), ((250, 150), 140), ((20, 20), 10)])
def test_an_object_across_borders_is_one_instance_equal_to_the_untiled_one(centre, radius):
    truth = disc(centre, radius)
    masks = views(truth, 200)
    groups = join_views(masks)
    assert len(groups) == 1
    placed = blend([masks[m] for m in groups[0]], truth.shape)
    canvas = np.zeros(truth.shape, bool)
    placed.paint(canvas)
    np.testing.assert_array_equal(canvas, truth > 0)


def test_two_objects_stay_two():
    masks = views(disc((120, 100), 50), 200) + views(disc((400, 200), 60), 200)
    assert len(join_views(masks)) == 2


def test_tiles_that_disagree_leave_no_step_at_the_border():
    left, right = Tile(0, 0, 200, 100), Tile(150, 0, 350, 100)
    y = np.mgrid[:100, :200][0]
    shallow, deep = (60 - y).astype(np.float32), (40 - y).astype(np.float32)
    masks = [
        TileMask(tile, PlacedMask.of(logits > 0, tile.origin_xy), lambda logits=logits: logits)
        for tile, logits in ((left, shallow), (right, deep))
    ]
    placed = blend(masks, (100, 350))
    heights = placed.mask.sum(axis=0)
    assert heights[0] == 60
    assert heights[-1] == 40
    # 20 rows apart over 50 columns of overlap; clipped logits make the middle steeper, but never one jump.
    assert np.abs(np.diff(heights.astype(int))).max() <= 6


def test_nothing_in_the_foreground_is_no_mask():
    assert PlacedMask.of(np.zeros((5, 5), bool), (0, 0)) is None
