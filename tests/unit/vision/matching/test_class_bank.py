"""Foreground, background and presence from references."""

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.vision.matching import ClassReference, PatchFeatures, build_class_bank, class_bank
from vplab.vision.matching.class_bank import GROUP_SHARE, NUM_BACKGROUND_CENTRES
from vplab.vision.matching.kmeans import cosine_kmeans
from vplab.vision.preprocessing import FrameTransform

SIDE, STRIDE, WIDTH = 128, 8, 32
GRID = SIDE // STRIDE
FRAME = FrameTransform((SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE))
AXES = np.eye(WIDTH, dtype=np.float32)


def features_of(labels, noise=0.06, seed=0):
    """Patch features around one axis for each label of a (GRID, GRID) grid."""
    rng = np.random.default_rng(seed)
    features = AXES[labels] + noise * rng.normal(size=(*labels.shape, WIDTH))
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def labels_of(mask, object_label=1, background_label=0):
    cells = mask.reshape(GRID, STRIDE, GRID, STRIDE).mean((1, 3))
    return np.where(cells > 0, object_label, background_label)


def reference(mask, index=0, seed=0, **labels):
    return ClassReference(PatchFeatures(features_of(labels_of(mask, **labels), seed=seed), FRAME, STRIDE), mask, index)


def square(x=32, y=32, side=40):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def crack():
    mask = np.zeros((SIDE, SIDE), bool)
    for n in range(SIDE):
        mask[n, n : n + 2] = True
    return mask


def test_a_patch_the_object_only_touches_is_neither_foreground_nor_background():
    mask = square(36, 36, 40)  # half a patch off the grid
    bank = build_class_bank([reference(mask)])
    assert len(bank.foreground) == 4 * 4
    assert len(bank.background) == GRID * GRID - 6 * 6
    assert (bank.foreground_weight == 1).all()


def test_thin_objects_keep_every_patch_they_touch_weighted_by_coverage():
    bank = build_class_bank([reference(crack())])
    assert len(bank.foreground) >= GRID
    assert bank.foreground_weight.max() < 0.5
    assert bank.foreground_weight.min() > 0
    foreground, background = bank.similarities(AXES[[1, 0]])
    assert foreground[0] > background[0]
    assert foreground[1] < background[1]


def test_equal_seeds_give_equal_banks():
    one, two = (build_class_bank([reference(square())], seed=5) for _ in range(2))
    np.testing.assert_array_equal(one.foreground_centres, two.foreground_centres)
    np.testing.assert_array_equal(one.background_centres, two.background_centres)
    assert one.presence_threshold == two.presence_threshold


def test_presence_is_absolute():
    bank = build_class_bank([reference(square())])
    with_object = features_of(labels_of(square(64, 8)), seed=1).reshape(-1, WIDTH)
    without = features_of(np.zeros((GRID, GRID), int), seed=2).reshape(-1, WIDTH)
    foreign = features_of(np.full((GRID, GRID), 5), seed=3).reshape(-1, WIDTH)
    assert bank.presence_score(with_object) > bank.presence_threshold
    assert bank.presence_score(without) < bank.presence_threshold
    assert bank.presence_score(foreign) < bank.presence_threshold
    assert -1 <= bank.presence_threshold <= 1


def test_several_references_calibrate_on_each_other():
    references = [reference(square(8 * n, 16), index=n, seed=n) for n in range(3)]
    bank = build_class_bank(references)
    single = build_class_bank(references[:1])
    assert bank.presence_threshold > single.presence_threshold
    assert all(bank.presence_score(r.patches.features.reshape(-1, WIDTH)) > bank.presence_threshold for r in references)


def test_one_reference_or_one_that_shows_the_class_leaves_centres_as_they_are():
    empty = reference(np.zeros((SIDE, SIDE), bool), index=1, seed=1)
    for references in ([reference(square())], [reference(square()), empty]):
        bank = build_class_bank(references)
        assert len(bank.background_centres) == NUM_BACKGROUND_CENTRES
        np.testing.assert_allclose(np.linalg.norm(bank.background_centres, axis=1), 1, atol=1e-5)
        assert bank.group_share == GROUP_SHARE


def disguised(index):
    """A reference whose object differs from its surroundings in one axis, and both differ more from image to image."""
    mask = square(8 * index, 16)
    rng = np.random.default_rng(index)
    features = 0.15 * rng.normal(size=(GRID, GRID, WIDTH)) + 0.5 * rng.normal(size=WIDTH) + AXES[0]
    features[..., 1] = 0.1 * rng.normal(size=(GRID, GRID)) + 0.5 * labels_of(mask)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    return ClassReference(PatchFeatures(features.astype(np.float32), FRAME, STRIDE), mask, index)


def test_several_references_tell_apart_what_centres_confuse(monkeypatch):
    def errors():
        bank = build_class_bank([disguised(n) for n in range(4)])
        target = disguised(7)
        foreground, background = bank.similarities(target.patches.features.reshape(-1, WIDTH))
        return int(((foreground > background) != (labels_of(target.mask).reshape(-1) > 0)).sum())

    together = errors()
    assert build_class_bank([disguised(n) for n in range(4)]).group_share < GROUP_SHARE
    monkeypatch.setattr(class_bank, "_corrected", lambda bank, direction: bank)
    assert together < 0.5 * errors()


def test_several_references_of_a_thin_object_find_the_patches_it_touches():
    bank = build_class_bank([reference(crack(), index=n, seed=n) for n in range(3)])
    target = reference(crack(), seed=7)
    foreground, background = bank.similarities(target.patches.features.reshape(-1, WIDTH))
    touched = labels_of(crack()).reshape(-1) > 0
    assert (foreground > background)[touched].mean() > 0.9
    assert (foreground > background)[~touched].mean() < 0.05


def test_presence_of_several_references_still_goes_by_cosines_to_the_foreground():
    bank = build_class_bank([disguised(n) for n in range(4)])
    np.testing.assert_allclose(np.linalg.norm(bank.foreground_centres, axis=1), 1, atol=1e-5)
    assert bank.presence_score(bank.foreground) <= 1


def test_a_reference_that_is_all_object_is_one_of_several():
    filled = reference(np.ones((SIDE, SIDE), bool), index=0)
    bank = build_class_bank([filled, reference(square(), index=1, seed=1)])
    foreground, background = bank.similarities(AXES[[0, 1]])
    assert foreground[0] < background[0]
    assert foreground[1] > background[1]


def test_a_reference_without_the_class_is_background():
    empty = reference(np.zeros((SIDE, SIDE), bool), index=1, background_label=3)
    bank = build_class_bank([reference(square()), empty])
    _, background = bank.similarities(AXES[[3]])
    assert background[0] > 0.8


def test_an_object_that_fills_the_image_leaves_no_background():
    bank = build_class_bank([reference(np.ones((SIDE, SIDE), bool))])
    foreground, background = bank.similarities(AXES[[1]])
    assert len(bank.background) == 0
    assert background[0] == -1 < foreground[0]


def test_no_reference_that_shows_the_class_is_invalid_input():
    with pytest.raises(InvalidInput, match="no reference"):
        build_class_bank([reference(np.zeros((SIDE, SIDE), bool))])


def test_features_of_another_width_are_invalid_input():
    bank = build_class_bank([reference(square())])
    with pytest.raises(InvalidInput, match="wide"):
        bank.similarities(np.ones((3, 5), np.float32))


def test_kmeans_finds_the_directions_and_follows_the_seed():
    rows = features_of(np.repeat(np.arange(4), 40).reshape(16, 10)).reshape(-1, WIDTH)
    weights = np.ones(len(rows), np.float32)
    centres = cosine_kmeans(rows, weights, 8, np.random.default_rng(0))
    assert set(centres.argmax(axis=1).tolist()) == {0, 1, 2, 3}
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(centres, cosine_kmeans(rows, weights, 8, np.random.default_rng(0)))


def test_kmeans_of_equal_rows_ends():
    rows = np.repeat(AXES[:1], 50, axis=0)
    assert len(cosine_kmeans(rows, np.ones(50, np.float32), 5, np.random.default_rng(0))) == 1
