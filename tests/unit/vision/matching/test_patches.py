"""Patch grids: what is valid, where patches are, and how much of each a mask covers."""

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.vision.matching import PatchFeatures, TargetPatches
from vplab.vision.preprocessing import FrameTransform


def patches(original_hw, input_hw, padded=64, stride=8, origin_xy=(0, 0), width=4):
    grid = padded // stride
    features = np.random.default_rng(0).normal(size=(grid, grid, width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    return PatchFeatures(features, FrameTransform(original_hw, input_hw, (padded, padded)), stride, origin_xy)


def test_patches_on_padding_are_not_valid():
    wide = patches((30, 60), (32, 64))
    assert wide.valid.sum() == 4 * 8
    assert wide.valid[:4].all()


def test_an_image_thinner_than_a_patch_keeps_one_row():
    strip = patches((1, 600), (1, 64))
    assert strip.valid.sum() == 8


def test_centres_are_pixels_of_the_whole_image():
    tile = patches((32, 64), (32, 64), origin_xy=(100, 40))
    assert tile.centres_xy[0, 0].tolist() == [104, 44]
    assert tile.centres_xy[1, 7].tolist() == [160, 52]


def test_coverage_is_the_share_of_each_patch():
    whole = patches((128, 128), (64, 64))
    mask = np.zeros((128, 128), bool)
    mask[:16, :24] = True  # one and a half patches of 16 original pixels
    coverage = whole.coverage(mask)
    assert coverage[0, 0] == pytest.approx(1)
    assert coverage[0, 1] == pytest.approx(0.5)
    assert coverage.sum() == pytest.approx(1.5)


def test_one_pixel_leaves_a_trace_and_padding_has_none():
    tall = patches((1000, 400), (64, 26))
    mask = np.zeros((1000, 400), bool)
    mask[500, 200] = True
    coverage = tall.coverage(mask)
    assert np.count_nonzero(coverage) >= 1
    full = tall.coverage(np.ones((1000, 400), bool))
    assert full[tall.valid].min() > 0.99
    assert full[:, 4:].max() == 0


def test_a_mask_of_another_size_is_invalid_input():
    with pytest.raises(InvalidInput, match="128"):
        patches((128, 128), (64, 64)).coverage(np.ones((64, 64), bool))


def test_targets_gather_valid_patches_and_put_values_back_on_the_grid():
    tile = patches((30, 60), (32, 64))
    target = TargetPatches.of([tile])
    assert target.features.shape == (32, 4)
    values = np.arange(32, dtype=np.float32)
    grid = target.grid(0, values, fill=-1)
    assert grid[:4].reshape(-1).tolist() == values.tolist()
    assert (grid[4:] == -1).all()
    assert target.spacing_px == pytest.approx(7.5)


def test_each_place_of_overlapping_tiles_is_at_home_once():
    tiles = [patches((64, 64), (64, 64), origin_xy=(x, 0)) for x in (0, 32)]
    target = TargetPatches.of(tiles)
    assert target.image_hw == (64, 96)
    home = target.centres_xy[target.is_home]
    assert len(np.unique(home, axis=0)) == len(home)
    assert {float(x) for x in home[:, 0]} == {4.0 + 8 * n for n in range(12)}
