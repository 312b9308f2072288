"""HQ-SAM's adapter with its early feature: served masks are those of torch, and what does not fit is refused."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fakes.hq_adapters import adapt_small_sam, write_hq_adapter
from fakes.segmentation_site import Serving, Site, as_png
from fakes.small_sam import (
    EARLY,
    EARLY_ENCODER_SPEC,
    ENCODER,
    SEGMENTER,
    SEGMENTER_SPEC,
    SIDE,
    small_site,
    write_small_sam,
)
from vplab.client import AsyncClient, ClientOptions, ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.client.embedding.values import Embedding
from vplab.client.segmentation.values import SegmentOptions
from vplab.errors import FailedPrecondition
from vplab.training.models.compare import graph_inputs
from vplab.vision.adapters.adapt import AdaptedDecoder
from vplab.vision.preprocessing import frame_transform
from vplab.vision.prompts import prompt_tokens
from vplab.vision.synthesis import synthesize_inspection_set

ADAPTER = "artifacts/sharp"
PICTURES = [as_png(shown.image_rgb) for shown in synthesize_inspection_set(2, (90, 120), "patch", seed=1)]
PROMPTS = [
    ObjectPrompt(points_xy=np.array([[50, 40]], np.float32), point_labels=np.array([1])),
    ObjectPrompt(box_xyxy=np.array([20, 15, 80, 70], np.float32)),
]


@dataclass
class Running:
    site: Site
    serving: Serving
    embedding: AsyncClient
    adapted: AdaptedDecoder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sam(tmp_path_factory.mktemp("early-sam"), EARLY_ENCODER_SPEC)


@pytest.fixture(scope="module")
def adapted(models: Path) -> AdaptedDecoder:
    return adapt_small_sam(models)


@pytest.fixture(scope="module")
def hq_adapter(adapted: AdaptedDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hq_adapter(tmp_path_factory.mktemp("hq") / "adapter", adapted)


@pytest.fixture
async def running(models: Path, adapted: AdaptedDecoder, tmp_path: Path) -> AsyncIterator[Running]:
    names = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
    async with (
        small_site(tmp_path, models) as site,
        site.segmentation(**names) as serving,
        AsyncClient(embedding=site.embedding_address, options=ClientOptions()) as client,
    ):
        yield Running(site, serving, client, adapted)


async def publish(running: Running, folder: Path) -> None:
    base = await running.serving.client.registry.get_version(f"artifacts/{SEGMENTER}")
    await running.site.publish_adapter_files(folder, "sharp", base=base)


async def embedded(running: Running, picture: bytes) -> Embedding:
    (found,) = await running.embedding.embedding.embed_image(picture, f"artifacts/{ENCODER}", precision="float32")
    return found


def by_torch(adapted: AdaptedDecoder, found: Embedding, early: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the single mask's logits for each of PROMPTS, one decoder call for each."""
    transform = frame_transform(found.image_size_hw, EARLY_ENCODER_SPEC.preprocessing)
    planes = []
    for prompt in PROMPTS:
        tokens = [prompt_tokens(prompt, transform, SEGMENTER_SPEC)]
        feed = graph_inputs(found.output("image_embedding")[None], np.zeros(1, np.int64), tokens, SEGMENTER_SPEC)
        with torch.inference_mode():
            logits, _ = adapted(*(torch.from_numpy(np.array(v)) for v in (*feed.values(), early[None])))
        planes.append(logits[0, 0].numpy())
    return np.stack(planes)


async def served(running: Running, picture: bytes, adapter: str = ADAPTER) -> NDArray[np.float32]:
    answer = await running.serving.client.segmentation.predict_masks(
        picture, PROMPTS, adapter=adapter, include_low_res_logits=True
    )
    found = [masks[0].low_res_logits for masks in answer.objects]
    return np.stack([logits for logits in found if logits is not None])


async def test_served_masks_are_those_of_torch_with_the_cached_early_feature(
    running: Running, hq_adapter: Path
) -> None:
    await publish(running, hq_adapter)
    for picture in PICTURES:
        found = await embedded(running, picture)
        early = found.output("early_features")
        assert early.shape == (EARLY, SIDE // 16, SIDE // 16)
        expected = by_torch(running.adapted, found, early)
        np.testing.assert_allclose(await served(running, picture), expected, atol=1e-3)
        # The feature of another image would have been noticed, and so would none.
        for other in (np.zeros_like(early), early[:, ::-1]):
            assert np.abs(by_torch(running.adapted, found, np.ascontiguousarray(other)) - expected).max() > 0.1
        base = await served(running, picture, "")
        assert np.abs(base - expected).max() > 0.1


async def test_a_prompt_set_is_segmented_with_it_tile_by_tile_too(running: Running, hq_adapter: Path) -> None:
    await publish(running, hq_adapter)
    shown = synthesize_inspection_set(1, (90, 120), "patch", seed=1)[0]
    draft = PromptSetDraft("patches", [SegmentClass(7, "patch")], [Reference(as_png(shown.image_rgb), {7: shown.mask})])
    segmentation = running.serving.client.segmentation
    await segmentation.create_prompt_set(draft)
    large = as_png(np.tile(shown.image_rgb, (2, 2, 1)))
    for picture, tile_side in ((PICTURES[0], 0), (large, 128)):
        options = SegmentOptions(tile_side=tile_side, presence_threshold=-1.0)
        answers = [
            await segmentation.segment_image(picture, "artifacts/patches", adapter=name, options=options)
            for name in (ADAPTER, "")
        ]
        assert (answers[0].classes[0].mask != answers[1].classes[0].mask).any()


async def test_an_adapter_whose_early_feature_the_encoder_does_not_give_is_refused(
    running: Running, adapted: AdaptedDecoder, models: Path, tmp_path: Path
) -> None:
    other = adapt_small_sam(models, EARLY + 4)
    await publish(running, write_hq_adapter(tmp_path / "other", other))
    with pytest.raises(
        FailedPrecondition, match=f"takes early features of {EARLY + 4} channels, .* gives {EARLY}"
    ) as no:
        await served(running, PICTURES[0])
    assert (no.value.reason, no.value.metadata["field"]) == ("MODEL_MISMATCH", "adapter")

    await publish(running, write_hq_adapter(tmp_path / "silent", adapted, said={"method": "hq_token"}))
    with pytest.raises(FailedPrecondition, match=r"takes early features, and its adapter\.json does not say so") as no:
        await served(running, PICTURES[0], "artifacts/sharp/versions/2")
    assert no.value.reason == "MODEL_UNSUPPORTED"
