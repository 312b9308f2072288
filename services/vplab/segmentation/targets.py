"""Images to what matching and decoding need: embeddings and patch features, tile by tile for large ones."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput, NotFound
from vplab.segmentation.byte_cache import ByteCache
from vplab.segmentation.errors import EmbeddingNotCached, ModelMismatch
from vplab.segmentation.ports import Embedder
from vplab.segmentation.values import (
    Embedded,
    EncodedImage,
    EncoderVersion,
    FrameImage,
    ImageInput,
    KnownImage,
    ModelRef,
    Target,
)
from vplab.segmentation.workers import Workers
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.images import (
    ImageLimits,
    ImageRGB,
    PixelFormat,
    decode_image,
    encoded_digest,
    frame_digest,
    frame_to_rgb,
    read_size_hw,
)
from vplab.vision.matching import PatchFeatures, TargetPatches
from vplab.vision.preprocessing import FrameTransform, frame_transform
from vplab.vision.specs import SegmenterSpec
from vplab.vision.tiling import Tile, tile_layout

IMAGE_EMBEDDING, PATCH_FEATURES, COLOURS = "image_embedding", "patch_features", "colours"
EARLY_FEATURES = "early_features"
_TILES_AT_ONCE = 4
_TILE_NAMES_BYTES = 4 << 20
_NAME_BYTES = 128
"""Of a digest as a string, in memory."""

Value = TypeVar("Value")
Wanted = Mapping[ModelRef, Sequence[str]]
"""Roles wanted of each encoder."""
EmbeddedTile = tuple[Tile, Mapping[ModelRef, Embedded]]


@dataclass(frozen=True, eq=False)
class Decodable:
    """An image as a mask decoder takes it, with all that its prompts have in common."""

    image_digest: str
    embedding: NDArray[np.float32]
    """(C, h, w)"""
    transform: FrameTransform
    colours: ColourModel | None
    early_features: NDArray[Any] | None = None
    """(E, h, w) as they came, where the adapter takes them."""

    @property
    def num_bytes(self) -> int:
        early = 0 if self.early_features is None else self.early_features.nbytes
        return self.embedding.nbytes + early + (0 if self.colours is None else self.colours.num_bytes)


class Targets:
    """Embeds images, remembering what this process has seen."""

    def __init__(
        self, embedder: Embedder, workers: Workers, limits: ImageLimits, *, cache_bytes: int, max_tiles: int
    ) -> None:
        self._embedder = embedder
        self._workers = workers
        self._limits = limits
        self._max_tiles = max_tiles
        self._tile_names: ByteCache[Sequence[str]] = ByteCache(
            "tiles", _TILE_NAMES_BYTES, lambda names: _NAME_BYTES * len(names)
        )
        self._cache: ByteCache[Embedded | Decodable] = ByteCache("embedding", cache_bytes, lambda e: e.num_bytes)

    async def decodable(
        self, image: ImageInput, encoder: EncoderVersion, spec: SegmenterSpec, *, wants_early: bool = False
    ) -> Decodable:
        """Return an image ready for prompts to a segmenter; what is made of its embedding is remembered, not that.

        wants_early: whether the decoder takes the image's early features.
        Raises as Embedder.embed, and ModelMismatch for an encoder that does not fit the segmenter.
        """
        digest = await self.digest(image)
        made_for = (spec.embedding_shape, spec.colour_evidence, spec.mask_threshold, wants_early)
        key = (digest, encoder.model.digest, *made_for)
        known = self._cache.get(key)
        if isinstance(known, Decodable):
            return known
        wanted = {encoder.model: decoding_roles(spec.colour_evidence is not None, wants_early)}
        embedded = (await self._embedder.embed(image, wanted))[encoder.model]
        made = await self._workers.run(lambda: _decodable(embedded, encoder, spec, wants_early))
        self._cache.put(key, made)
        return made

    async def embed(self, image: ImageInput, wanted: Wanted) -> Mapping[ModelRef, Embedded]:
        """Return what each encoder says of an image, from this process's memory or the embedding service.

        Raises as Embedder.embed.
        """
        digest = await self.digest(image)
        found = {model: self._known((digest, model.digest, tuple(roles))) for model, roles in wanted.items()}
        missing = {model: wanted[model] for model, embedded in found.items() if embedded is None}
        fresh = await self._embedder.embed(image, missing) if missing else {}
        for model, embedded in fresh.items():
            self._cache.put((embedded.image_digest, model.digest, tuple(wanted[model])), embedded)
        return {model: embedded or fresh[model] for model, embedded in found.items()}

    def _known(self, key: tuple[str, str, tuple[str, ...]]) -> Embedded | None:
        known = self._cache.get(key)
        return known if isinstance(known, Embedded) else None

    async def digest(self, image: ImageInput) -> str:
        """Return an image's digest without decoding it. Raises InvalidInput for a frame that does not fit its data."""
        match image:
            case KnownImage(digest):
                return digest
            case EncodedImage(data):
                if len(data) > self._limits.max_bytes:
                    message = f"the file is {len(data)} bytes; at most {self._limits.max_bytes}"
                    raise InvalidInput(message, field="image.encoded", reason="IMAGE_TOO_LARGE")
                return await self._workers.run(lambda: encoded_digest(data))
            case FrameImage() as f:
                return await self._workers.run(
                    lambda: frame_digest(f.data, f.width, f.height, f.stride_bytes, f.pixel_format, self._limits)
                )

    async def open(
        self,
        image: ImageInput,
        image_encoder: EncoderVersion | None,
        feature_encoder: EncoderVersion,
        tile_side: int,
        *,
        wants_colours: bool = False,
        wants_early: bool = False,
    ) -> Target:
        """Embed an image for matching with ``feature_encoder`` and decoding after ``image_encoder`` (None: not needed).

        wants_colours: whether the decoder's masks are sharpened by what ``image_encoder`` says of the colours; those of
        ``feature_encoder`` are matched wherever it gives them.
        wants_early: whether the decoder takes the early features of ``image_encoder``.
        Raises as Embedder.embed; EmbeddingNotCached for a digest of an image that needs tiles; InvalidInput for more
        tiles than are allowed.
        """
        roles = decoding_roles(wants_colours, wants_early)
        wanted = _wanted(image_encoder, feature_encoder, roles)
        size_hw = await self._size_hw(image)
        if size_hw is not None and _is_tiled(size_hw, tile_side):
            digest = await self.digest(image)
            found_tiles = await self._known_tiles(digest, size_hw, wanted, tile_side)
            if found_tiles is None:
                found_tiles = await self._embed_tiles(image, digest, wanted, tile_side)
            return _target(digest, size_hw, found_tiles, image_encoder, feature_encoder, roles)
        found = await self.embed(image, wanted)
        whole = found[feature_encoder.model]
        if _is_tiled(whole.image_hw, tile_side):
            assert isinstance(image, KnownImage), "the size of an image that was sent is known"
            raise EmbeddingNotCached(image.digest, "it is large enough to be cut into tiles")
        area = Tile(0, 0, whole.image_hw[1], whole.image_hw[0])
        tiles = [(area, found)]
        return _target(whole.image_digest, whole.image_hw, tiles, image_encoder, feature_encoder, roles)

    async def _size_hw(self, image: ImageInput) -> tuple[int, int] | None:
        match image:
            case EncodedImage(data):
                return await self._workers.run(lambda: read_size_hw(data, self._limits))
            case FrameImage() as frame:
                return frame.height, frame.width
        return None

    async def _known_tiles(
        self, digest: str, size_hw: tuple[int, int], wanted: Wanted, tile_side: int
    ) -> list[EmbeddedTile] | None:
        """Return the tiles of an image that was cut before, without its pixels; None where that cannot be done."""
        names = self._tile_names.get((digest, tile_side))
        if names is None:
            return None
        try:
            found = await self._embed_all([KnownImage(name) for name in names], wanted)
        except NotFound as error:
            if error.reason != EmbeddingNotCached.default_reason:
                raise
            return None
        return list(zip(tile_layout(size_hw, tile_side), found, strict=True))

    async def _embed_tiles(self, image: ImageInput, digest: str, wanted: Wanted, tile_side: int) -> list[EmbeddedTile]:
        pixels = await self._workers.run_long(lambda: _decode(image, self._limits))
        size_hw = (pixels.shape[0], pixels.shape[1])
        areas = tile_layout(size_hw, tile_side)
        if len(areas) > self._max_tiles:
            message = f"{len(areas)} tiles of {tile_side} pixels; at most {self._max_tiles}: choose a larger tile_side"
            raise InvalidInput(message, field="options.tile_side")
        found = await self._embed_all([partial(_tile_of, pixels, area) for area in areas], wanted)
        # As the embedding service calls them: it gets very large tiles as files.
        names = [next(iter(of_tile.values())).image_digest for of_tile in found]
        self._tile_names.put((digest, tile_side), names)
        return list(zip(areas, found, strict=True))

    async def _embed_all(
        self, images: Sequence[KnownImage | Callable[[], FrameImage]], wanted: Wanted
    ) -> list[Mapping[ModelRef, Embedded]]:
        turns = asyncio.Semaphore(_TILES_AT_ONCE)

        async def embed(image: KnownImage | Callable[[], FrameImage]) -> Mapping[ModelRef, Embedded]:
            async with turns:  # made in its turn, so that few copies of pixels are in memory
                return await self.embed(image if isinstance(image, KnownImage) else image(), wanted)

        return await _all(embed(image) for image in images)


async def _all(calls: Iterable[Coroutine[Any, Any, Value]]) -> list[Value]:
    """Await all; the first failure cancels the others."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def check_embedding(embedded: Embedded, role: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an output of the shape a model needs. Raises ModelMismatch."""
    array = embedded.outputs.get(role)
    actual = "none" if array is None else str(list(array.shape))
    if array is None or array.shape != shape:
        message = f"{embedded.encoder.name} returns {role} {actual}, {list(shape)} is needed"
        raise ModelMismatch(message, expected=str(list(shape)), actual=actual)
    return array


def decoding_roles(wants_colours: bool, wants_early: bool) -> list[str]:
    """Return the roles that decoding needs of the image encoder."""
    further = ((COLOURS, wants_colours), (EARLY_FEATURES, wants_early))
    return [IMAGE_EMBEDDING, *(role for role, is_wanted in further if is_wanted)]


def further_output(role: str, embedded: Embedded, encoder: EncoderVersion) -> NDArray[Any]:
    """Return the colours or early features of an image. Raises ModelMismatch when the encoder gives none."""
    output = encoder.spec.output(role)
    return check_embedding(embedded, role, () if output is None else output.shape)


def _decodable(embedded: Embedded, encoder: EncoderVersion, spec: SegmenterSpec, wants_early: bool) -> Decodable:
    transform = frame_transform(embedded.image_hw, encoder.spec.preprocessing)
    embedding = check_embedding(embedded, IMAGE_EMBEDDING, spec.embedding_shape).astype(np.float32)
    colours = None if spec.colour_evidence is None else further_output(COLOURS, embedded, encoder)
    early = further_output(EARLY_FEATURES, embedded, encoder) if wants_early else None
    return Decodable(embedded.image_digest, embedding, transform, ColourModel.of(colours, transform, spec), early)


def _wanted(image_encoder: EncoderVersion | None, feature_encoder: EncoderVersion, roles: Sequence[str]) -> Wanted:
    wanted: dict[ModelRef, list[str]] = {}
    if image_encoder is not None:
        wanted.setdefault(image_encoder.model, []).extend(roles)
    of_features = wanted.setdefault(feature_encoder.model, [])
    of_features.append(PATCH_FEATURES)
    if feature_encoder.spec.output(COLOURS) is not None and COLOURS not in of_features:
        of_features.append(COLOURS)
    return wanted


def _is_tiled(size_hw: tuple[int, int], tile_side: int) -> bool:
    return tile_side > 0 and max(size_hw) > tile_side


def _target(
    digest: str,
    size_hw: tuple[int, int],
    tiles: Sequence[tuple[Tile, Mapping[ModelRef, Embedded]]],
    image_encoder: EncoderVersion | None,
    feature_encoder: EncoderVersion,
    roles: Sequence[str],
) -> Target:
    output = feature_encoder.spec.output(PATCH_FEATURES)
    assert output is not None, "checked when the prompt set was made"
    patches, embeddings = [], []
    colours: list[NDArray[Any] | None] = []
    early: list[NDArray[Any] | None] = []
    for area, found in tiles:
        features = check_embedding(found[feature_encoder.model], PATCH_FEATURES, output.shape)
        transform = frame_transform(area.size_hw, feature_encoder.spec.preprocessing)
        matched = None
        if feature_encoder.spec.output(COLOURS) is not None:
            matched = further_output(COLOURS, found[feature_encoder.model], feature_encoder)
        patches.append(PatchFeatures(features.astype(np.float32), transform, output.stride, area.origin_xy, matched))
        if image_encoder is not None:
            embedding = image_encoder.spec.output(IMAGE_EMBEDDING)
            shape = embedding.shape if embedding is not None else ()
            of_tile = found[image_encoder.model]
            embeddings.append(check_embedding(of_tile, IMAGE_EMBEDDING, shape))
            for role, outputs in ((COLOURS, colours), (EARLY_FEATURES, early)):
                outputs.append(further_output(role, of_tile, image_encoder) if role in roles else None)
    return Target(digest, size_hw, TargetPatches.of(patches), tuple(embeddings), tuple(colours), tuple(early))


def _decode(image: ImageInput, limits: ImageLimits) -> ImageRGB:
    match image:
        case EncodedImage(data):
            return decode_image(data, limits)
        case FrameImage() as f:
            return frame_to_rgb(f.data, f.width, f.height, f.stride_bytes, f.pixel_format, limits)
        case KnownImage(digest):
            raise EmbeddingNotCached(digest)


def _tile_of(pixels: ImageRGB, area: Tile) -> FrameImage:
    return _frame(area.crop(pixels))


def _frame(pixels: ImageRGB) -> FrameImage:
    height, width = pixels.shape[:2]
    return FrameImage(np.ascontiguousarray(pixels).tobytes(), width, height, 3 * width, PixelFormat.RGB8)
