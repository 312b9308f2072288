"""The pixel classifier on textures that colour or grain tells apart."""

import numpy as np
import pytest

from vplab.evaluation.comparators.random_forest import RandomForest
from vplab.evaluation.values import LabelledImage

SMALL = RandomForest(num_trees=20, pixels_per_class=500)


def textured(seed: int, size_hw: tuple[int, int] = (72, 96)) -> LabelledImage:
    """Grey ground, a red square of class 1, and a square of class 2 that differs from the ground by its grain alone."""
    rng = np.random.default_rng(seed)
    image = rng.normal(120, 4, (*size_hw, 3))
    labels = np.zeros(size_hw, np.uint8)
    top, left = rng.integers(4, 30, 2)
    labels[top : top + 30, left : left + 20] = 1
    image[labels == 1] += (80, -40, -40)
    labels[top : top + 30, left + 30 : left + 56] = 2
    image[labels == 2] += rng.normal(0, 40, (np.count_nonzero(labels == 2), 1))
    return LabelledImage(f"image{seed}", np.clip(image, 0, 255).astype(np.uint8), labels)


def iou(found, wanted, class_id):
    return ((found == class_id) & (wanted == class_id)).sum() / ((found == class_id) | (wanted == class_id)).sum()


def test_classes_of_colour_and_of_grain_are_learned_from_two_images():
    predictor = SMALL.fit([textured(0), textured(1)], [1, 2], seed=0)
    target = textured(2)
    found = predictor.predict(target.image_rgb, target.name)
    assert found.dtype == np.uint8
    assert found.shape == target.labels.shape
    assert iou(found, target.labels, 1) > 0.8
    assert iou(found, target.labels, 2) > 0.7


def test_equal_seeds_give_equal_forests_and_others_do_not():
    shots, image = [textured(0)], textured(2).image_rgb
    first, again, other = (SMALL.fit(shots, [1, 2], seed).predict(image, "a") for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_class_that_one_shot_lacks_is_learned_from_the_other():
    without = textured(0)
    without = LabelledImage(without.name, without.image_rgb, np.where(without.labels == 1, 1, 0).astype(np.uint8))
    background_only = LabelledImage("plain", np.full((40, 40, 3), 120, np.uint8), np.zeros((40, 40), np.uint8))
    predictor = SMALL.fit([background_only, without], [1], seed=0)
    assert set(np.unique(predictor.predict(textured(2).image_rgb, "a"))) == {0, 1}


@pytest.mark.parametrize("max_side", [48, 96])
def test_labels_come_back_at_the_images_own_size(max_side):
    predictor = RandomForest(max_side=max_side, num_trees=10, pixels_per_class=300).fit([textured(0)], [1, 2], 0)
    target = textured(3, (90, 130))
    found = predictor.predict(target.image_rgb, "a")
    assert found.shape == (90, 130)
    assert iou(found, target.labels, 1) > 0.5


def test_a_shot_of_one_class_only_is_learned_as_such():
    shot = LabelledImage("full", np.full((32, 32, 3), 90, np.uint8), np.ones((32, 32), np.uint8))
    assert (SMALL.fit([shot], [1], 0).predict(np.zeros((20, 30, 3), np.uint8), "a") == 1).all()
