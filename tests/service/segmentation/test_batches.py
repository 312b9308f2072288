"""How many calls share a run of the decoder, unless a setting says otherwise."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from fakes.gated_batches import GatedBatches
from fakes.segmentation_site import RED, as_png, scene, tiny_site
from vplab.client import DigestImage, ObjectPrompt
from vplab.segmentation import composition


async def test_clicks_share_a_run_four_at_a_time_and_none_waits_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = GatedBatches(composition.decode_batch)
    monkeypatch.setattr(composition, "decode_batch", batches)
    prompt = ObjectPrompt(points_xy=np.array([[60, 50]], np.float32), point_labels=np.array([1]))
    async with tiny_site(tmp_path) as (_, serving):
        predict = serving.client.segmentation.predict_masks
        first = asyncio.create_task(predict(as_png(scene((60, 50, 20, RED))[0]), prompt))
        await batches.wait_begun()  # alone, though three more would have fitted
        others = [asyncio.create_task(predict(as_png(scene((60, 50, 20, RED))[0]), prompt)) for _ in range(5)]
        await batches.wait_behind("decoder", 5)
        batches.let_go.set()
        known = DigestImage((await first).provenance.image_digest)
        await asyncio.gather(*others)
        await predict(known, prompt)
    assert batches.sizes == [1, 4, 1, 1]
