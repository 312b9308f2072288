"""Imported graphs against segment-anything's own SamPredictor on the same weights, image to masks.

Everything on our side is what serving uses: vplab.vision and ONNX Runtime. Everything on the other side is
segment-anything's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from fakes.graph_predictor import GraphPredictor
from fakes.sam_checkpoints import write_sam_checkpoint, write_vit_b_checkpoint
from vplab.training.models.compare import make_picture
from vplab.training.models.imported import ImportOptions
from vplab.training.models.importing import import_model
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt

ODD_SIZE_HW = (517, 761)  # the full size takes minutes an image, and sizes are the small one's business
SIZES_HW = ((480, 640), (640, 480), (1024, 1024), ODD_SIZE_HW)
LOGIT_TOLERANCE = 1e-3
MASK_IOU = 0.999


@dataclass(frozen=True)
class Pair:
    """One image, encoded by both."""

    reference: SamPredictor
    ours: GraphPredictor
    embedding: NDArray[np.float32]
    transform: FrameTransform
    size_hw: tuple[int, int]


def import_and_open(path: Path, out_dir: Path) -> GraphPredictor:
    options = ImportOptions(parity_image_sizes_hw=((120, 160),), has_bank=False)
    encoder, segmenter = import_model(path, out_dir=out_dir, options=options).artifacts
    return GraphPredictor(encoder.files["model.json"].parent, segmenter.files["model.json"].parent)


def pair(sam: Sam, ours: GraphPredictor, size_hw: tuple[int, int]) -> Pair:
    image = make_picture(size_hw, seed=sum(size_hw))
    reference = SamPredictor(sam)
    reference.set_image(image)
    embedding, transform = ours.embed(image)
    np.testing.assert_allclose(embedding, reference.features.numpy(), atol=LOGIT_TOLERANCE)
    return Pair(reference, ours, embedding, transform, size_hw)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sam, GraphPredictor]:
    folder = tmp_path_factory.mktemp("small")
    sam = write_sam_checkpoint(folder / "sam.pth", input_size=256, seed=3)
    return sam, import_and_open(folder / "sam.pth", folder / "out")


@pytest.fixture(scope="module", params=SIZES_HW, ids=lambda s: f"{s[0]}x{s[1]}")
def small_pair(request: pytest.FixtureRequest, small: tuple[Sam, GraphPredictor]) -> Pair:
    return pair(*small, request.param)


def prompts(size_hw: tuple[int, int], earlier: NDArray[np.float32]) -> Iterator[tuple[str, ObjectPrompt]]:
    """Yield every kind of prompt; ``earlier`` are logits (h, w) of a previous answer."""
    height, width = size_hw
    point = np.array([[0.31 * width, 0.42 * height]], np.float32)
    points = np.array([[0.31, 0.42], [0.8, 0.2], [0.55, 0.71]], np.float32) * (width, height)
    points = points.astype(np.float32)
    box = np.array([0.2 * width, 0.25 * height, 0.7 * width, 0.9 * height], np.float32)
    one, three = np.array([1]), np.array([1, 0, 1])
    with_point = ObjectPrompt(points_xy=point, point_labels=one)
    yield "point", with_point
    yield "points", ObjectPrompt(points_xy=points, point_labels=three)
    yield "box", ObjectPrompt(box_xyxy=box)
    yield "box and points", ObjectPrompt(points_xy=points, point_labels=three, box_xyxy=box)
    yield "mask", ObjectPrompt(low_res_logits=earlier)
    yield "mask and point", replace(with_point, low_res_logits=earlier)
    yield "mask and box", ObjectPrompt(box_xyxy=box, low_res_logits=earlier)


def check_all_prompts(images: Pair) -> None:
    reference = images.reference
    height, width = images.size_hw
    _, _, first = reference.predict(np.array([[0.6 * width, 0.5 * height]]), np.array([1]), multimask_output=False)
    foreground_shares = []
    for name, prompt in prompts(images.size_hw, first[0]):
        for multimask in (False, True):
            expected, expected_ious, expected_low = reference.predict(
                point_coords=prompt.points_xy,
                point_labels=prompt.point_labels,
                box=prompt.box_xyxy,
                mask_input=None if prompt.low_res_logits is None else prompt.low_res_logits[None],
                multimask_output=multimask,
                return_logits=True,
            )
            ours = images.ours.predict(images.embedding, images.transform, prompt, multimask=multimask)
            what = f"{name}, multimask {multimask}"
            np.testing.assert_allclose(ours.low_res_logits, expected_low, atol=LOGIT_TOLERANCE, err_msg=what)
            np.testing.assert_allclose(ours.logits, expected, atol=LOGIT_TOLERANCE, err_msg=what)
            np.testing.assert_allclose(ours.ious, expected_ious, atol=LOGIT_TOLERANCE, err_msg=what)
            both = ((ours.logits > 0) & (expected > 0)).sum()
            either = ((ours.logits > 0) | (expected > 0)).sum()
            assert both >= MASK_IOU * either, what
            foreground_shares.append(float((expected > 0).mean()))
    # Masks that are all or nothing would agree whatever the code did.
    assert 0.02 < np.mean(foreground_shares) < 0.98
    assert np.ptp(foreground_shares) > 0.01


def test_small_sam_answers_as_sam_predictor_for_every_prompt_and_image_size(small_pair: Pair) -> None:
    check_all_prompts(small_pair)


def test_the_comparison_notices_a_point_one_pixel_off(small_pair: Pair) -> None:
    height, width = small_pair.size_hw
    points, labels = np.array([[0.31 * width, 0.42 * height]], np.float32), np.array([1])
    _, _, expected = small_pair.reference.predict(points, labels, multimask_output=True)
    moved = ObjectPrompt(points_xy=points + np.float32(1), point_labels=labels)
    ours = small_pair.ours.predict(small_pair.embedding, small_pair.transform, moved, multimask=True)
    assert np.abs(ours.low_res_logits - expected).max() > LOGIT_TOLERANCE


@pytest.mark.slow
def test_vit_b_answers_as_sam_predictor_for_every_prompt(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    sam = write_vit_b_checkpoint(tmp_path / "sam_vit_b.pth", seed=5)
    ours = import_and_open(tmp_path / "sam_vit_b.pth", tmp_path / "out")
    assert ours.encoder_spec.architecture == "vit_b"
    check_all_prompts(pair(sam, ours, ODD_SIZE_HW))
