"""How many images share a run of an encoder, unless a setting says otherwise."""

import asyncio

import pytest

from fakes.embedding_server import Serve, png
from fakes.gated_batches import GatedBatches
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.embedding import composition


@pytest.mark.parametrize(("on_cpu", "sizes"), [(True, [1] * 6), (False, [1, 4, 1])])
async def test_images_are_encoded_one_by_one_on_a_cpu_and_four_at_a_time_on_a_gpu(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, on_cpu: bool, sizes: list[int]
) -> None:
    batches = GatedBatches(composition.encode_batch)
    monkeypatch.setattr(composition, "encode_batch", batches)
    monkeypatch.setattr(composition, "runs_on_cpu", lambda settings: on_cpu)
    async with serve() as serving:

        async def embed(seed: int) -> pb.EmbedImageResponse:
            image = vision_pb2.Image(encoded=png(seed))
            return await serving.stub.EmbedImage(pb.EmbedImageRequest(image=image, encoders=["artifacts/tiny-encoder"]))

        first = asyncio.ensure_future(embed(0))
        await batches.wait_begun()
        others = [asyncio.ensure_future(embed(seed)) for seed in range(1, 6)]
        await batches.wait_behind("encoder", 5)
        batches.let_go.set()
        await asyncio.gather(first, *others)
    assert batches.sizes == sizes
