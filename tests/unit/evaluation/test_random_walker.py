"""Random walks on a picture whose object everybody would cut out alike."""

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.random_walker import RandomWalker

NO_POINTS, NO_LABELS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


@pytest.fixture
def picture():
    """A bright disc, and a second one, on dark ground; noise keeps the colour models from collapsing."""
    rows, columns = np.mgrid[:120, :160]
    first = (rows - 60) ** 2 + (columns - 50) ** 2 < 25**2
    second = (rows - 60) ** 2 + (columns - 130) ** 2 < 15**2
    image = np.where((first | second)[..., None], (210, 180, 60), (40, 60, 90))
    noisy = image + np.random.default_rng(0).normal(0, 8, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), first, second


def iou(found, wanted):
    return (found & wanted).sum() / (found | wanted).sum()


def test_a_loose_box_gives_the_object_in_it(picture):
    image, first, _ = picture
    found = RandomWalker().open(image, "a").predict(NO_POINTS, NO_LABELS, np.array([20, 30, 80, 90], np.float32), None)
    assert found.dtype == bool
    assert iou(found, first) > 0.95


def test_one_click_gives_the_clicked_object_alone(picture):
    image, first, _ = picture
    found = RandomWalker().open(image, "a").predict(np.array([[50, 60]], np.float32), np.array([1]), None, None)
    assert iou(found, first) > 0.95


def test_a_click_on_the_background_stops_the_walks_across_a_gap(picture):
    image, first, second = picture
    session = RandomWalker().open(image, "a")
    on_both = np.array([[50, 60], [130, 60]], np.float32)
    assert iou(session.predict(on_both, np.array([1, 1]), None, None), first | second) > 0.95
    assert iou(session.predict(on_both, np.array([1, 0]), None, None), first) > 0.95


def test_images_beyond_the_largest_side_come_back_at_their_size(picture):
    image, first, _ = picture
    box = np.array([20, 30, 80, 90], np.float32)
    found = RandomWalker(max_side=80).open(image, "a").predict(NO_POINTS, NO_LABELS, box, None)
    assert found.shape == first.shape
    assert iou(found, first) > 0.85


def test_answers_repeat(picture):
    image = picture[0]
    points = np.array([[50, 60], [5, 5]], np.float32)
    answers = [RandomWalker().open(image, "a").predict(points, np.array([1, 0]), None, None) for _ in range(2)]
    np.testing.assert_array_equal(*answers)


def test_an_image_of_one_colour_or_a_box_around_everything_is_answered(picture):
    flat = np.full((40, 40, 3), 100, np.uint8)
    box = np.array([5, 5, 20, 20], np.float32)
    assert RandomWalker().open(flat, "a").predict(NO_POINTS, NO_LABELS, box, None).any()
    everything = np.array([0, 0, 160, 120], np.float32)
    assert RandomWalker().open(picture[0], "b").predict(NO_POINTS, NO_LABELS, everything, None).all()


def test_without_a_mark_of_the_object_it_is_invalid_input(picture):
    with pytest.raises(InvalidInput, match="a box or a click"):
        RandomWalker().open(picture[0], "a").predict(np.array([[5, 5]], np.float32), np.array([0]), None, None)
