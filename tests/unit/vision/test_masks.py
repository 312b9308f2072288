"""Run lengths, resizing and conversions of masks, against numpy, torch and pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch.nn import functional as F

from vplab.errors import InvalidInput
from vplab.vision import masks
from vplab.vision.preprocessing import FrameTransform

small_masks = npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))


@given(small_masks)
def test_run_lengths_come_back_as_the_same_mask(mask):
    runs = masks.encode_runs(mask)
    assert runs.dtype == np.uint32
    assert (runs[1:] > 0).all()
    np.testing.assert_array_equal(masks.decode_runs(runs, mask.shape), mask)


def test_first_run_counts_zeros():
    assert masks.encode_runs(np.array([[0, 1, 1], [1, 0, 0]], bool)).tolist() == [1, 3, 2]
    assert masks.encode_runs(np.ones((2, 2), bool)).tolist() == [0, 4]
    assert masks.encode_runs(np.zeros((2, 2), bool)).tolist() == [4]


@pytest.mark.parametrize(
    ("runs", "field"),
    [
        ([3], "mask.runs"),
        ([5], "mask.runs"),
        ([], "mask.runs"),
        ([2, 0, 2], "mask.runs[1]"),
        ([0, 2, 0, 2], "mask.runs[2]"),
        ([2**32 - 1, 2**32 - 1], "mask.runs"),
        ([-1, 5], "mask.runs"),
        ([1.5, 2.5], "mask.runs"),
        ([1] * 6, "mask.runs"),
    ],
)
def test_runs_that_do_not_describe_the_mask_are_invalid_input(runs, field):
    with pytest.raises(InvalidInput) as caught:
        masks.decode_runs(runs, (2, 2))
    assert caught.value.violations[0].field == field


def test_absurd_mask_size_is_refused_before_it_is_allocated():
    with pytest.raises(InvalidInput, match="exceeds"):
        masks.decode_runs([2**32 - 1], (2**31, 2**31))
    with pytest.raises(InvalidInput, match="at least one pixel"):
        masks.decode_runs([0], (0, 5))


@given(npst.arrays(np.int64, st.integers(0, 8), elements=st.integers(-2, 2**33)))
def test_any_list_of_runs_decodes_or_is_invalid_input(runs):
    try:
        mask = masks.decode_runs(runs, (3, 4))
    except InvalidInput:
        return
    np.testing.assert_array_equal(masks.encode_runs(mask), runs)


@pytest.mark.parametrize("mask", [np.zeros((0, 3), bool), np.zeros(4, bool), np.zeros((2, 2, 1), bool)])
def test_mask_without_two_axes_or_pixels_is_invalid_input(mask):
    with pytest.raises(InvalidInput):
        masks.encode_runs(mask)


def postprocess_masks(low_res, padded_hw, input_hw, original_hw):
    """segment-anything's Sam.postprocess_masks, modeling/sam.py, with the padded size as an argument."""
    grown = F.interpolate(torch.from_numpy(low_res)[None], padded_hw, mode="bilinear", align_corners=False)
    cropped = grown[..., : input_hw[0], : input_hw[1]]
    return F.interpolate(cropped, original_hw, mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize(
    ("original_hw", "input_hw", "padded_hw", "low_hw"),
    [
        ((480, 640), (768, 1024), (1024, 1024), (256, 256)),
        ((640, 480), (1024, 768), (1024, 1024), (256, 256)),
        ((1024, 1024), (1024, 1024), (1024, 1024), (256, 256)),
        ((1537, 2049), (768, 1024), (1024, 1024), (256, 256)),
        ((333, 517), (660, 1024), (1024, 1024), (256, 256)),
        ((37, 19), (512, 263), (512, 512), (128, 128)),
        ((512, 512), (1024, 1024), (1024, 1024), (256, 256)),
        ((20, 3000), (3, 512), (512, 512), (128, 128)),
        ((200, 200), (512, 512), (512, 512), (128, 128)),
        ((100, 300), (64, 64), (64, 64), (128, 128)),
    ],
)
def test_upsampled_logits_equal_sam_postprocessing(original_hw, input_hw, padded_hw, low_hw):
    low_res = np.random.default_rng(0).normal(0, 8, (2, *low_hw)).astype(np.float32)
    transform = FrameTransform(original_hw=original_hw, input_hw=input_hw, padded_hw=padded_hw)
    ours = masks.upsample_logits(low_res, transform)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, postprocess_masks(low_res, padded_hw, input_hw, original_hw), atol=1e-4)


def test_mask_turned_into_logits_comes_back_where_it_was():
    transform = FrameTransform(original_hw=(300, 400), input_hw=(384, 512), padded_hw=(512, 512))
    mask = np.zeros((300, 400), bool)
    mask[60:200, 100:310] = True
    logits = masks.mask_to_low_res_logits(mask, transform, (128, 128))
    assert logits.shape == (128, 128)
    assert (logits[96:] < -6).all()
    back = masks.upsample_logits(logits[None], transform)[0] > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.97


def test_mask_of_another_size_is_invalid_input():
    transform = FrameTransform(original_hw=(30, 40), input_hw=(384, 512), padded_hw=(512, 512))
    with pytest.raises(InvalidInput, match="40 x 30"):
        masks.mask_to_low_res_logits(np.ones((40, 30), bool), transform, (128, 128))


def test_box_of_a_mask_has_its_far_edges_outside():
    mask = np.zeros((10, 12), bool)
    assert masks.mask_box(mask) is None
    mask[2:5, 3:9] = True
    assert masks.mask_box(mask) == (3, 2, 9, 5)
