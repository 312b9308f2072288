"""The use cases: embed an image with several encoders, and read an embedding back."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from vplab.embedding.cache import EmbeddingCache
from vplab.embedding.encoder_directory import EncoderDirectory
from vplab.embedding.encoder_pool import EncoderPool
from vplab.embedding.errors import EmbeddingNotCached
from vplab.embedding.ports import LoadedEncoder
from vplab.embedding.preparation import ImagePreparation, PreparedImage
from vplab.embedding.values import (
    Array,
    Embedding,
    EncodedImage,
    EncoderVersion,
    FoundEmbedding,
    FrameImage,
    ImageInput,
    KnownImage,
    NamedTensor,
    Precision,
    Tier,
    embedding_key,
)
from vplab.errors import Internal, NotFound
from vplab.runtime.device_queue import DeviceQueue, Priority
from vplab.runtime.single_flight import SingleFlight
from vplab.vision.half_values import to_half

Value = TypeVar("Value")


@dataclass(frozen=True)
class EncodeItem:
    """One image for the device."""

    encoder: LoadedEncoder
    image: npt.NDArray[np.float32]
    """(3, S, S) float32, preprocessed."""


EncodedOutputs = Sequence[npt.NDArray[np.float32]]
EncodeQueue = DeviceQueue[EncodeItem, EncodedOutputs]


def encode_batch(items: Sequence[EncodeItem]) -> list[EncodedOutputs]:
    """Run images of one encoder as a batch; the work function of the device's queue."""
    if len(items) == 1:
        return [[output[0] for output in items[0].encoder.run(items[0].image[None])]]
    outputs = items[0].encoder.run(np.stack([item.image for item in items]))
    # Copied, because a slice would keep the whole batch in memory for as long as one of its embeddings is cached.
    return [[output[i].copy() for output in outputs] for i in range(len(items))]


@dataclass(frozen=True)
class Urgency:
    """How soon a result is needed."""

    priority: Priority
    deadline: float | None = None
    """On ``time.monotonic()``'s clock, in seconds; None waits for ever."""
    client: str = ""
    """On whose behalf; clients share the device evenly."""


class EmbeddingCore:
    """Finds or makes embeddings; every key is computed at most once at a time for each priority."""

    def __init__(
        self,
        directory: EncoderDirectory,
        pool: EncoderPool,
        cache: EmbeddingCache,
        preparation: ImagePreparation,
        queue: EncodeQueue,
    ) -> None:
        self.directory = directory
        self._pool = pool
        self._cache = cache
        self._preparation = preparation
        self._queue = queue
        # A click must not wait behind the same image in a folder's job, so the priority is part of what is shared.
        self._flights: SingleFlight[Embedding] = SingleFlight()

    async def resolve(self, names: Sequence[str]) -> list[EncoderVersion]:
        """Return the versions that names mean now. Raises NotFound, ModelUnsupported, Unavailable."""
        return [await self.directory.resolve(name) for name in names]

    async def embed(
        self, image: ImageInput, encoders: Sequence[EncoderVersion], precision: Precision, urgency: Urgency
    ) -> list[FoundEmbedding]:
        """Return one embedding per encoder, in their order; the image is decoded at most once, and only if needed.

        Raises InvalidInput for the image, EmbeddingNotCached for a digest whose embedding is gone, ModelUnsupported,
        DataLoss, ResourceExhausted, DeadlineExceeded, Unavailable.
        """
        digest = await self._digest(image, urgency)
        wanted = {embedding_key(digest, encoder, precision): encoder for encoder in encoders}
        found = {key: await self._cache.get(key) for key in wanted}
        missing = {key: encoder for key, encoder in wanted.items() if found[key] is None}
        if missing:
            if isinstance(image, KnownImage):
                raise EmbeddingNotCached(digest)
            found |= await self._compute_all(image, digest, missing, precision, urgency)
        in_order = (found[embedding_key(digest, encoder, precision)] for encoder in encoders)
        return [cast(FoundEmbedding, embedding) for embedding in in_order]

    async def _digest(self, image: ImageInput, urgency: Urgency) -> str:
        if isinstance(image, KnownImage):
            return image.digest
        return await self._preparation.digest(image, urgency.priority, urgency.client)

    async def cached(self, digest: str, encoders: Sequence[EncoderVersion], precision: Precision) -> bool:
        """Say whether every embedding of an image is cached, and keep those durably."""
        for encoder in encoders:
            found = await self._cache.get(embedding_key(digest, encoder, precision))
            if found is None:
                return False
            await self._cache.persist(found.embedding)
        return True

    async def persist(self, embeddings: Sequence[FoundEmbedding]) -> None:
        """Return once the durable store has the embeddings. Raises ResourceExhausted, Unavailable."""
        for found in embeddings:
            await self._cache.persist(found.embedding)

    async def get(self, key: str) -> FoundEmbedding:
        """Return a cached embedding. Raises NotFound."""
        found = await self._cache.get(key)
        if found is None:
            raise NotFound("There is no such embedding", metadata={"name": f"embeddings/{key}"})
        return found

    async def _compute_all(
        self,
        image: EncodedImage | FrameImage,
        digest: str,
        missing: dict[str, EncoderVersion],
        precision: Precision,
        urgency: Urgency,
    ) -> dict[str, FoundEmbedding]:
        prepared = _Once(
            lambda: self._preparation.prepare(
                image,
                [encoder.spec.preprocessing for encoder in missing.values()],
                urgency.deadline,
                urgency.priority,
                urgency.client,
            )
        )

        async def compute(key: str, encoder: EncoderVersion) -> Embedding:
            return await self._flights.run(
                (key, urgency.priority),
                lambda: self._compute(key, digest, encoder, prepared, precision, urgency),
            )

        computed = await _all([compute(key, encoder) for key, encoder in missing.items()])
        return {embedding.key: FoundEmbedding(embedding, Tier.COMPUTED) for embedding in computed}

    async def _compute(
        self,
        key: str,
        digest: str,
        version: EncoderVersion,
        prepared: "_Once[PreparedImage]",
        precision: Precision,
        urgency: Urgency,
    ) -> Embedding:
        # Another call may have made it while this one looked in the durable store.
        known = self._cache.in_memory(key)
        if known is not None:
            return known
        encoder = await self._pool.get(version)
        image = await prepared.get()
        item = EncodeItem(encoder, image.inputs[version.spec.preprocessing.digest].tensor)
        outputs = await self._queue.submit(
            item, priority=urgency.priority, deadline=urgency.deadline, client=urgency.client
        )
        tensors = await self._preparation.finish(
            lambda: _tensors(version, outputs, precision), urgency.priority, urgency.client
        )
        embedding = Embedding(key, version.model, digest, image.image_hw, precision, tensors)
        self._cache.put(embedding)
        return embedding


class _Once(Generic[Value]):
    """A value that is made when it is first needed, and then shared."""

    def __init__(self, make: Callable[[], Awaitable[Value]]) -> None:
        self._make = make
        self._making: SingleFlight[Value] = SingleFlight()
        self._values: list[Value] = []

    async def get(self) -> Value:
        return self._values[0] if self._values else await self._making.run("", self._make_and_keep)

    async def _make_and_keep(self) -> Value:
        self._values = [await self._make()]
        return self._values[0]


async def _all(work: Sequence[Coroutine[Any, Any, Value]]) -> list[Value]:
    """Return all results; the first failure cancels the rest and is raised as it is, not in a group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tensors(version: EncoderVersion, outputs: EncodedOutputs, precision: Precision) -> tuple[NamedTensor, ...]:
    """Return outputs in the embedding's precision, read-only; what float16 cannot hold becomes its largest number."""
    tensors = []
    for output, values in zip(version.spec.outputs, outputs, strict=True):
        if not np.isfinite(values).all():
            raise Internal(f"{version.model.name} returned values that are not finite")
        array: Array = values
        if precision is Precision.FLOAT16:
            array = to_half(values)
        array.flags.writeable = False
        tensors.append(NamedTensor(output.name, output.role, array))
    return tuple(tensors)
