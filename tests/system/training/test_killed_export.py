"""A service killed while it makes a bundle: the job ends once, with one version."""

import asyncio
import signal
from pathlib import Path

import pytest

from fakes.segmentation_site import as_png
from fakes.service_process import answering, service_process, socket_address
from fakes.small_sam import ENCODER, SEGMENTER, small_site
from vplab.client import AsyncClient, ClientOptions
from vplab.client.segmentation.values import PromptSetDraft, Reference, SegmentClass
from vplab.vision.synthesis import synthesize_inspection_set

NUM_REFERENCES = 6


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.4])
async def test_an_export_whose_service_is_killed_ends_once_after_a_restart(tmp_path: Path, delay_s: float) -> None:
    models = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
    variables = {
        "REGISTRY_ADDRESS": f"unix:{tmp_path}/registry.sock",
        "EMBEDDING_ADDRESS": f"unix:{tmp_path}/embedding.sock",
        "CACHE_DIR": str(tmp_path / "training"),
        "LEASE_S": "1",
        "POLL_S": "0.05",
    }
    addresses = {"registry": f"unix:{tmp_path}/registry.sock", "training": socket_address(tmp_path, "training")}
    async with small_site(tmp_path) as site, AsyncClient(**addresses, options=ClientOptions()) as client:
        async with site.segmentation(**models) as serving:
            shown = synthesize_inspection_set(NUM_REFERENCES, (200, 300), "patch", seed=1)
            references = [Reference(as_png(image.image_rgb), {1: image.mask}) for image in shown]
            draft = PromptSetDraft("patches", [SegmentClass(1, "patch")], references)
            await serving.client.segmentation.create_prompt_set(draft)
        with service_process("training", tmp_path, variables) as process:
            await answering(client, "training", process)
            job = await client.training.create_export_job("line-a", "artifacts/patches")
            async with asyncio.timeout(120):
                while (await client.training.get_export_job(job.name)).state == "queued":
                    await asyncio.sleep(0.01)
            await asyncio.sleep(delay_s)
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait, 20)
        with service_process("training", tmp_path, variables) as process:
            await answering(client, "training", process)
            async with asyncio.timeout(120):
                while not (ended := await client.training.get_export_job(job.name)).is_done:
                    await asyncio.sleep(0.05)
            assert (ended.state, ended.message) == ("succeeded", "")
            assert ended.bundle is not None
            versions = [version.name async for version in client.registry.list_versions("artifacts/line-a")]
            assert versions == [ended.bundle.name]
            assert list((tmp_path / "training" / "bundles").iterdir()) == []
