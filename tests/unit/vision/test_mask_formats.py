"""Polygons, COCO run lengths and PNG, against pycocotools and a point-in-polygon count."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pycocotools import mask as coco

from vplab.errors import InvalidInput
from vplab.vision import masks

small_masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=16))


def rasterize(polygons, size_hw):
    """Foreground where the centre of a pixel is inside an odd number of outlines."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros(size_hw, int)
    for polygon in polygons:
        for outline in (polygon.exterior, *polygon.holes):
            for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
                if (y0 != y1) and x0 == x1:
                    crossings += ((y > min(y0, y1)) & (y < max(y0, y1)) & (x > x0)).astype(int)
    return crossings % 2 == 1


@settings(max_examples=60, deadline=None)
@given(small_masks)
def test_polygons_enclose_exactly_the_mask(mask):
    np.testing.assert_array_equal(rasterize(masks.mask_to_polygons(mask), mask.shape), mask)


@settings(max_examples=60, deadline=None)
@given(small_masks)
def test_outlines_without_holes_are_filled_to_the_mask_again(mask):
    pieces = [p.exterior for p in masks.mask_to_polygons(mask) if not p.holes]
    filled = masks.coco_polygons_to_mask([piece.reshape(-1).tolist() for piece in pieces], mask.shape)
    expected = rasterize([p for p in masks.mask_to_polygons(mask) if not p.holes], mask.shape)
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
@settings(max_examples=200, deadline=None)
@given(
    corners=st.lists(st.tuples(st.integers(-60, 300), st.integers(-60, 300)), min_size=3, max_size=9, unique=True),
    fraction=st.sampled_from([1, 4, 7, 10]),
    size_hw=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_polygons_are_filled_as_pycocotools_does(corners, fraction, size_hw):
    numbers = (np.clip(np.array(corners) / fraction, -max(size_hw), 2 * max(size_hw))).reshape(-1).tolist()
    fine = np.trunc(5 * np.array(numbers).reshape(-1, 2) + 0.5)
    assume((np.roll(fine, -1, axis=0) != fine).any(axis=1).all())  # the C code divides 0 by 0 there
    expected = coco.decode(coco.merge(coco.frPyObjects([numbers], *size_hw))).astype(bool)
    np.testing.assert_array_equal(masks.coco_polygons_to_mask([numbers], size_hw), expected)


@pytest.mark.parametrize(
    "numbers",
    ["text", [1, 1, 2, 2], [1, 1, 2, 2, 3, 3, 4], [1, 1, 2, 2, 3, math.nan], [1, 1, 2, 2, 3, 1e9], [None] * 6],
)
def test_what_is_no_polygon_is_refused_by_its_place(numbers):
    with pytest.raises(InvalidInput) as caught:
        masks.coco_polygons_to_mask([[1, 1, 3, 1, 3, 3], numbers], (9, 9))
    assert caught.value.violations[0].field == "segmentation[1]"


def test_square_with_a_hole_is_one_polygon_of_eight_corners():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[3:5, 3:6] = False
    (polygon,) = masks.mask_to_polygons(mask)
    assert polygon.exterior.tolist() == [[1, 1], [8, 1], [8, 8], [1, 8]]
    assert len(polygon.holes) == 1
    assert len(polygon.holes[0]) == 4


def test_pieces_come_largest_first_and_touching_corners_stay_apart():
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = True
    mask[1:5, 1:5] = True
    polygons = masks.mask_to_polygons(mask)
    assert [len(p.exterior) for p in polygons] == [4, 4]
    assert polygons[0].exterior.min() == 1


def test_tolerance_saves_corners():
    y, x = np.mgrid[:100, :100]
    disc = (x - 50) ** 2 + (y - 50) ** 2 < 40**2
    exact, rough = masks.mask_to_polygons(disc)[0], masks.mask_to_polygons(disc, tolerance_px=1.5)[0]
    assert len(rough.exterior) < len(exact.exterior) / 4


@given(small_masks)
def test_coco_run_lengths_equal_pycocotools(mask):
    theirs = coco.encode(np.asfortranarray(mask, np.uint8))
    ours = masks.mask_to_coco_rle(mask)
    assert ours["size"] == list(theirs["size"])
    assert ours["counts"] == theirs["counts"].decode()
    np.testing.assert_array_equal(masks.coco_rle_to_mask(ours), mask)
    np.testing.assert_array_equal(masks.coco_rle_to_mask(theirs), mask)


def test_coco_counts_of_a_large_mask_survive_compression():
    mask = np.zeros((700, 900), bool)
    mask[100:650, 13:880] = np.random.default_rng(0).random((550, 867)) > 0.02
    rle = masks.mask_to_coco_rle(mask)
    assert rle["counts"] == coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(masks.coco_rle_to_mask(rle), mask)


@given(small_masks)
def test_uncompressed_coco_counts_come_back(mask):
    rle = masks.mask_to_coco_rle(mask, compressed=False)
    assert isinstance(rle["counts"], list)
    np.testing.assert_array_equal(masks.coco_rle_to_mask(rle), mask)


@given(st.text(max_size=20) | st.binary(max_size=20) | st.lists(st.integers(-5, 2**70), max_size=5) | st.none())
def test_any_coco_counts_decode_or_are_invalid_input(counts):
    with contextlib.suppress(InvalidInput):
        assert masks.coco_rle_to_mask({"size": [3, 4], "counts": counts}).shape == (3, 4)


@pytest.mark.parametrize("size", [None, [3], [0, 4], [2**20, 2**20], ["3", 4]])
def test_coco_size_that_is_no_size_is_invalid_input(size):
    with pytest.raises(InvalidInput) as caught:
        masks.coco_rle_to_mask({"size": size, "counts": [12]})
    assert caught.value.violations[0].field == "size"


@pytest.mark.parametrize("bits", [1, 8])
@given(mask=small_masks)
def test_png_comes_back_as_the_same_mask(bits, mask):
    data = masks.mask_to_png(mask, bits=bits)
    assert Image.open(io.BytesIO(data)).mode == ("1" if bits == 1 else "L")
    np.testing.assert_array_equal(masks.png_to_mask(data), mask)


def test_png_foreground_is_any_value_but_zero_and_alpha_does_not_count():
    colours = np.zeros((2, 2, 4), np.uint8)
    colours[..., 3] = 255
    colours[0, 1, 2] = 3
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "PNG")
    assert masks.png_to_mask(file.getvalue()).tolist() == [[False, True], [False, False]]


def test_damaged_png_is_invalid_input():
    data = masks.mask_to_png(np.eye(64, dtype=bool))
    for broken in (b"", b"no image", data[:40], data[:-20]):
        with pytest.raises(InvalidInput):
            masks.png_to_mask(broken)
    with pytest.raises(InvalidInput, match="exceeds"):
        masks.png_to_mask(data, max_pixels=100)
