"""Boxes and clicks on a scaled image."""

import numpy as np

from vplab.evaluation.comparators.marks import ScaledImage, box_mask, components_at


def test_small_images_stay_as_they_are():
    image = np.zeros((10, 20, 3), np.uint8)
    scaled = ScaledImage.fit(image, 20)
    assert scaled.image_rgb is image
    assert scaled.points(np.array([[3, 4]], np.float32)).tolist() == [[3, 4]]


def test_clicks_follow_the_image_when_it_shrinks():
    scaled = ScaledImage.fit(np.zeros((40, 80, 3), np.uint8), 20)
    assert scaled.size_hw == (10, 20)
    points = np.array([[0, 0], [3, 3], [4, 4], [79, 39], [500, -9]], np.float32)
    assert scaled.points(points).tolist() == [[0, 0], [0, 0], [1, 1], [19, 9], [19, 0]]


def test_boxes_cover_each_pixel_they_touch_and_at_least_one():
    assert np.argwhere(box_mask((4, 5), np.array([1.2, 1, 2.1, 2], np.float32))).tolist() == [[1, 1], [1, 2]]
    assert box_mask((4, 5), np.array([9, 9, 9, 9], np.float32)).sum() == 1
    assert box_mask((4, 5), np.array([-3, -3, 99, 99], np.float32)).all()


def test_a_mask_comes_back_at_the_images_own_size():
    scaled = ScaledImage.fit(np.zeros((40, 80, 3), np.uint8), 20)
    half = np.zeros(scaled.size_hw, np.float32)
    half[:, 10:] = 1
    restored = scaled.restore(half)
    assert restored.shape == (40, 80)
    assert restored[:, 40:].all()
    assert not restored[:, :40].any()


def test_only_clicked_regions_are_kept():
    mask = np.array([[1, 0, 1], [1, 0, 1]], bool)
    assert components_at(mask, np.array([[0, 1]])).tolist() == [[True, False, False], [True, False, False]]
    assert components_at(mask, np.array([[1, 1]])).tolist() == mask.tolist()
