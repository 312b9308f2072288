"""What a tuning job works on: models and data from the registry, embeddings from the embedding service."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vplab.client import AsyncClient, AsyncSnapshots, Snapshot
from vplab.client.datasets import Dataset, DatasetLimits, read_dataset
from vplab.client.embedding.values import Embedding, OutputRole, Precision
from vplab.client.registry.values import Version
from vplab.errors import FailedPrecondition, Unavailable
from vplab.training.errors import ModelUnsupported
from vplab.training.tuning.augmentation import View, apply_view, plan_views
from vplab.training.tuning.values import EmbeddedView
from vplab.training.values import ModelRef, TuningPlan
from vplab.vision.images import ImageLimits, ImageRGB, decode_image
from vplab.vision.matching import MATCHERS, PatchFeatures
from vplab.vision.preprocessing import FrameTransform, frame_transform
from vplab.vision.specs import EncoderSpec, SegmenterSpec, spec_from_json

IMAGE_EMBEDDING: Final = "image_embedding"
PATCH_FEATURES: Final = "patch_features"
COLOURS: Final = "colours"
EARLY_FEATURES: Final = "early_features"
_SPEC_FILE: Final = "model.json"
_PROMPT_SET_FILE: Final = "prompt_set.json"
_MAX_SPEC_BYTES: Final = 1 << 20
_DEFAULT_MATCHER: Final = "softmatch"


@dataclass(frozen=True)
class EncoderVersion:
    """An encoder and how images are brought to it."""

    model: ModelRef
    spec: EncoderSpec


@dataclass(frozen=True)
class JobInputs:
    """Everything a job needs but embeddings; the folder is there as long as the job."""

    segmenter: ModelRef
    segmenter_spec: SegmenterSpec
    segmenter_folder: Path
    segmenter_licence: str
    image_encoder: EncoderVersion
    feature_encoder: EncoderVersion | None
    """None where there is no matcher."""
    matcher: str
    dataset: Dataset
    wants_early_features: bool
    """Whether the job reads the image encoder's early feature."""

    @property
    def image_roles(self) -> list[OutputRole]:
        """What the job reads of the image encoder."""
        roles: list[OutputRole] = [IMAGE_EMBEDDING]
        roles += [COLOURS] if self.segmenter_spec.colour_evidence is not None else []
        return roles + ([EARLY_FEATURES] if self.wants_early_features else [])

    @property
    def class_ids(self) -> list[int]:
        """The ids of the data set's classes."""
        return [item.class_id for item in self.dataset.classes]


class ClientJobInputs:
    """Fetches and embeds through the client."""

    def __init__(
        self, client: AsyncClient, snapshots: AsyncSnapshots, limits: ImageLimits, precision: Precision
    ) -> None:
        self._client = client
        self._snapshots = snapshots
        self._limits = limits
        self._precision: Precision = precision

    @asynccontextmanager
    async def fetched(self, plan: TuningPlan) -> AsyncIterator[JobInputs]:
        """Give what a plan names, verified by digest.

        Raises NotFound, Unavailable, DataLoss, FailedPrecondition for versions that changed or do not fit together,
        InvalidInput for a data set at fault.
        """
        segmenter = await self._fetch(plan.segmenter)
        dataset = await self._fetch(plan.dataset)
        try:
            spec = spec_from_json(await asyncio.to_thread((segmenter.folder / _SPEC_FILE).read_bytes))
            if not isinstance(spec, SegmenterSpec):
                raise ModelUnsupported(segmenter.version_name, "a segmenter", "it is an encoder")
            feature_encoder, matcher = await self._matching(plan)
            image_encoder = await self._made_from(segmenter.version_name, segmenter.manifest, "image_encoder")
            limits = DatasetLimits(image=self._limits)
            yield JobInputs(
                segmenter=plan.segmenter,
                segmenter_spec=spec,
                segmenter_folder=segmenter.folder,
                segmenter_licence=segmenter.manifest.licence,
                image_encoder=image_encoder,
                feature_encoder=feature_encoder,
                matcher=matcher,
                dataset=await asyncio.to_thread(read_dataset, dataset.folder, limits),
                wants_early_features=_wants_early_features(plan, image_encoder.spec),
            )
        finally:
            self._snapshots.release(segmenter.digest)
            self._snapshots.release(dataset.digest)

    async def embed(
        self, inputs: JobInputs, num_views: int, seed: int, on_view: Callable[[], None]
    ) -> list[EmbeddedView]:
        """Return every image and its augmented views, embedded; ``on_view`` is called after each.

        One at a time and behind what people wait for: an image embedded alone has the same bits every time, in a batch
        its last ones depend on the batch. Raises what the embedding service raises.
        """
        views: list[EmbeddedView] = []
        for index, item in enumerate(inputs.dataset.items):
            picture = await asyncio.to_thread(decode_image, item.image, self._limits)
            for view in plan_views(num_views, seed, index):
                pixels, masks = await asyncio.to_thread(apply_view, view, picture, dict(item.masks))
                found = await self._embed_one(item.image if view.is_original else pixels, inputs)
                views.append(_embedded(inputs, index, view, pixels, masks, found))
                on_view()
        return views

    async def _embed_one(
        self, image: bytes | ImageRGB, inputs: JobInputs
    ) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]:
        """Return the outputs by role of the image encoder and of the feature encoder (empty without one)."""
        encoders = [inputs.image_encoder, *([inputs.feature_encoder] if inputs.feature_encoder else [])]
        models = list(dict.fromkeys(encoder.model for encoder in encoders))
        roles = list(dict.fromkeys([*inputs.image_roles, *_feature_roles(inputs.feature_encoder)]))
        answers = self._client.embedding.embed_images(
            [("view", image)],
            [model.name for model in models],
            precision=self._precision,
            output_roles=roles,
        )
        found: Sequence[Embedding] = ()
        async for answer in answers:
            if answer.error is not None:
                raise answer.error
            found = answer.embeddings
        by_model = {model: _checked(model, embedding) for model, embedding in zip(models, found, strict=True)}
        features = by_model[inputs.feature_encoder.model] if inputs.feature_encoder else {}
        return by_model[inputs.image_encoder.model], features

    async def _matching(self, plan: TuningPlan) -> tuple[EncoderVersion | None, str]:
        """Return what a prompt set matches with, or what the plan names instead; no encoder without either."""
        if plan.prompt_set is None:
            named = plan.feature_encoder
            return (None if named is None else await self._encoder(named)), _DEFAULT_MATCHER
        version = await self._version(plan.prompt_set)
        index = version.manifest.file(_PROMPT_SET_FILE)
        if index is None:
            raise ModelUnsupported(version.name, "a prompt set", f"its files lack {_PROMPT_SET_FILE}")
        said = json.loads(await self._client.registry.read_blob(index.sha256))
        matcher = said.get("options", {}).get("matcher", _DEFAULT_MATCHER) if isinstance(said, dict) else ""
        if matcher not in MATCHERS:
            raise ModelUnsupported(version.name, "a prompt set", f"there is no matcher {matcher!r}")
        return await self._made_from(version.name, version.manifest, "feature_encoder"), matcher

    async def _made_from(self, name: str, manifest: Any, relation: str) -> EncoderVersion:
        lineage = manifest.made_from(relation)
        if lineage is None:
            raise ModelUnsupported(name, "a base", f"its manifest names no {relation}")
        return await self._encoder(ModelRef(lineage.version, lineage.digest))

    async def _encoder(self, model: ModelRef) -> EncoderVersion:
        version = await self._version(model)
        spec = spec_from_json(await self._spec_json(version))
        if not isinstance(spec, EncoderSpec):
            raise ModelUnsupported(version.name, "an encoder", "it is a segmenter")
        return EncoderVersion(ModelRef(version.name, version.digest), spec)

    async def _spec_json(self, version: Version) -> bytes:
        if version.manifest.spec:
            return json.dumps(dict(version.manifest.spec)).encode()
        file = version.manifest.file(_SPEC_FILE)
        if file is None:
            raise ModelUnsupported(version.name, "an encoder", f"its files lack {_SPEC_FILE}")
        return await self._client.registry.read_blob(file.sha256, max_bytes=_MAX_SPEC_BYTES)

    async def _version(self, model: ModelRef) -> Version:
        version = await self._client.registry.get_version(model.name)
        _require_digest(model, version.digest)
        return version

    async def _fetch(self, model: ModelRef) -> Snapshot:
        snapshot = await self._snapshots.fetch(model.name)
        _require_digest(model, snapshot.digest)
        return snapshot


def _wants_early_features(plan: TuningPlan, encoder: EncoderSpec) -> bool:
    # What the alias serves now may fuse them too, and is measured on the same images.
    return bool(plan.options.early_features) or (plan.promote_only_if_better and encoder.early_channels is not None)


def _require_digest(model: ModelRef, digest: str) -> None:
    if digest != model.digest:
        raise FailedPrecondition(
            f"{model.name} is not the version the job was made for",
            reason="MODEL_MISMATCH",
            metadata={"expected": model.digest, "actual": digest},
        )


def _checked(model: ModelRef, embedding: Embedding) -> dict[str, NDArray[Any]]:
    if embedding.encoder.digest != model.digest:
        raise Unavailable(f"the embedding service has another {model.name} than the registry")
    return {tensor.role: np.asarray(tensor.array) for tensor in embedding.tensors}


def _embedded(
    inputs: JobInputs,
    index: int,
    view: View,
    pixels: ImageRGB,
    masks: dict[int, NDArray[np.bool_]],
    found: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]],
) -> EmbeddedView:
    images, features = found
    size_hw = (pixels.shape[0], pixels.shape[1])
    transform = frame_transform(size_hw, inputs.image_encoder.spec.preprocessing)
    for role in inputs.image_roles:
        if role not in images:
            message = f"{inputs.image_encoder.model.name} gives no {role.replace('_', ' ')}"
            raise FailedPrecondition(message, reason="MODEL_MISMATCH")
    return EmbeddedView(
        image_index=index,
        is_original=view.is_original,
        embedding=images[IMAGE_EMBEDDING],
        transform=transform,
        masks=masks,
        patches=_patches(inputs.feature_encoder, features, size_hw),
        early_features=images.get(EARLY_FEATURES),
        colours=images.get(COLOURS),
    )


def _patches(
    encoder: EncoderVersion | None, features: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]
) -> PatchFeatures | None:
    if encoder is None:
        return None
    output = encoder.spec.output(PATCH_FEATURES)
    if output is None or PATCH_FEATURES not in features:
        raise FailedPrecondition(f"{encoder.model.name} gives no patch features", reason="MODEL_MISMATCH")
    transform: FrameTransform = frame_transform(size_hw, encoder.spec.preprocessing)
    patches = features[PATCH_FEATURES].astype(np.float32)
    return PatchFeatures(patches, transform, output.stride, colours=features.get(COLOURS))


def _feature_roles(encoder: EncoderVersion | None) -> list[OutputRole]:
    """Return what matching reads of its encoder: colours too, wherever it gives them."""
    if encoder is None:
        return []
    return [PATCH_FEATURES] if encoder.spec.output(COLOURS) is None else [PATCH_FEATURES, COLOURS]
