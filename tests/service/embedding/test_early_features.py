"""An encoder's early feature over a channel: one more output, cached with the others and sent to whoever wants it."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fakes.segmentation_site import as_png
from fakes.small_sam import EARLY, EARLY_ENCODER_SPEC, ENCODER, GRID, small_site, write_small_sam
from vplab.client import AsyncClient, ClientOptions
from vplab.client.embedding.area import AsyncEmbedding
from vplab.errors import NotFound
from vplab.segmentation.backends.grpc_embedding import GrpcEmbedding
from vplab.segmentation.values import EncodedImage, ModelRef

PICTURE = as_png(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
NAME = f"artifacts/{ENCODER}"
SHAPE = (EARLY, GRID, GRID)


@pytest.fixture
async def embedding(tmp_path: Path) -> AsyncIterator[AsyncEmbedding]:
    models = write_small_sam(tmp_path / "models", EARLY_ENCODER_SPEC)
    async with (
        small_site(tmp_path, models) as site,
        AsyncClient(embedding=site.embedding_address, options=ClientOptions()) as client,
    ):
        yield client.embedding


async def test_it_is_cached_with_the_embedding_and_sent_to_whoever_wants_it(embedding: AsyncEmbedding) -> None:
    (listed,) = [encoder async for encoder in embedding.list_encoders()]
    assert [(o.role, o.shape) for o in listed.outputs][-1] == ("early_features", SHAPE)
    (first,) = await embedding.embed_image(PICTURE, NAME, output_roles=["image_embedding"])
    assert (first.tier, [tensor.role for tensor in first.tensors]) == ("computed", ["image_embedding"])
    (again,) = await embedding.embed_image(PICTURE, NAME, output_roles=["early_features"])
    assert (again.name, again.tier) == (first.name, "host")
    early = again.output("early_features")
    assert (early.shape, early.dtype) == (SHAPE, np.float16)
    assert early.std() > 0
    whole = await embedding.get_embedding(first.name)
    assert [tensor.role for tensor in whole.tensors] == ["image_embedding", "patch_features", "early_features"]
    np.testing.assert_array_equal(whole.output("early_features"), early)


async def test_a_read_in_chunks_carries_the_roles_asked_for_and_no_others(embedding: AsyncEmbedding) -> None:
    (header,) = await embedding.embed_image(PICTURE, NAME, include_tensors=False)
    without = await embedding.get_embedding(header.name, output_roles=["image_embedding", "patch_features"])
    assert [tensor.role for tensor in without.tensors] == ["image_embedding", "patch_features"]
    alone = await embedding.get_embedding(header.name, output_roles=["early_features"])
    (known,) = await embedding.embed_image(PICTURE, NAME, output_roles=["early_features"])
    np.testing.assert_array_equal(alone.output("early_features"), known.output("early_features"))
    with pytest.raises(NotFound):
        without.output("early_features")


async def test_the_segmentation_service_gets_what_it_asks_for(embedding: AsyncEmbedding) -> None:
    (listed,) = [encoder async for encoder in embedding.list_encoders()]
    model = ModelRef(listed.model.name, listed.model.digest)
    embedder = GrpcEmbedding(embedding, "float32")
    for roles in (["image_embedding"], ["image_embedding", "early_features"]):
        found = await embedder.embed(EncodedImage(PICTURE), {model: roles})
        assert list(found[model].outputs) == roles
