"""What the core makes of an encoder's outputs, and how it shares the device."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from fakes import tiny_models
from fakes.embedding_server import png
from fakes.fake_models import FakeModelSource
from vplab.embedding import preparation as preparation_module
from vplab.embedding.cache import EmbeddingCache, HostCache
from vplab.embedding.core import EmbeddingCore, EncodeQueue, Urgency, encode_batch
from vplab.embedding.encoder_directory import EncoderDirectory
from vplab.embedding.encoder_pool import EncoderPool
from vplab.embedding.preparation import ImagePreparation
from vplab.embedding.values import EncodedImage, KnownImage, Precision, Tier
from vplab.errors import Internal, InvalidInput, ResourceExhausted
from vplab.runtime.device_queue import Priority
from vplab.vision.images import ImageLimits
from vplab.vision.specs import EncoderSpec

NAME = "artifacts/tiny-encoder/aliases/production"
CLICK = Urgency(Priority.INTERACTIVE)


class FakeEncoder:
    """Returns one value everywhere, and remembers its batches."""

    execution_provider = "FakeExecutionProvider"
    num_bytes = 1000

    def __init__(self) -> None:
        self.value = 1.0
        self.batch_sizes: list[int] = []

    def run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        self.batch_sizes.append(len(images))
        self.thread = threading.get_ident()
        shapes = [output.shape for output in tiny_models.ENCODER_SPEC.outputs]
        return [np.full((len(images), *shape), self.value, dtype=np.float32) for shape in shapes]


class FakeLoader:
    """Loads the same encoder for every version, and counts."""

    def __init__(self) -> None:
        self.encoder = FakeEncoder()
        self.num_loads = 0

    def load(self, name: str, folder: Path, spec: EncoderSpec) -> FakeEncoder:
        self.num_loads += 1
        return self.encoder


@asynccontextmanager
async def core_with(
    loader: FakeLoader, folder: Path, max_wait_s: float = 0.0, *, works_at_device: bool = True
) -> AsyncIterator[EmbeddingCore]:
    tiny_models.write_encoder(folder)
    source = FakeModelSource()
    source.publish("tiny-encoder", 1, folder)
    pool = EncoderPool(source, loader, max_encoders=2, max_bytes=10_000)
    queue: EncodeQueue = EncodeQueue(
        encode_batch,
        name="test",
        capacity=16,
        max_batch_size=4,
        max_wait_s=max_wait_s,
        batch_key=lambda i: id(i.encoder),
    )
    queue.start()
    preparation = ImagePreparation(ImageLimits(), num_threads=2, max_waiting_bytes=1 << 24)
    cache = EmbeddingCache(HostCache(1 << 24), None)
    try:
        directory = EncoderDirectory(source, pool)
        yield EmbeddingCore(directory, pool, cache, preparation, queue, works_at_device=works_at_device)
    finally:
        await queue.close()
        await preparation.close()
        pool.close()


@pytest.mark.parametrize("works_at_device", [False, True])
async def test_images_that_arrive_together_share_a_run(tmp_path: Path, works_at_device: bool) -> None:
    loader = FakeLoader()
    async with core_with(loader, tmp_path / "model", max_wait_s=0.5, works_at_device=works_at_device) as core:
        encoders = await core.resolve([NAME])
        images = [EncodedImage(png(i)) for i in range(4)]
        found = await asyncio.gather(*(core.embed(i, encoders, Precision.FLOAT16, CLICK) for i in images))
    assert loader.encoder.batch_sizes == [4]
    assert loader.num_loads == 1
    assert len({f.embedding.key for (f,) in found}) == 4


@pytest.mark.parametrize("works_at_device", [False, True])
async def test_an_unreadable_image_of_a_batch_fails_alone(tmp_path: Path, works_at_device: bool) -> None:
    loader = FakeLoader()
    async with core_with(loader, tmp_path / "model", max_wait_s=0.5, works_at_device=works_at_device) as core:
        encoders = await core.resolve([NAME])
        images = [EncodedImage(data) for data in (png(0), b"no image", png(1), png(2)[:60])]
        found = await asyncio.gather(
            *(core.embed(i, encoders, Precision.FLOAT16, CLICK) for i in images), return_exceptions=True
        )
    assert [isinstance(one, InvalidInput) for one in found] == [False, True, False, True]
    assert [one[0].embedding.image_hw for one in (found[0], found[2])] == [(60, 90), (60, 90)]
    assert loader.encoder.batch_sizes == [2]


async def test_an_image_is_read_by_the_thread_that_encodes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, readers = preparation_module.decode_image, list[int]()

    def decode_here(*arguments: Any) -> Any:
        readers.append(threading.get_ident())
        return decode(*arguments)

    monkeypatch.setattr(preparation_module, "decode_image", decode_here)
    is_same = []
    for works_at_device in (True, False):
        loader = FakeLoader()
        async with core_with(loader, tmp_path / f"{works_at_device}", works_at_device=works_at_device) as core:
            await core.embed(EncodedImage(png()), await core.resolve([NAME]), Precision.FLOAT16, CLICK)
        is_same.append(readers.pop() == loader.encoder.thread)
    assert is_same == [True, False]


@pytest.mark.parametrize("works_at_device", [False, True])
async def test_what_waits_to_be_read_is_bounded(tmp_path: Path, works_at_device: bool) -> None:
    async with core_with(FakeLoader(), tmp_path / "model", max_wait_s=0.2, works_at_device=works_at_device) as core:
        encoders = await core.resolve([NAME])
        images = [EncodedImage(png(i) + bytes(3 << 22)) for i in range(2)]
        found = await asyncio.gather(
            *(core.embed(i, encoders, Precision.FLOAT16, CLICK) for i in images), return_exceptions=True
        )
    assert [type(one) for one in found] == [list, ResourceExhausted]


async def test_what_float16_cannot_hold_becomes_its_largest_number(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.encoder.value = -1e9
    async with core_with(loader, tmp_path / "model") as core:
        encoders = await core.resolve([NAME])
        (half,) = await core.embed(EncodedImage(png()), encoders, Precision.FLOAT16, CLICK)
        (full,) = await core.embed(EncodedImage(png()), encoders, Precision.FLOAT32, CLICK)
    assert half.embedding.tensors[0].array.min() == np.float16(-65504)
    assert full.embedding.tensors[0].array.min() == np.float32(-1e9)
    assert not full.embedding.tensors[0].array.flags.writeable


@pytest.mark.parametrize("precision", Precision)
async def test_values_that_are_not_finite_are_a_fault_and_not_kept(tmp_path: Path, precision: Precision) -> None:
    loader = FakeLoader()
    loader.encoder.value = float("nan")
    async with core_with(loader, tmp_path / "model") as core:
        encoders = await core.resolve([NAME])
        with pytest.raises(Internal):
            await core.embed(EncodedImage(png()), encoders, precision, CLICK)
        loader.encoder.value = 1.0
        (found,) = await core.embed(EncodedImage(png()), encoders, precision, CLICK)
        assert found.tier is Tier.COMPUTED


async def test_a_known_image_needs_no_registry_and_no_encoder_in_memory(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with core_with(loader, tmp_path / "model") as core:
        encoders = await core.resolve([NAME])
        (sent,) = await core.embed(EncodedImage(png()), encoders, Precision.FLOAT16, CLICK)
        known = KnownImage(sent.embedding.image_digest)
        (found,) = await core.embed(known, encoders, Precision.FLOAT16, CLICK)
    assert (found.tier, found.embedding) == (Tier.HOST, sent.embedding)


async def test_every_lookup_is_counted_by_tier_and_outcome(tmp_path: Path) -> None:
    def count(outcome: str) -> float:
        labels = {"tier": "host", "outcome": outcome}
        return REGISTRY.get_sample_value("vplab_embedding_lookups_total", labels) or 0.0

    async with core_with(FakeLoader(), tmp_path / "model") as core:
        encoders = await core.resolve([NAME])
        before = count("hit"), count("miss")
        for _ in range(3):
            await core.embed(EncodedImage(png()), encoders, Precision.FLOAT16, CLICK)
    assert (count("hit") - before[0], count("miss") - before[1]) == (2, 1)


async def test_a_click_does_not_join_the_same_image_of_a_job(tmp_path: Path) -> None:
    loader = FakeLoader()
    async with core_with(loader, tmp_path / "model", max_wait_s=0.2) as core:
        encoders = await core.resolve([NAME])
        image = EncodedImage(png())
        job, click = await asyncio.gather(
            core.embed(image, encoders, Precision.FLOAT16, Urgency(Priority.BATCH)),
            core.embed(image, encoders, Precision.FLOAT16, CLICK),
        )
    assert job[0].embedding.key == click[0].embedding.key
    assert sum(loader.encoder.batch_sizes) == 2
