"""Graphs whose weights lie in a file beside them, as those of large models do, all the way from export to bundle."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from fakes.line_site import line_site
from fakes.random_decoders import build_decoder
from fakes.small_sam import ENCODER, GRID, SEGMENTER, STRIDE, write_small_sam
from vplab.client import AsyncSnapshots
from vplab.training.line_bundle.line_program import Line, damaged_files
from vplab.training.models.graph_files import write_graph
from vplab.vision.sam.onnx_decoder import decoder_to_onnx
from vplab.vision.synthesis import synthesize_inspection_set

DATA = {"image_encoder/encoder.onnx.data", "decoder/decoder.onnx.data"}


def write_split_sam(folder: Path) -> Path:
    """Write the small SAM with nearly nothing but the structure in its graphs' own files."""
    write_small_sam(folder)
    encoder = folder / ENCODER / "encoder.onnx"
    model = onnx.load(encoder)
    onnx.save(model, encoder, save_as_external_data=True, location="encoder.onnx.data", size_threshold=1000)
    decoder = build_decoder(GRID, STRIDE)
    program = decoder_to_onnx(decoder.prompt_encoder, decoder.mask_decoder)
    write_graph(program, folder / SEGMENTER / "decoder.onnx", max_single_file_bytes=1000)
    for path in (encoder, folder / SEGMENTER / "decoder.onnx"):
        assert path.stat().st_size < path.with_name(f"{path.name}.data").stat().st_size
    return folder


async def bundle_of(folder: Path, models: Path) -> Path:
    """Publish models, teach a prompt set through the services that load them, and return a bundle's files."""
    async with line_site(folder, models) as training:
        client = training.client
        job = await client.training.create_export_job("line-a", "artifacts/patches")
        async with asyncio.timeout(120):
            while not job.is_done:
                await asyncio.sleep(0.1)
                job = await client.training.get_export_job(job.name)
        assert (job.state, job.message) == ("succeeded", "")
        assert job.bundle is not None
        snapshots = AsyncSnapshots(client.registry, folder / "fetched")
        try:
            found = (await snapshots.fetch(job.bundle.name)).folder
            return Path(await asyncio.to_thread(shutil.copytree, found, folder / "bundle"))
        finally:
            snapshots.close()


@pytest.mark.slow
async def test_weights_beside_a_graph_reach_the_services_and_the_line(tmp_path: Path) -> None:
    bundles = {}
    for name, write in (("whole", write_small_sam), ("split", write_split_sam)):
        models = await asyncio.to_thread(write, tmp_path / name / "models")
        bundles[name] = await bundle_of(tmp_path / name, models)
    files = {path.relative_to(bundles["split"]).as_posix() for path in bundles["split"].rglob("*.data")}
    assert files == DATA
    assert damaged_files(bundles["split"]) == []
    image = synthesize_inspection_set(1, (90, 120), "patch", seed=5)[0].image_rgb
    expected, found = (Line(bundles[name], threads=1).segment(image)[0].found for name in ("whole", "split"))
    assert found.match.presence_score == expected.match.presence_score
    np.testing.assert_array_equal(found.mask((90, 120)), expected.mask((90, 120)))
    (bundles["split"] / "decoder" / "decoder.onnx.data").write_bytes(b"cut off")
    assert damaged_files(bundles["split"]) == ["decoder/decoder.onnx.data"]
