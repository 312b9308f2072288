"""The use cases: masks from prompts, and masks from a prompt set."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from vplab.errors import InvalidInput
from vplab.segmentation import metrics
from vplab.segmentation.adapters import Adapters
from vplab.segmentation.decode_queue import (
    CPU_PIECE,
    DecodeItem,
    DecodeQueue,
    Decoder,
    QueueDecoder,
    Urgency,
    decode,
    submit,
)
from vplab.segmentation.errors import AnswerTooLarge, EarlyFeaturesMissing, ModelMismatch
from vplab.segmentation.ports import Decoded
from vplab.segmentation.prompt_sets import PromptSets
from vplab.segmentation.segmenters import Segmenters
from vplab.segmentation.targets import Targets
from vplab.segmentation.values import (
    AdapterVersion,
    Chosen,
    ClassFinding,
    EncoderVersion,
    ImageInput,
    Options,
    PredictedMask,
    Prediction,
    PromptSet,
    Provenance,
    References,
    Segmentation,
    SegmenterVersion,
    StoredMask,
    Target,
    Timings,
)
from vplab.segmentation.workers import Workers
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.final_masks import final_mask
from vplab.vision.masks import encode_runs
from vplab.vision.matching import MATCHERS, MatchOptions
from vplab.vision.pipeline.decoding import CHUNK, PromptDecoder
from vplab.vision.pipeline.segment import ClassSegmentation, SegmentOptions, segment_class
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import ObjectPrompt, PromptTokens, group_by_token_count, prompt_tokens
from vplab.vision.specs import SegmenterSpec

_FEW_PROMPTS: Final = 8


class SegmentationCore:
    """What SegmentationService does, over values and ports."""

    def __init__(
        self,
        segmenters: Segmenters,
        adapters: Adapters,
        prompt_sets: PromptSets,
        targets: Targets,
        queue: DecodeQueue,
        workers: Workers,
        *,
        default_segmenter: str,
        refines: str,
        max_logits_bytes: int,
        finishes_at_device: bool,
    ) -> None:
        """refines: ``auto``, ``always`` or ``never``. max_logits_bytes: most that the logits of one answer may take.

        finishes_at_device: whether the threads that decode prompts make the masks too: on a CPU, which then need not
        wake another, while a GPU would wait for it.
        """
        self._segmenters = segmenters
        self._adapters = adapters
        self.prompt_sets = prompt_sets
        self._targets = targets
        self._queue = queue
        self._workers = workers
        self._default_segmenter = default_segmenter
        self._refines = refines
        self._max_logits_bytes = max_logits_bytes
        self._finishes_at_device = finishes_at_device

    async def predict_masks(
        self,
        image: ImageInput,
        prompts: Sequence[ObjectPrompt],
        segmenter: str,
        adapter: str,
        *,
        multimask: bool,
        includes_logits: bool,
        urgency: Urgency,
    ) -> Prediction:
        """Predict one mask, or three, for each prompt. segmenter, adapter: full names, empty for the default, or none.

        Raises InvalidInput for a prompt that does not fit the image, EmbeddingNotCached, NotFound, ModelUnsupported,
        ModelMismatch, AdapterBaseMismatch, AnswerTooLarge, and what the queue raises.
        """
        version = await self._segmenters.resolve(segmenter or self._default_segmenter)
        adapted = await self._adapted(adapter, version) if adapter else None
        spec = version.spec if adapted is None else adapted.spec
        num_logits = len(prompts) * _num_masks(spec, multimask) * math.prod(spec.low_res_hw)
        if includes_logits and 4 * num_logits > self._max_logits_bytes:
            raise AnswerTooLarge(4 * num_logits, self._max_logits_bytes)
        encoder = await self._image_encoder(version)
        opened = await self._targets.decodable(image, encoder, spec, wants_early=_wants_early(adapted))
        transform = opened.transform
        if _are_quickly_read(prompts):
            tokens = _tokens(prompts, transform, spec)
        else:
            tokens = await self._workers.run(lambda: _tokens(prompts, transform, spec))
        objects: dict[int, tuple[PredictedMask, ...]] = {}
        chosen = slice(1, None) if multimask and spec.num_planes > 1 else slice(0, 1)
        async with self._decoder(version, adapted) as decoder:
            for members in group_by_token_count(tokens).values():
                group, asked = [tokens[m] for m in members], [prompts[m] for m in members]
                finish = partial(_masks_of_prompts, asked, chosen, transform, spec, opened.colours)
                if self._finishes_at_device and len(group) <= CHUNK:
                    item = DecodeItem(decoder, spec, opened.embedding, group, finish, opened.early_features)
                    made = await submit(self._queue, item, urgency)
                else:
                    early = opened.early_features
                    decoded = await decode(
                        self._queue, decoder, spec, opened.embedding, group, urgency, early_features=early
                    )
                    made = await self._workers.run(partial(finish, decoded))
                objects |= zip(members, made, strict=True)
        provenance = Provenance(
            opened.image_digest, version.model, encoder.model, adapter=None if adapted is None else adapted.model
        )
        return Prediction(tuple(objects[i] for i in range(len(prompts))), transform.original_hw, provenance)

    async def choose(self, prompt_set: str, adapter: str) -> Chosen:
        """Return what to segment with, once it is certain that the models fit together and the adapter can be run.

        prompt_set, adapter: full names; an empty adapter is the base segmenter.
        Raises NotFound, ModelUnsupported, ModelMismatch, AdapterBaseMismatch, DataLoss.
        """
        found = await self.prompt_sets.get(prompt_set)
        version = await self._segmenter_of(found)
        if not adapter:
            return Chosen(found, None)
        adapted = await self._adapted(adapter, version)
        async with self._adapters.decoder(adapted):
            return Chosen(found, adapted)

    async def segment(self, image: ImageInput, chosen: Chosen, options: Options, urgency: Urgency) -> Segmentation:
        """Find the classes of a prompt set in an image.

        options: what the caller said; the prompt set's are their defaults. Deterministic for equal input and seed.
        Raises as predict_masks, and InvalidInput for an image of too many tiles.
        """
        began, prompt_set, adapter = time.monotonic(), chosen.prompt_set, chosen.adapter
        options = self.prompt_sets.effective(options.over(prompt_set.content.options))
        version = await self._segmenter_of(prompt_set)
        image_encoder = await self._image_encoder(version)
        feature_encoder = await self._segmenters.encoder(prompt_set.feature_encoder.name)
        spec = version.spec if adapter is None else adapter.spec
        references = await self.prompt_sets.references(prompt_set, options)
        target = await self._targets.open(
            image,
            image_encoder,
            feature_encoder,
            options.tile_side or 0,
            wants_colours=spec.colour_evidence is not None,
            wants_early=_wants_early(adapter),
        )
        embedded = time.monotonic()
        refines = self._refines == "always" or (self._refines == "auto" and spec.refines)
        work = _Work(prompt_set, references, target, options, refines)
        async with self._decoder(version, adapter) as graph:
            preprocessing, piece = image_encoder.spec.preprocessing, CPU_PIECE if self._finishes_at_device else CHUNK
            decoder = QueueDecoder(self._queue, spec, graph, preprocessing, target, urgency, piece=piece)
            try:
                findings, match_s = await self._workers.run_long(lambda: work.run(decoder))
            except asyncio.CancelledError:
                decoder.cancel()
                raise
        ended = time.monotonic()
        timings = Timings(embedded - began, match_s, ended - embedded - match_s, ended - began)
        _observe(timings)
        provenance = Provenance(
            target.image_digest,
            version.model,
            image_encoder.model,
            feature_encoder.model,
            prompt_set.model,
            None if adapter is None else adapter.model,
        )
        return Segmentation(findings, target.image_hw, provenance, timings, options)

    async def _adapted(self, adapter: str, version: SegmenterVersion) -> AdapterVersion:
        """Resolve an adapter and be certain that the image encoder gives all that it takes."""
        adapted = await self._adapters.resolve(adapter, version)
        if adapted.early_channels is not None:
            encoder = await self._image_encoder(version)
            if encoder.spec.early_channels != adapted.early_channels:
                raise EarlyFeaturesMissing(
                    adapted.model.name, adapted.early_channels, encoder.model.name, encoder.spec.early_channels
                )
        return adapted

    async def _segmenter_of(self, prompt_set: PromptSet) -> SegmenterVersion:
        version = await self._segmenters.resolve(prompt_set.segmenter.name)
        if version.model.digest != prompt_set.segmenter.digest:
            raise ModelMismatch(
                f"{version.model.name} is not what {prompt_set.model.name} was made with",
                expected=prompt_set.segmenter.digest,
                actual=version.model.digest,
            )
        return version

    @asynccontextmanager
    async def _decoder(self, version: SegmenterVersion, adapter: AdapterVersion | None) -> AsyncIterator[Decoder]:
        if adapter is None:
            yield await self._segmenters.get(version)
            return
        async with self._adapters.decoder(adapter) as decoder:
            yield decoder

    async def _image_encoder(self, version: SegmenterVersion) -> EncoderVersion:
        encoder = await self._segmenters.encoder(version.image_encoder.name)
        if encoder.model.digest != version.image_encoder.digest:
            raise ModelMismatch(
                f"{encoder.model.name} is not the encoder that {version.model.name} was made with",
                expected=version.image_encoder.digest,
                actual=encoder.model.digest,
            )
        return encoder


class _Work:
    """One image's matching and decoding, in a worker thread."""

    def __init__(
        self, prompt_set: PromptSet, references: References, target: Target, options: Options, refines: bool
    ) -> None:
        self._prompt_set = prompt_set
        self._references = references
        self._target = target
        self._options = options
        self._refines = refines
        self._match_s = 0.0

    def run(self, decoder: PromptDecoder) -> tuple[tuple[ClassFinding, ...], float]:
        findings = []
        for item in self._prompt_set.content.classes:
            found = self._find(item.class_id, decoder)
            mask = found.mask(self._target.image_hw)
            findings.append(ClassFinding(item, found, StoredMask(self._target.image_hw, encode_runs(mask))))
        return tuple(findings), self._match_s

    def _find(self, class_id: int, decoder: PromptDecoder) -> ClassSegmentation:
        options = self._options
        assert options.matcher is not None, "effective options are complete"
        threshold = options.presence_threshold
        if threshold is None:
            threshold = self._prompt_set.content.presence_thresholds[class_id]
        match_options = MatchOptions(
            max_points=options.max_points or 0,
            num_background_points=options.num_background_points or 0,
            min_relative_score=options.min_relative_score or 0.0,
            presence_threshold=threshold,
            seed=options.seed or 0,
        )
        began = time.monotonic()

        def on_matched() -> None:
            self._match_s += time.monotonic() - began

        return segment_class(
            MATCHERS[options.matcher.value],
            self._references.banks[class_id],
            self._target.patches,
            decoder,
            match_options,
            SegmentOptions(min_mask_score=options.min_mask_score or 0.0, refines=self._refines),
            on_matched,
        )


def _wants_early(adapter: AdapterVersion | None) -> bool:
    return adapter is not None and adapter.early_channels is not None


def _num_masks(spec: SegmenterSpec, multimask: bool) -> int:
    return max(1, spec.num_planes - 1) if multimask else 1


def _are_quickly_read(prompts: Sequence[ObjectPrompt]) -> bool:
    """Say whether handing prompts to a thread would take longer than reading them."""
    return len(prompts) <= _FEW_PROMPTS and all(prompt.mask is None for prompt in prompts)


def _tokens(prompts: Sequence[ObjectPrompt], transform: FrameTransform, spec: SegmenterSpec) -> list[PromptTokens]:
    tokens = []
    for index, prompt in enumerate(prompts):
        try:
            prompt.check(transform.original_hw, spec.low_res_hw)
        except InvalidInput as error:
            raise error.under(f"prompts[{index}]") from error
        tokens.append(prompt_tokens(prompt, transform, spec))
    return tokens


def _masks_of_prompts(
    prompts: Sequence[ObjectPrompt],
    chosen: slice,
    transform: FrameTransform,
    spec: SegmenterSpec,
    colours: ColourModel | None,
    decoded: Decoded,
) -> list[tuple[PredictedMask, ...]]:
    """Return the masks of each prompt. chosen: the planes that are wanted."""
    found = []
    for prompt, logits, ious in zip(prompts, *decoded, strict=True):
        masks = []
        # Copied, because a slice would keep the whole batch in memory for as long as the answer.
        for plane, iou in zip(logits[chosen].copy(), ious[chosen], strict=True):
            mask = final_mask(plane, prompt, transform, spec, colours)
            masks.append(PredictedMask(StoredMask(transform.original_hw, encode_runs(mask)), float(iou), plane))
        found.append(tuple(masks))
    return found


def _observe(timings: Timings) -> None:
    for stage in ("embed", "match", "decode", "total"):
        metrics.STAGE_SECONDS.labels(stage).observe(getattr(timings, f"{stage}_s"))
