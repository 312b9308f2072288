"""What several references teach of single pixels, served: thin defects that patches are too coarse for."""

from pathlib import Path

import numpy as np
import pytest

from fakes.segmentation_site import as_png, iou
from fakes.training_site import SEGMENTER, nano_site
from vplab.client.segmentation.values import PromptSetDraft, Reference, SegmentClass, SegmentOptions
from vplab.vision.matching import class_bank
from vplab.vision.synthesis import synthesize_inspection_set

SCRATCH = SegmentClass(1, "scratch")
SHOWN = synthesize_inspection_set(4, (192, 256), "scratch", seed=2)
TESTED = synthesize_inspection_set(3, (192, 256), "scratch", seed=77)


async def mean_iou(folder: Path, tile_side: int = 0) -> float:
    """Return the mean IoU of scratches that four references show."""
    async with (
        nano_site(folder) as site,
        site.segmentation(
            default_segmenter=SEGMENTER, default_feature_encoder="artifacts/nano-encoder", refines="auto"
        ) as serving,
    ):
        client = serving.client.segmentation
        references = [Reference(as_png(item.image_rgb), {1: item.mask}) for item in SHOWN]
        options = SegmentOptions(tile_side=tile_side, presence_threshold=-1)
        await client.create_prompt_set(PromptSetDraft("scratches", [SCRATCH], references, options=options))
        found = []
        for item in TESTED:
            answer = await client.segment_image(as_png(item.image_rgb), "artifacts/scratches")
            found.append(iou(answer.classes[0].mask, item.mask))
    return float(np.mean(found))


@pytest.mark.parametrize("tile_side", [0, 160], ids=["whole", "tiles"])
async def test_pixels_of_several_references_find_what_patches_are_too_coarse_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile_side: int
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    by_pixels = await mean_iou(tmp_path / "with", tile_side)
    monkeypatch.setattr(class_bank, "_learn_pixels", lambda *_: None)
    by_patches = await mean_iou(tmp_path / "without", tile_side)
    assert by_pixels > by_patches + 0.05
    assert by_pixels > 0.45
