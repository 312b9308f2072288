"""PredictMasks through all three services against segment-anything's SamPredictor, on equal weights."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from fakes.sam_checkpoints import write_sam_checkpoint, write_vit_b_checkpoint
from fakes.segmentation_site import Site, as_png, iou
from vplab.client import AsyncClient, ObjectPrompt
from vplab.training.models.compare import make_picture
from vplab.training.models.imported import ImportOptions
from vplab.training.models.importing import import_model

ODD_SIZE_HW = (517, 761)  # ViT-B takes minutes an image, and sizes are the small one's business
SIZES_HW = ((480, 640), (640, 480), (1024, 1024), ODD_SIZE_HW)
LOGIT_TOLERANCE = 1e-3
MASK_IOU = 0.999


@asynccontextmanager
async def serving_checkpoint(folder: Path, checkpoint: Path) -> AsyncIterator[AsyncClient]:
    """Import a checkpoint, publish what comes out and serve it with float32 embeddings."""
    options = ImportOptions(parity_image_sizes_hw=((120, 160),), has_bank=False)
    encoder, segmenter = import_model(checkpoint, out_dir=folder / "out", options=options).artifacts
    site = Site(folder)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(site.registry.running())
        image_encoder = await site.publish_model(encoder.files["model.json"].parent, "sam-encoder")
        await site.publish_model(segmenter.files["model.json"].parent, "sam-segmenter", image_encoder=image_encoder)
        await stack.enter_async_context(site.embedding())
        serving = await stack.enter_async_context(
            site.segmentation(default_segmenter="artifacts/sam-segmenter", preload=False)
        )
        yield serving.client


def prompts(size_hw: tuple[int, int], earlier: NDArray[np.float32]) -> Iterator[ObjectPrompt]:
    """Yield every kind of prompt; ``earlier`` are logits (h, w) of a previous answer."""
    height, width = size_hw
    points = (np.array([[0.31, 0.42], [0.8, 0.2], [0.55, 0.71]]) * (width, height)).astype(np.float32)
    box = np.array([0.2 * width, 0.25 * height, 0.7 * width, 0.9 * height], np.float32)
    point = ObjectPrompt(points_xy=points[:1], point_labels=np.array([1]))
    clicks = ObjectPrompt(points_xy=points, point_labels=np.array([1, 0, 1]))
    yield from (point, clicks, ObjectPrompt(box_xyxy=box), replace(clicks, box_xyxy=box))
    yield from (
        ObjectPrompt(low_res_logits=earlier),
        replace(point, low_res_logits=earlier),
        ObjectPrompt(box_xyxy=box, low_res_logits=earlier),
    )


async def check_image(client: AsyncClient, sam: Sam, size_hw: tuple[int, int]) -> None:
    image = make_picture(size_hw, seed=sum(size_hw))
    reference = SamPredictor(sam)
    reference.set_image(image)
    height, width = size_hw
    _, _, first = reference.predict(np.array([[0.6 * width, 0.5 * height]]), np.array([1]), multimask_output=False)
    asked = list(prompts(size_hw, first[0]))
    shares = []
    for multimask in (False, True):
        answer = await client.segmentation.predict_masks(
            as_png(image), asked, multimask=multimask, include_low_res_logits=True, timeout_s=300
        )
        assert answer.image_size_hw == size_hw
        for prompt, found in zip(asked, answer.objects, strict=True):
            masks, ious, logits = reference.predict(
                point_coords=prompt.points_xy,
                point_labels=prompt.point_labels,
                box=prompt.box_xyxy,
                mask_input=None if prompt.low_res_logits is None else prompt.low_res_logits[None],
                multimask_output=multimask,
            )
            assert len(found) == (3 if multimask else 1)
            np.testing.assert_allclose([f.predicted_iou for f in found], ious, atol=LOGIT_TOLERANCE)
            for ours, mask, plane in zip(found, masks, logits, strict=True):
                np.testing.assert_allclose(ours.low_res_logits, plane, atol=LOGIT_TOLERANCE)
                assert iou(ours.mask, mask) >= MASK_IOU
                shares.append(float(mask.mean()))
    # Masks that are all or nothing would agree whatever the services did.
    assert 0.02 < np.mean(shares) < 0.98
    assert np.ptp(shares) > 0.01


async def test_predict_masks_equals_sam_predictor_for_every_prompt_and_image_size(tmp_path: Path) -> None:
    sam = write_sam_checkpoint(tmp_path / "sam.pth", input_size=256, seed=3)
    async with serving_checkpoint(tmp_path, tmp_path / "sam.pth") as client:
        for size_hw in SIZES_HW:
            await check_image(client, sam, size_hw)


@pytest.mark.slow
async def test_predict_masks_on_vit_b_equals_sam_predictor(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    sam = write_vit_b_checkpoint(tmp_path / "sam_vit_b.pth", seed=5)
    async with serving_checkpoint(tmp_path, tmp_path / "sam_vit_b.pth") as client:
        await check_image(client, sam, ODD_SIZE_HW)
