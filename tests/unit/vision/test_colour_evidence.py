import numpy as np
import pytest

from vplab.vision.colour_evidence import ColourModel
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt
from vplab.vision.specs import ColourEvidence, SegmenterSpec

EVIDENCE = ColourEvidence(weight=0.5, levels=32, smoothing=1.4, sure_logit=1.0, reach=0.25)
WHOLE = FrameTransform((256, 256), (128, 128), (128, 128))


def disc(radius, size=64):
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.hypot(rows, columns) < radius


def blurred_logits(radius, size=32):
    """A coarse answer: right in the middle, unsure for some cells around the border."""
    rows, columns = np.mgrid[:size, :size] - size / 2 + 0.5
    return np.clip(radius - np.hypot(rows, columns), -3, 3).astype(np.float32)


def picture(mask, inside=(0.8, 0.3, 0.2), outside=(0.3, 0.4, 0.3), noise=0.02):
    colours = np.where(mask, np.array(inside)[:, None, None], np.array(outside)[:, None, None])
    return np.clip(colours + noise * np.random.default_rng(0).normal(size=colours.shape), 0, 1).astype(np.float32)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def sharpened(colours, logits, transform=WHOLE, threshold=0.0):
    return ColourModel(colours, transform, EVIDENCE, threshold).sharpen(logits)


@pytest.mark.parametrize("radius", [8, 10])
def test_the_border_moves_to_where_the_colours_change(radius):
    truth, logits = disc(18), blurred_logits(radius)
    before = sharpened(np.full((3, 64, 64), 0.5, np.float32), logits) > 0
    after = sharpened(picture(truth), logits) > 0
    assert iou(after, truth) > 0.97 > iou(before, truth)


def test_half_precision_colours_give_the_same_mask():
    colours, logits = picture(disc(18)), blurred_logits(8)
    assert np.array_equal(sharpened(colours, logits) > 0, sharpened(colours.astype(np.float16), logits) > 0)


def test_colours_shared_by_object_and_background_change_nothing():
    colours, logits = np.full((3, 64, 64), 0.5, np.float32), blurred_logits(9)
    plain = sharpened(colours, logits)
    noisy = sharpened(picture(np.zeros((64, 64), np.bool_), noise=0.0), logits)
    np.testing.assert_allclose(plain, noisy, atol=1e-5)
    assert iou(plain > 0, disc(18)) > 0.95


@pytest.mark.parametrize("value", [-5.0, 5.0])
def test_an_answer_without_foreground_or_without_background_is_only_enlarged(value):
    logits = np.full((32, 32), value, np.float32)
    assert np.array_equal(sharpened(picture(disc(18)), logits), np.full((64, 64), value, np.float32))


def test_the_padding_counts_neither_as_background_nor_as_object():
    wide = FrameTransform((128, 256), (64, 128), (128, 128))
    colours, logits = picture(disc(18)), blurred_logits(9)
    other = colours.copy()
    other[:, 32:] = 0.9
    assert np.array_equal(sharpened(colours, logits, wide)[:32], sharpened(other, logits, wide)[:32])


def test_certainty_is_measured_from_the_threshold():
    colours, logits = picture(disc(18)), blurred_logits(8)
    shifted = sharpened(colours, logits + 2, threshold=2.0)
    np.testing.assert_allclose(shifted - 2, sharpened(colours, logits), atol=1e-5)


SPEC = SegmenterSpec(
    family="nano",
    architecture="any",
    input_size=128,
    embedding_shape=(8, 8, 8),
    low_res_hw=(32, 32),
    box_bounds_mask=True,
)
BOX = np.array([10.2, 20, 30, 40.5], np.float32)


def test_the_mask_of_a_box_alone_ends_where_the_box_does():
    bounded = ObjectPrompt(box_xyxy=BOX).bounded(np.ones((64, 64), np.bool_), SPEC)
    expected = np.zeros((64, 64), np.bool_)
    expected[20:41, 10:30] = True
    assert np.array_equal(bounded, expected)


@pytest.mark.parametrize(
    ("prompt", "spec"),
    [
        (ObjectPrompt(np.array([[50, 50]], np.float32), np.array([1]), BOX), SPEC),
        (ObjectPrompt(box_xyxy=BOX, mask=np.ones((64, 64), np.bool_)), SPEC),
        (ObjectPrompt(box_xyxy=BOX), SPEC.model_copy(update={"box_bounds_mask": False})),
    ],
    ids=["a click may lie outside", "a mask may", "the segmenter does not say so"],
)
def test_otherwise_a_mask_may_reach_beyond_its_box(prompt, spec):
    assert prompt.bounded(np.ones((64, 64), np.bool_), spec).all()
