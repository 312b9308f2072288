"""Prompt sets: made from reference images, kept in the registry, and ready in memory to be matched."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from vplab.errors import InvalidInput
from vplab.runtime.single_flight import SingleFlight
from vplab.segmentation.byte_cache import ByteCache
from vplab.segmentation.errors import ModelMismatch, ModelUnsupported
from vplab.segmentation.ports import PromptSetStore
from vplab.segmentation.segmenters import Segmenters
from vplab.segmentation.targets import PATCH_FEATURES, Targets
from vplab.segmentation.values import (
    DraftReference,
    EncoderVersion,
    MatcherName,
    Options,
    PromptSet,
    PromptSetContent,
    PromptSetDraft,
    Reference,
    References,
    SegmentClass,
    Target,
)
from vplab.segmentation.workers import Workers
from vplab.vision.matching import ClassBank, ClassReference, build_class_bank

DEFAULTS: Final = Options(
    matcher=MatcherName.SOFTMATCH,
    max_points=40,
    num_background_points=2,
    min_relative_score=0.4,
    min_mask_score=0.0,
    seed=0,
)
"""The contract's defaults. min_mask_score keeps everything, because scores depend on the models."""


class PromptSets:
    """Creates, finds and prepares prompt sets."""

    def __init__(
        self,
        store: PromptSetStore,
        segmenters: Segmenters,
        targets: Targets,
        workers: Workers,
        *,
        default_segmenter: str,
        default_feature_encoder: str,
        tile_side: int,
        cache_bytes: int,
    ) -> None:
        """tile_side: that of sets and calls which name none."""
        self._store = store
        self._segmenters = segmenters
        self._targets = targets
        self._workers = workers
        self._default_segmenter = default_segmenter
        self._default_feature_encoder = default_feature_encoder
        self._tile_side = tile_side
        self._cache: ByteCache[References] = ByteCache(
            "references", cache_bytes, lambda r: r.num_bytes, keeps_newest=True
        )
        self._preparing: SingleFlight[References] = SingleFlight(outlives_callers=True)

    def effective(self, options: Options) -> Options:
        """Return options with the server's defaults where nothing is said; only presence_threshold may stay unsaid."""
        return options.over(replace(DEFAULTS, tile_side=self._tile_side))

    async def create(self, draft: PromptSetDraft) -> PromptSet:
        """Publish a draft as a new version, with presence thresholds calibrated on its references.

        A repeat of a request returns the version it made.
        Raises InvalidInput for a mask that is not of its image's size or a class on no reference, ModelUnsupported for
        an encoder without patch features, NotFound, AlreadyExists (REQUEST_ID_REUSED), and as Embedder.embed.
        """
        if draft.request_id:
            earlier = await self._store.find_request(draft.prompt_set_id, draft.request_id, draft.request_digest)
            if earlier is not None:
                return earlier
        segmenter = await self._segmenters.resolve(draft.segmenter or self._default_segmenter)
        encoder = await self._feature_encoder(draft.feature_encoder or self._default_feature_encoder)
        options = self.effective(draft.options)
        targets = []
        for index, reference in enumerate(draft.references):
            try:
                targets.append(await self._open(reference, encoder, options))
            except InvalidInput as error:
                raise error.under(f"references[{index}]") from error
        references = tuple(
            Reference(t.image_digest, t.image_hw, r.masks) for t, r in zip(targets, draft.references, strict=True)
        )
        prepared = await self._prepare(targets, references, draft.classes, options)
        thresholds = {class_id: bank.presence_threshold for class_id, bank in prepared.banks.items()}
        content = PromptSetContent(draft.display_name, draft.classes, references, draft.options, thresholds)
        prompt_set = await self._store.publish(draft, content, segmenter.model, encoder.model)
        self._cache.put(_key(prompt_set, options), prepared)
        return prompt_set

    async def get(self, name: str) -> PromptSet:
        """Return a version. Raises NotFound, ModelUnsupported, Unavailable."""
        return await self._store.get(name)

    async def list_page(self, page_size: int, after: str) -> tuple[Sequence[PromptSet], str | None]:
        """Return the newest versions by name, and where the next page continues. Raises Unavailable."""
        return await self._store.list_page(page_size, after)

    async def references(self, prompt_set: PromptSet, options: Options) -> References:
        """Return a set's references ready to be matched; computed once for each version, seed and tile side.

        Raises NotFound, Unavailable, DataLoss, ModelMismatch, and as Embedder.embed.
        """
        key = _key(prompt_set, options)
        known = self._cache.get(key)
        if known is not None:
            return known
        return await self._preparing.run(key, lambda: self._load(prompt_set, options))

    def close(self) -> None:
        """Cancel what is being prepared."""
        self._preparing.close()

    async def _load(self, prompt_set: PromptSet, options: Options) -> References:
        encoder = await self._segmenters.encoder(prompt_set.feature_encoder.name)
        if encoder.model.digest != prompt_set.feature_encoder.digest:
            raise ModelMismatch(
                f"{encoder.model.name} is not what {prompt_set.model.name} was made with",
                expected=prompt_set.feature_encoder.digest,
                actual=encoder.model.digest,
            )
        images = await self._store.reference_images(prompt_set)
        targets = [await self._targets.open(image, None, encoder, options.tile_side or 0) for image in images]
        content = prompt_set.content
        prepared = await self._prepare(targets, content.references, content.classes, options)
        self._cache.put(_key(prompt_set, options), prepared)
        return prepared

    async def _feature_encoder(self, name: str) -> EncoderVersion:
        encoder = await self._segmenters.encoder(name)
        if encoder.spec.output(PATCH_FEATURES) is None:
            raise ModelUnsupported(encoder.model.name, "a feature encoder", "it has no patch features")
        return encoder

    async def _open(self, draft: DraftReference, encoder: EncoderVersion, options: Options) -> Target:
        target = await self._targets.open(draft.image, None, encoder, options.tile_side or 0)
        for index, mask in enumerate(draft.masks.values()):
            if mask.size_hw != target.image_hw:
                (height, width), (image_height, image_width) = mask.size_hw, target.image_hw
                message = f"the mask is {width} x {height}, the image {image_width} x {image_height}"
                raise InvalidInput(message, field=f"masks[{index}].mask")
        return target

    async def _prepare(
        self,
        targets: Sequence[Target],
        references: Sequence[Reference],
        classes: Sequence[SegmentClass],
        options: Options,
    ) -> References:
        def bank(class_id: int) -> ClassBank:
            return _class_bank(class_id, targets, references, options.seed or 0)

        ids = [item.class_id for item in classes]
        return References({i: await self._workers.run_long(partial(bank, i)) for i in ids})


def _class_bank(class_id: int, targets: Sequence[Target], references: Sequence[Reference], seed: int) -> ClassBank:
    """Gather one class. A reference that lists no mask of it shows that it is not there: all of it is background."""
    found = []
    for index, (target, reference) in enumerate(zip(targets, references, strict=True)):
        stored = reference.masks.get(class_id)
        mask = np.zeros(reference.image_hw, np.bool_) if stored is None else stored.pixels()
        found += [ClassReference(tile, tile.area.crop(mask), index) for tile in target.patches.tiles]
    return build_class_bank(found, seed=seed)


def _key(prompt_set: PromptSet, options: Options) -> tuple[str, int | None, int | None]:
    return prompt_set.model.digest, options.seed, options.tile_side
