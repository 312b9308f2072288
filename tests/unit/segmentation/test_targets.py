"""Images to embeddings: remembered, cut into tiles, and refused where models do not fit."""

import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import numpy as np
import pytest
from PIL import Image

from vplab.client.embedding.values import Embedding, OutputTensor
from vplab.client.models import ModelReference
from vplab.errors import InvalidInput
from vplab.segmentation import targets as module
from vplab.segmentation.backends.grpc_embedding import GrpcEmbedding
from vplab.segmentation.errors import EmbeddingNotCached, ModelMismatch
from vplab.segmentation.targets import Targets
from vplab.segmentation.values import (
    Embedded,
    EncodedImage,
    EncoderVersion,
    FrameImage,
    ImageInput,
    KnownImage,
    ModelRef,
)
from vplab.segmentation.workers import Workers
from vplab.vision.images import ImageLimits, PixelFormat, decode_image, encoded_digest, frame_to_rgb
from vplab.vision.specs import EncoderSpec, OutputSpec, Preprocessing

MODEL = ModelRef("artifacts/e/versions/1", "e" * 64)
SPEC = EncoderSpec(
    family="t",
    architecture="t",
    preprocessing=Preprocessing(resize="longest_side", size=64, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1)),
    outputs=(
        OutputSpec(name="a", role="image_embedding", shape=(2, 4, 4), stride=16),
        OutputSpec(name="b", role="patch_features", shape=(8, 8, 3), stride=8),
    ),
)
ENCODER = EncoderVersion(MODEL, SPEC)


class FakeEmbedder:
    """Embeds an image as its mean; knows by digest what it saw."""

    def __init__(self) -> None:
        self.calls: list[ImageInput] = []
        self.feature_shape = (8, 8, 3)

    async def embed(self, image: ImageInput, encoders: Mapping[ModelRef, Sequence[str]]) -> Mapping[ModelRef, Embedded]:
        self.calls.append(image)
        if isinstance(image, KnownImage):
            raise EmbeddingNotCached(image.digest)
        if isinstance(image, EncodedImage):
            pixels, digest = decode_image(image.data), encoded_digest(image.data)
        else:
            pixels = frame_to_rgb(image.data, image.width, image.height, image.stride_bytes, image.pixel_format)
            digest = f"{len(self.calls):064x}"
        outputs = {
            "image_embedding": np.full((2, 4, 4), pixels.mean(), np.float16),
            "patch_features": np.ones(self.feature_shape, np.float16),
        }
        chosen = {role: outputs[role] for roles in encoders.values() for role in roles}
        return {model: Embedded(digest, pixels.shape[:2], model, chosen) for model in encoders}


def png(height: int, width: int) -> EncodedImage:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return EncodedImage(file.getvalue())


Make = Callable[..., Targets]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    workers = Workers(num_threads=1, num_quick_threads=1, max_waiting=8)

    def made(embedder: FakeEmbedder, **changes: int) -> Targets:
        values = {"cache_bytes": 1 << 20, "max_tiles": 16} | changes
        return Targets(embedder, workers, ImageLimits(max_bytes=1 << 20), **values)

    yield made
    await workers.close()


async def test_an_image_is_embedded_once_and_then_known_by_its_digest(make: Make) -> None:
    embedder = FakeEmbedder()
    targets = make(embedder)
    first = await targets.open(png(32, 48), ENCODER, ENCODER, 0)
    again = await targets.open(png(32, 48), ENCODER, ENCODER, 0)
    known = await targets.open(KnownImage(first.image_digest), ENCODER, ENCODER, 64)
    assert len(embedder.calls) == 1
    assert first.image_hw == again.image_hw == known.image_hw == (32, 48)
    assert first.embeddings[0].shape == (2, 4, 4)
    assert first.patches.features.dtype == np.float32


async def test_without_room_nothing_is_remembered(make: Make) -> None:
    embedder = FakeEmbedder()
    targets = make(embedder, cache_bytes=0)
    for _ in range(2):
        await targets.open(png(32, 48), ENCODER, ENCODER, 0)
    assert len(embedder.calls) == 2


async def test_a_large_image_is_embedded_tile_by_tile(make: Make) -> None:
    embedder = FakeEmbedder()
    target = await make(embedder).open(png(100, 180), ENCODER, ENCODER, 100)
    assert target.image_hw == (100, 180)
    assert [t.origin_xy for t in target.patches.tiles] == [(0, 0), (40, 0), (80, 0)]
    assert len(target.embeddings) == 3
    sent = [call for call in embedder.calls if isinstance(call, FrameImage)]
    assert [(f.width, f.height, f.pixel_format) for f in sent] == [(100, 100, PixelFormat.RGB8)] * 3


async def test_a_tiled_image_whose_embeddings_are_known_is_not_decoded_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def counting(data: bytes, limits: ImageLimits) -> np.ndarray:
        decoded.append(data)
        return decode_image(data, limits)

    monkeypatch.setattr(module, "decode_image", counting)
    targets, forgetful = make(FakeEmbedder()), make(FakeEmbedder(), cache_bytes=0)
    first = await targets.open(png(100, 180), ENCODER, ENCODER, 100)
    again = await targets.open(png(100, 180), ENCODER, ENCODER, 100)
    assert len(decoded) == 1
    assert [t.origin_xy for t in again.patches.tiles] == [t.origin_xy for t in first.patches.tiles]
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    await targets.open(png(100, 180), ENCODER, ENCODER, 80)
    assert len(decoded) == 2, "other tiles"
    for _ in range(2):
        await forgetful.open(png(100, 180), ENCODER, ENCODER, 100)
    assert len(decoded) == 4, "nobody has the embeddings any more"


async def test_a_large_image_by_digest_and_too_many_tiles_are_refused(make: Make) -> None:
    targets = make(FakeEmbedder(), max_tiles=4)
    whole = await targets.open(png(100, 180), ENCODER, ENCODER, 0)
    with pytest.raises(EmbeddingNotCached):
        await targets.open(KnownImage(whole.image_digest), ENCODER, ENCODER, 100)
    with pytest.raises(InvalidInput) as caught:
        await targets.open(png(400, 400), ENCODER, ENCODER, 100)
    assert caught.value.violations[0].field == "options.tile_side"


async def test_a_file_above_the_limit_is_refused_before_it_is_sent(make: Make) -> None:
    embedder = FakeEmbedder()
    with pytest.raises(InvalidInput) as caught:
        await make(embedder).open(EncodedImage(bytes(2 << 20)), None, ENCODER, 0)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert not embedder.calls


async def test_features_of_another_shape_are_a_model_mismatch(make: Make) -> None:
    embedder = FakeEmbedder()
    embedder.feature_shape = (8, 8, 5)
    with pytest.raises(ModelMismatch) as caught:
        await make(embedder).open(png(32, 48), None, ENCODER, 0)
    assert caught.value.metadata == {"expected": "[8, 8, 3]", "actual": "[8, 8, 5]"}


class FakeArea:
    """The client's embedding area, answering with one encoder whatever was asked for."""

    async def embed_image(self, image: object, encoders: Sequence[str], **options: object) -> tuple[Embedding, ...]:
        tensor = OutputTensor("b", "patch_features", np.ones((8, 8, 3), np.float16))
        reference = ModelReference(MODEL.name, "f" * 64)
        return (Embedding("embeddings/x", reference, "0" * 64, (4, 4), "float16", (tensor,), "host"),)


async def test_an_embedding_of_another_version_is_a_model_mismatch() -> None:
    embedder = GrpcEmbedding(FakeArea(), "float16")  # type: ignore[arg-type]
    with pytest.raises(ModelMismatch) as caught:
        await embedder.embed(png(4, 4), {MODEL: ["patch_features"]})
    assert caught.value.metadata == {"expected": "e" * 64, "actual": "f" * 64}
