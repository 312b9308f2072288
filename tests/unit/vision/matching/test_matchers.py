"""The three matchers on scenes whose answer is known."""

import numpy as np
import pytest

from vplab.vision.matching import MATCHERS, ClassReference, MatchOptions, PatchFeatures, TargetPatches, build_class_bank
from vplab.vision.matching.proposals import pick_apart
from vplab.vision.matching.softmatch import soft_scores
from vplab.vision.preprocessing import FrameTransform

SIDE, STRIDE = 128, 8
GRID = SIDE // STRIDE
AXES = np.eye(8, dtype=np.float32)


def features_of(labels, seed=0, noise=0.15):
    rng = np.random.default_rng(seed)
    features = AXES[labels] + noise * rng.normal(size=(*labels.shape, 8))
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def image(cells, seed=0, valid_hw=(SIDE, SIDE), rest=0):
    """Patch features with label 1 at ``cells`` (row, column slices), and the mask of them."""
    labels = np.full((GRID, GRID), rest)
    mask = np.zeros((SIDE, SIDE), bool)
    for rows, columns in cells:
        labels[rows, columns] = 1
        mask[rows.start * STRIDE : rows.stop * STRIDE, columns.start * STRIDE : columns.stop * STRIDE] = True
    frame = FrameTransform(valid_hw, valid_hw, (SIDE, SIDE))
    return PatchFeatures(features_of(labels, seed), frame, STRIDE), mask[: valid_hw[0], : valid_hw[1]]


@pytest.fixture(scope="module")
def bank():
    patches, mask = image([(slice(2, 8), slice(3, 9))])
    return build_class_bank([ClassReference(patches, mask, 0)])


TARGET, TARGET_MASK = image([(slice(9, 14), slice(1, 5)), (slice(2, 6), slice(10, 15))], seed=1)


@pytest.mark.parametrize("name", MATCHERS)
def test_points_lie_on_every_object_and_background_points_beside_them(bank, name):
    match = MATCHERS[name].match(bank, TargetPatches.of([TARGET]), MatchOptions())
    assert match.is_present
    on_object = TARGET_MASK[tuple(match.points_xy[:, ::-1].astype(int).T)]
    assert on_object.mean() > 0.9
    rows = match.points_xy[:, 1]
    assert (rows > 72).any()
    assert (rows < 48).any()
    (background,) = match.background_xy
    assert background.shape == (2, 2)
    assert not TARGET_MASK[tuple(background[:, ::-1].astype(int).T)].any()


@pytest.mark.parametrize("name", MATCHERS)
def test_equal_seeds_give_equal_matches(bank, name):
    one, two = (MATCHERS[name].match(bank, TargetPatches.of([TARGET]), MatchOptions(seed=3)) for _ in range(2))
    np.testing.assert_array_equal(one.points_xy, two.points_xy)
    np.testing.assert_array_equal(one.similarity, two.similarity)


@pytest.mark.parametrize("name", MATCHERS)
def test_an_absent_class_proposes_nothing(bank, name):
    empty, _ = image([], seed=4)
    match = MATCHERS[name].match(bank, TargetPatches.of([empty]), MatchOptions())
    assert not match.is_present
    assert len(match.points_xy) == 0
    assert match.presence_score < match.presence_threshold


@pytest.mark.parametrize("name", MATCHERS)
def test_padding_is_never_proposed(bank, name):
    # All of the padding looks like the object, and so does one corner of the picture.
    patches, _ = image([(slice(0, 3), slice(0, 3))], seed=2, valid_hw=(64, SIDE))
    labels = np.zeros((GRID, GRID), int)
    labels[:3, :3] = labels[8:] = 1
    padded = PatchFeatures(features_of(labels), patches.transform, STRIDE)
    match = MATCHERS[name].match(bank, TargetPatches.of([padded]), MatchOptions())
    assert match.is_present
    assert (match.points_xy[:, 1] < 24).all()
    assert all((points[:, 1] < 64).all() for points in match.background_xy)


@pytest.mark.parametrize("name", MATCHERS)
def test_points_and_background_points_keep_to_their_limits(bank, name):
    options = MatchOptions(max_points=3, num_background_points=0)
    match = MATCHERS[name].match(bank, TargetPatches.of([TARGET]), options)
    assert 1 <= len(match.points_xy) <= 3
    assert match.background_xy[0].shape == (0, 2)


def test_a_threshold_of_the_call_goes_before_the_calibrated_one(bank):
    target = TargetPatches.of([TARGET])
    strict = MATCHERS["softmatch"].match(bank, target, MatchOptions(presence_threshold=1.0))
    assert not strict.is_present
    assert strict.presence_threshold == 1.0


def test_similarity_is_high_on_the_object_and_low_beside_it(bank):
    target = TargetPatches.of([TARGET])
    similarity = target.grid(0, MATCHERS["softmatch"].match(bank, target, MatchOptions()).similarity)
    cells = TARGET_MASK.reshape(GRID, STRIDE, GRID, STRIDE).mean((1, 3)) > 0.5
    assert similarity[cells].mean() > 0.9
    assert similarity[~cells].mean() < 0.1


def test_soft_scores_equal_the_softmaxes_written_out(bank):
    features = TargetPatches.of([TARGET]).features
    forward = bank.foreground @ features.T / 0.1
    rows = np.concatenate([bank.foreground, bank.background]) @ features.T / 0.1
    weight = (bank.foreground_weight / bank.foreground_weight.sum())[:, None]
    to_targets = forward - np.log(np.exp(forward).sum(axis=1, keepdims=True))
    to_references = forward - np.log(np.exp(rows).sum(axis=0, keepdims=True))
    expected = np.exp((weight * (to_targets + to_references)).sum(axis=0))
    np.testing.assert_allclose(soft_scores(bank, features), expected / expected.max(), rtol=2e-3, atol=1e-6)


def test_picked_points_are_apart_and_best_first():
    xy = np.array([[0, 0], [1, 0], [5, 0], [5.5, 0], [20, 0]], np.float32)
    scores = np.array([0.5, 0.9, 0.7, 0.8, 0.1], np.float32)
    chosen = pick_apart(xy, scores, np.array([True, True, True, True, False]), 10, 2.0)
    assert chosen.tolist() == [1, 3]
