"""What pixels of references teach: lines thinner than a patch, in pictures that the classifier did not see."""

from dataclasses import replace

import numpy as np
import pytest

from vplab.vision.matching import MATCHERS, ClassReference, MatchOptions, PatchFeatures, TargetPatches, build_class_bank
from vplab.vision.matching.grids import patches_at_pixels, pixels_on_grid
from vplab.vision.matching.pixel_classifier import (
    MAX_LOG_ODDS,
    NUM_FEATURES,
    PixelClassifier,
    PixelExample,
    pixel_features,
    train_pixel_classifier,
)
from vplab.vision.preprocessing import FrameTransform

SIDE, STRIDE, WIDTH = 128, 8, 16
GRID = SIDE // STRIDE
FRAME = FrameTransform((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
AXES = np.eye(WIDTH, dtype=np.float32)


def picture(seed):
    """Return a grey picture (3, SIDE, SIDE) with a dark line of two pixels, and where the line is."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), bool)
    start = int(rng.integers(10, SIDE - 60))
    for row in range(10, SIDE - 10):
        column = start + row // 3
        mask[row, column : column + 2] = True
    grey = 0.6 + 0.03 * rng.standard_normal((SIDE, SIDE)) - 0.3 * mask
    return np.clip(np.stack([grey] * 3), 0, 1).astype(np.float32), mask


def example(seed, map_odds=None):
    colours, mask = picture(seed)
    odds = np.zeros(mask.shape, np.float32) if map_odds is None else map_odds(mask)
    return PixelExample(colours, odds, mask.astype(np.float32))


def patches_of(seed, noise=0.1):
    """Patches that know which of them the line touches, and no more."""
    colours, mask = picture(seed)
    touched = mask.reshape(GRID, STRIDE, GRID, STRIDE).any((1, 3)).astype(int)
    features = AXES[touched] + noise * np.random.default_rng(seed).standard_normal((GRID, GRID, WIDTH))
    features = (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)
    return PatchFeatures(features, FRAME, STRIDE, colours=colours), mask


def references(count=3):
    return [ClassReference(*patches_of(seed), seed) for seed in range(count)]


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 2), (31, 50)])
def test_every_size_has_features_of_every_pixel(size):
    colours = np.random.default_rng(0).random((3, *size), np.float32)
    features = pixel_features(colours)
    assert features.shape == (size[0] * size[1], NUM_FEATURES)
    assert np.isfinite(features).all()
    np.testing.assert_allclose(features[:, :3], colours.reshape(3, -1).T, atol=1e-6)


def test_a_line_thinner_than_a_patch_is_found_in_an_unseen_picture():
    classifier = train_pixel_classifier([example(seed) for seed in range(3)], seed=0)
    colours, mask = picture(9)
    assert iou(classifier.log_odds(colours, np.zeros(mask.shape, np.float32)) > 0, mask) > 0.8


def test_light_does_not_mislead_it():
    classifier = train_pixel_classifier([example(seed) for seed in range(3)], seed=0)
    colours, mask = picture(9)
    for lit in (colours * 0.85, colours + 0.06):
        assert iou(classifier.log_odds(lit, np.zeros(mask.shape, np.float32)) > 0, mask) > 0.6


def test_where_pixels_say_nothing_the_map_is_believed():
    rng = np.random.default_rng(0)

    def said(mask):
        return np.where(mask, 4, -4).astype(np.float32)

    blind = [example(seed, said)._replace(colours=rng.random((3, SIDE, SIDE), np.float32)) for seed in range(3)]
    classifier = train_pixel_classifier(blind, seed=0)
    _, mask = picture(9)
    assert iou(classifier.log_odds(rng.random((3, SIDE, SIDE), np.float32), said(mask)) > 0, mask) > 0.95


def test_equal_seeds_give_equal_classifiers_and_a_vector_holds_one():
    examples = [example(seed) for seed in range(2)]
    first, second, other = (train_pixel_classifier(examples, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.to_vector(), second.to_vector())
    assert not np.array_equal(first.to_vector(), other.to_vector())
    again = PixelClassifier.from_vector(first.to_vector())
    colours, mask = picture(9)
    odds = np.full(mask.shape, 20, np.float32)
    np.testing.assert_array_equal(again.log_odds(colours, odds), first.log_odds(colours, odds))
    assert np.abs(first.log_odds(colours, odds)).max() <= MAX_LOG_ODDS
    assert first.num_bytes == first.to_vector().nbytes


def test_a_reference_without_the_class_teaches_what_it_is_not():
    colours, mask = picture(5)
    absent = PixelExample(colours, np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32))
    seen = [example(seed) for seed in range(3)]
    unlike = train_pixel_classifier([*seen, absent, absent, absent], seed=0)
    odds = np.zeros(mask.shape, np.float32)
    before = train_pixel_classifier(seen, seed=0).log_odds(colours, odds)[mask].mean()
    assert unlike.log_odds(colours, odds)[mask].mean() < before - 1


def test_two_references_with_colours_have_a_classifier():
    assert build_class_bank(references(2)).pixel_classifier is not None
    assert build_class_bank(references(1)).pixel_classifier is None
    without = [replace(r, patches=replace(r.patches, colours=None)) for r in references(2)]
    assert build_class_bank(without).pixel_classifier is None


def test_objects_that_fill_their_patches_have_none():
    filled = []
    for reference in references(2):
        mask = np.zeros((SIDE, SIDE), bool)
        mask[16:96, 24:112] = True
        filled.append(replace(reference, mask=mask))
    assert build_class_bank(filled).pixel_classifier is None


@pytest.mark.parametrize("matcher", MATCHERS)
def test_points_lie_where_pixels_say_and_the_map_is_theirs(matcher):
    bank = build_class_bank(references())
    patches, mask = patches_of(9)
    target = TargetPatches.of([patches])
    match = MATCHERS[matcher].match(bank, target, MatchOptions(presence_threshold=-1.0))
    (odds,) = match.pixel_odds
    assert iou(odds > 0, mask) > 0.7
    share = mask.reshape(GRID, STRIDE, GRID, STRIDE).mean((1, 3)).reshape(-1)
    assert np.abs(match.similarity - share).mean() < 0.05
    # Patches that the line touches with a corner have few pixels of it.
    x, y = (match.points_xy / STRIDE).astype(int).T
    assert share.reshape(GRID, GRID)[y, x].min() > 0.5 * share.max() - 0.05


def test_a_target_without_colours_or_an_absent_class_goes_by_patches():
    bank = build_class_bank(references())
    patches, _ = patches_of(9)
    blind = TargetPatches.of([replace(patches, colours=None)])
    match = MATCHERS["softmatch"].match(bank, blind, MatchOptions(presence_threshold=-1.0))
    assert match.pixel_odds == ()
    assert len(match.points_xy)
    absent = MATCHERS["softmatch"].match(bank, TargetPatches.of([patches]), MatchOptions(presence_threshold=2.0))
    assert absent.pixel_odds == ()
    assert not absent.is_present


def test_pixels_and_patches_keep_their_place_on_other_grids():
    wide = FrameTransform((50, 100), (64, 128), (128, 128))
    patches = PatchFeatures(np.ones((16, 16, 1), np.float32), wide, 8, colours=np.zeros((3, 256, 256), np.float16))
    assert patches.pixels is not None
    assert patches.pixels.shape == (3, 128, 256)
    values = np.zeros((8, 16), np.float32)
    values[4:, 8:] = 1
    pixels = patches_at_pixels(values.reshape(-1), patches)
    assert pixels.shape == (128, 256)
    assert pixels[80:, 150:].min() > 0.99
    assert pixels[:50].max() < 0.01
    stretched = FrameTransform((50, 100), (64, 64), (64, 64))
    grid = pixels_on_grid(pixels, patches, stretched, (32, 32))
    assert grid[20:, 20:].min() > 0.99
    assert grid[:13].max() < 0.01
