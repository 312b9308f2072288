"""What a tuned decoder's graph is compared on: twenty pictures, whatever the job has."""

from dataclasses import replace

import numpy as np
import pytest

from vplab.training.tuning.values import TuningExample
from vplab.training.worker.compared_pictures import MAX_SEEN, NUM_PICTURES, compared_pictures
from vplab.vision.preprocessing import FrameTransform

SIDE = 64


def example(number: int, *, is_original: bool = True, num_classes: int = 1) -> TuningExample:
    random = np.random.default_rng(number)
    masks = {c: np.zeros((SIDE, SIDE), np.bool_) for c in range(num_classes)}
    for class_id, mask in masks.items():
        mask[10 + class_id : 20, 10 + number % 10 : 40] = True
    return TuningExample(
        image_index=number,
        is_original=is_original,
        embedding=random.normal(size=(8, 16, 16)).astype(np.float16),
        transform=FrameTransform((100 + number, 128), (50, SIDE), (SIDE, SIDE)),
        masks=masks,
        segments={},
        proposals={},
    )


@pytest.mark.parametrize("num_examples", [1, 4, 20, 35])
def test_there_are_twenty_pictures_of_different_numbers_each_with_an_object(num_examples: int) -> None:
    found = compared_pictures([example(n) for n in range(num_examples)])
    assert len({picture.transform.original_hw for picture in found}) >= NUM_PICTURES - MAX_SEEN
    assert len(found) == NUM_PICTURES == 20
    assert len({picture.embedding.tobytes() for picture in found}) == NUM_PICTURES
    for picture in found:
        assert picture.embedding.shape == (8, 16, 16)
        assert picture.mask.shape == (SIDE, SIDE)
        assert picture.mask.any()
        height, width = picture.transform.input_hw
        assert max(height, width) == SIDE
        assert min(height, width) >= 1


def test_the_further_pictures_differ_in_size_and_hold_the_numbers_of_real_ones() -> None:
    found = compared_pictures([example(0)])
    assert len({picture.transform.original_hw for picture in found}) == NUM_PICTURES
    tall = [picture.transform.original_hw[0] > picture.transform.original_hw[1] for picture in found]
    assert {True, False} == set(tall)
    for picture in found[1:]:
        np.testing.assert_array_equal(np.sort(picture.embedding, axis=None), np.sort(found[0].embedding, axis=None))


def test_images_come_before_their_views_and_classes_take_turns() -> None:
    views = [example(n, is_original=False, num_classes=2) for n in range(30)]
    images = [example(n, num_classes=2) for n in range(30, 34)]
    found = compared_pictures([*views, *images])
    np.testing.assert_array_equal(found[0].embedding, np.asarray(images[0].embedding, np.float32))
    assert [picture.transform.original_hw[0] for picture in found[:6]] == [130, 131, 132, 133, 100, 101]
    assert [int(np.nonzero(picture.mask)[0].min()) for picture in found[:4]] == [10, 11, 10, 11]


def test_images_without_an_object_are_left_out() -> None:
    empty = replace(example(1), masks={0: np.zeros((SIDE, SIDE), np.bool_)})
    found = compared_pictures([empty, example(2)])
    np.testing.assert_array_equal(found[0].embedding, np.asarray(example(2).embedding, np.float32))
