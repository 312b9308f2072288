"""Token assembly and prompt rasters, against segment-anything's transforms and the training twin."""

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from vplab.errors import InvalidInput
from vplab.vision.nano.prompt_raster import rasterize_prompts
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt, group_by_token_count, prompt_tokens, rasterize_prompt
from vplab.vision.specs import PromptRaster, SegmenterSpec

RASTER = PromptRaster(box_inside=2.0, box_outside=-4.0, click_peak=4.0, click_sigma=2.0)
TRANSFORM = FrameTransform(original_hw=(480, 640), input_hw=(768, 1024), padded_hw=(1024, 1024))
SPEC = SegmenterSpec(
    family="sam", architecture="vit_b", input_size=1024, embedding_shape=(256, 64, 64), low_res_hw=(256, 256)
)


def points(*xy, labels=None):
    return {
        "points_xy": np.array(xy, np.float32).reshape(-1, 2),
        "point_labels": np.array(labels if labels is not None else [1] * len(xy)),
    }


def test_points_come_first_and_a_padding_point_stands_for_the_missing_box():
    tokens = prompt_tokens(ObjectPrompt(**points((320, 240), (10, 20), labels=[1, 0])), TRANSFORM, SPEC)
    assert tokens.labels.tolist() == [1, 0, -1]
    expected = ResizeLongestSide(1024).apply_coords(np.array([[320.0, 240.0], [10.0, 20.0]]), (480, 640))
    np.testing.assert_allclose(tokens.coords[:2], expected, atol=1e-4)
    assert tokens.coords[2].tolist() == [0, 0]
    assert tokens.mask_logits is None


def test_box_corners_follow_the_points_without_padding():
    box = np.array([10, 20, 300, 400], np.float32)
    tokens = prompt_tokens(ObjectPrompt(**points((320, 240)), box_xyxy=box), TRANSFORM, SPEC)
    assert tokens.labels.tolist() == [1, 2, 3]
    expected = ResizeLongestSide(1024).apply_boxes(box[None].astype(float), (480, 640)).reshape(2, 2)
    np.testing.assert_allclose(tokens.coords[1:], expected, atol=1e-4)


def test_a_mask_alone_has_no_tokens():
    tokens = prompt_tokens(ObjectPrompt(mask=np.ones((480, 640), bool)), TRANSFORM, SPEC)
    assert tokens.coords.shape == (0, 2)
    assert tokens.mask_logits is not None


def test_raster_is_the_mask_input_and_only_its_clicks_are_added_to_a_mask_of_the_prompts_own():
    spec = SPEC.model_copy(update={"prompt_raster": RASTER})
    drawn = prompt_tokens(ObjectPrompt(**points((320, 240))), TRANSFORM, spec).mask_logits
    assert drawn is not None
    assert np.unravel_index(drawn.argmax(), drawn.shape) == (96, 128)
    logits = np.full((256, 256), 3.0, np.float32)
    box = np.array([10, 20, 300, 400], np.float32)
    prompt = ObjectPrompt(**points((320, 240)), box_xyxy=box, low_res_logits=logits)
    given = prompt_tokens(prompt, TRANSFORM, spec).mask_logits
    assert given is not None
    np.testing.assert_allclose(given, logits + drawn)
    without_clicks = ObjectPrompt(box_xyxy=box, low_res_logits=logits)
    np.testing.assert_array_equal(prompt_tokens(without_clicks, TRANSFORM, spec).mask_logits, logits)


def test_prompts_are_grouped_by_number_of_tokens():
    box = np.array([10, 20, 300, 400], np.float32)
    prompts = [ObjectPrompt(**points((1, 1))), ObjectPrompt(box_xyxy=box), ObjectPrompt(**points((1, 1), (2, 2)))]
    tokens = [prompt_tokens(p, TRANSFORM, SPEC) for p in prompts]
    assert group_by_token_count(tokens) == {2: [0, 1], 3: [2]}


@pytest.mark.parametrize("input_size", [512, 768])
def test_raster_equals_the_one_the_segmenter_is_trained_with(input_size):
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, input_size, (6, 5, 2)).astype(np.float32)
    labels = np.array([[1, 0, 1, 2, 3], [1, 1, 0, 0, -1], [2, 3, -1, -1, -1], [0, 0, 0, 0, 0], [1] * 5, [-1] * 5])
    coords[:, 4] = np.maximum(coords[:, 3], coords[:, 4])
    grid = (input_size // 4, input_size // 4)
    trained = rasterize_prompts(torch.from_numpy(coords), torch.from_numpy(labels).float(), grid, input_size, RASTER)
    for one_coords, one_labels, one in zip(coords, labels, trained, strict=True):
        ours = rasterize_prompt(one_coords, one_labels.astype(np.float32), grid, input_size, RASTER)
        np.testing.assert_allclose(ours, one[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (ObjectPrompt(), "points"),
        (ObjectPrompt(**points((-1, 5))), "points[0].x"),
        (ObjectPrompt(**points((5, 5), (5, 481))), "points[1].y"),
        (ObjectPrompt(**points((float("nan"), 5))), "points[0].x"),
        (ObjectPrompt(**points(*[(1, 1)] * 257)), "points"),
        (ObjectPrompt(**points((1, 1), labels=[2])), "points"),
        (ObjectPrompt(box_xyxy=np.array([5, 5, 5, 9], np.float32)), "box"),
        (ObjectPrompt(box_xyxy=np.array([5, 5, 641, 9], np.float32)), "box"),
        (ObjectPrompt(box_xyxy=np.array([5, np.nan, 9, 9], np.float32)), "box"),
        (ObjectPrompt(low_res_logits=np.zeros((64, 64), np.float32)), "low_res_logits"),
        (ObjectPrompt(low_res_logits=np.full((256, 256), np.inf, np.float32)), "low_res_logits"),
        (ObjectPrompt(mask=np.ones((640, 480), bool)), "mask"),
    ],
)
def test_prompt_that_does_not_fit_the_image_is_invalid_input(prompt, field):
    with pytest.raises(InvalidInput) as caught:
        prompt.check((480, 640), (256, 256))
    assert caught.value.violations[0].field == field


def test_prompt_on_the_far_border_is_valid():
    ObjectPrompt(**points((640, 480)), box_xyxy=np.array([0, 0, 640, 480], np.float32)).check((480, 640), (256, 256))
