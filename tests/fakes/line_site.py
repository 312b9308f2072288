"""All services with a small SAM, and a prompt set to make line bundles of."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fakes.segmentation_site import as_png
from fakes.small_sam import ENCODER, SEGMENTER, small_site
from fakes.training_site import TrainingSite, training_beside
from vplab.client.segmentation.values import PromptSetDraft, Reference, SegmentClass
from vplab.vision.synthesis import synthesize_inspection_set


@asynccontextmanager
async def line_site(folder: Path, models_folder: Path | None = None) -> AsyncIterator[TrainingSite]:
    """Run them; ``artifacts/patches`` has one reference of class 7, "patch".

    models_folder: the small SAM, where it is written already.
    """
    models = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
    async with (
        small_site(folder, models_folder) as site,
        training_beside(site, **models) as training,
        site.segmentation(**models) as serving,
    ):
        shown = synthesize_inspection_set(1, (90, 120), "patch", seed=1)[0]
        reference = Reference(as_png(shown.image_rgb), {7: shown.mask})
        draft = PromptSetDraft("patches", [SegmentClass(7, "patch")], [reference])
        await serving.client.segmentation.create_prompt_set(draft)
        yield training
