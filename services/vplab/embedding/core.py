"""The use cases: embed an image with several encoders, and read an embedding back."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
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


EncodedOutputs = Sequence[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class EncodeItem:
    """One image for the device."""

    encoder: LoadedEncoder
    image: Callable[[], npt.NDArray[np.float32]]
    """Gives (3, S, S) float32, preprocessed, in the device's thread."""
    finish: Callable[[EncodedOutputs], Any] | None = None
    """Makes of the outputs what is wanted, in the device's thread; None leaves them as they are."""


EncodeQueue = DeviceQueue[EncodeItem, Any]


def encode_batch(items: Sequence[EncodeItem]) -> list[Any]:
    """Run images of one encoder as a batch; the work function of the device's queue.

    An image that cannot be read, or finished, fails alone.
    """
    results: list[Any] = [_caught(item.image) for item in items]
    readable = [i for i, image in enumerate(results) if not isinstance(image, Exception)]
    if not readable:
        return results
    images = results[readable[0]][None] if len(readable) == 1 else np.stack([results[i] for i in readable])
    outputs = items[0].encoder.run(images)
    for row, i in enumerate(readable):
        # Copied from a batch, because a slice would keep all of it in memory for as long as one embedding is cached.
        own = [output[row] if len(readable) == 1 else output[row].copy() for output in outputs]
        finish = items[i].finish
        results[i] = own if finish is None else _caught(partial(finish, own))
    return results


def _caught(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # the queue raises it for this image alone
        return error


_Finish = Callable[[PreparedImage, EncodedOutputs], Embedding]


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
        *,
        works_at_device: bool,
    ) -> None:
        """works_at_device: whether the threads that run the encoders read the images too, and finish the embeddings.

        On a CPU: other threads would only take the same cores from them, and what they hand over has left the caches
        of the core that needs it. A GPU would wait meanwhile.
        """
        self.directory = directory
        self._pool = pool
        self._cache = cache
        self._preparation = preparation
        self._queue = queue
        self._works_at_device = works_at_device
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
        preprocessings = [encoder.spec.preprocessing for encoder in missing.values()]
        # Several encoders share the pixels, which then are read before any of them.
        read_first = not self._works_at_device or len(missing) > 1
        prepared = _Once(
            lambda: self._preparation.prepare(image, preprocessings, urgency.deadline, urgency.priority, urgency.client)
        )

        async def compute(key: str, encoder: EncoderVersion) -> Embedding:
            return await self._flights.run(
                (key, urgency.priority),
                lambda: self._compute(key, digest, encoder, prepared if read_first else image, precision, urgency),
            )

        computed = await _all([compute(key, encoder) for key, encoder in missing.items()])
        return {embedding.key: FoundEmbedding(embedding, Tier.COMPUTED) for embedding in computed}

    async def _compute(
        self,
        key: str,
        digest: str,
        version: EncoderVersion,
        source: "_Once[PreparedImage] | EncodedImage | FrameImage",
        precision: Precision,
        urgency: Urgency,
    ) -> Embedding:
        # Another call may have made it while this one looked in the durable store.
        known = self._cache.in_memory(key)
        if known is not None:
            return known
        encoder = await self._pool.get(version)

        def finished(image: PreparedImage, outputs: EncodedOutputs) -> Embedding:
            tensors = _tensors(version, outputs, precision)
            return Embedding(key, version.model, digest, image.image_hw, precision, tensors)

        if isinstance(source, _Once):
            embedding = await self._encode(version, encoder, await source.get(), finished, urgency)
        else:
            embedding = await self._read_and_encode(version, encoder, source, finished, urgency)
        self._cache.put(embedding)
        return embedding

    async def _encode(
        self, version: EncoderVersion, encoder: LoadedEncoder, image: PreparedImage, finished: _Finish, urgency: Urgency
    ) -> Embedding:
        tensor = image.inputs[version.spec.preprocessing.digest].tensor
        finish = partial(finished, image)
        item = EncodeItem(encoder, lambda: tensor, finish if self._works_at_device else None)
        made = await self._submit(item, urgency)
        if self._works_at_device:
            return cast(Embedding, made)
        return await self._preparation.finish(lambda: finish(made), urgency.priority, urgency.client)

    async def _read_and_encode(
        self,
        version: EncoderVersion,
        encoder: LoadedEncoder,
        image: EncodedImage | FrameImage,
        finished: _Finish,
        urgency: Urgency,
    ) -> Embedding:
        preprocessing = version.spec.preprocessing
        read: list[PreparedImage] = []

        def tensor() -> npt.NDArray[np.float32]:
            read.append(self._preparation.read(image, [preprocessing]))
            return read[0].inputs[preprocessing.digest].tensor

        item = EncodeItem(encoder, tensor, lambda outputs: finished(read[0], outputs))
        with self._preparation.waiting(image, urgency.client):
            return cast(Embedding, await self._submit(item, urgency))

    async def _submit(self, item: EncodeItem, urgency: Urgency) -> Any:
        return await self._queue.submit(
            item, priority=urgency.priority, deadline=urgency.deadline, client=urgency.client
        )


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
        try:
            array = _in_precision(values, precision)
        except ValueError as error:
            raise Internal(f"{version.model.name} returned values that are not finite") from error
        array.flags.writeable = False
        tensors.append(NamedTensor(output.name, output.role, array))
    return tuple(tensors)


def _in_precision(values: npt.NDArray[np.float32], precision: Precision) -> Array:
    """Return values as they are kept. Raises ValueError if one is not finite."""
    if precision is Precision.FLOAT16:
        return to_half(values)
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    return values
