"""What the segmentation service speaks of."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.vision.adapters.spec import AdapterSpec, HqTokenSpec
from vplab.vision.images import PixelFormat
from vplab.vision.masks import decode_runs
from vplab.vision.matching import ClassBank, TargetPatches
from vplab.vision.pipeline.segment import ClassSegmentation
from vplab.vision.specs import EncoderSpec, SegmenterSpec


@dataclass(frozen=True)
class ModelRef:
    """Exactly one published version."""

    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str


@dataclass(frozen=True)
class EncodedImage:
    """A whole image file, not decoded."""

    data: bytes


@dataclass(frozen=True)
class FrameImage:
    """An uncompressed camera frame."""

    data: bytes
    width: int
    height: int
    stride_bytes: int
    pixel_format: PixelFormat


@dataclass(frozen=True)
class KnownImage:
    """An image seen before, by its image digest."""

    digest: str


ImageInput = EncodedImage | FrameImage | KnownImage


@dataclass(frozen=True)
class SegmenterVersion:
    """A segmenter that can be loaded."""

    model: ModelRef
    spec: SegmenterSpec
    image_encoder: ModelRef
    """The encoder whose embedding it reads."""


@dataclass(frozen=True)
class EncoderVersion:
    """An encoder as the embedding service runs it."""

    model: ModelRef
    spec: EncoderSpec


@dataclass(frozen=True)
class AdapterVersion:
    """An adapter that can be loaded: into the segmenter's bank, or as a graph with the adapter merged in."""

    model: ModelRef
    spec: SegmenterSpec
    """What the merged graph obeys."""
    segmenter: ModelRef
    """The segmenter it was made for."""
    adapter: AdapterSpec | None = None
    """What it is made of; None if its files do not say, or say something this software does not know."""

    @property
    def early_channels(self) -> int | None:
        """Channels of the image encoder's early feature that its graph takes; None where it takes none."""
        return self.adapter.early_channels if isinstance(self.adapter, HqTokenSpec) else None


@dataclass(frozen=True, eq=False)
class Embedded:
    """What one encoder returned for one image."""

    image_digest: str
    image_hw: tuple[int, int]
    encoder: ModelRef
    outputs: Mapping[str, NDArray[Any]]
    """By role: ``image_embedding`` (C, h, w), ``patch_features`` (h, w, D), ``early_features`` (E, h, w); in the
    precision asked for."""

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.outputs.values())


class MatcherName(Enum):
    """The matchers; values are the names in ``vplab.vision.matching.MATCHERS``."""

    SOFTMATCH = "softmatch"
    PROTOTYPE = "prototype"
    GRAPH = "graph"


@dataclass(frozen=True)
class Options:
    """Options of SegmentImage; None is not said."""

    matcher: MatcherName | None = None
    max_points: int | None = None
    num_background_points: int | None = None
    min_relative_score: float | None = None
    presence_threshold: float | None = None
    min_mask_score: float | None = None
    seed: int | None = None
    tile_side: int | None = None
    include_instances: bool = False
    include_points: bool = False

    def over(self, defaults: "Options") -> "Options":
        """Return these options with what is not said taken from ``defaults``; the two includes add up."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        said["include_instances"] = self.include_instances or defaults.include_instances
        said["include_points"] = self.include_points or defaults.include_points
        return replace(defaults, **said)


@dataclass(frozen=True)
class SegmentClass:
    """One class of a prompt set."""

    class_id: int
    display_name: str


@dataclass(frozen=True, eq=False)
class StoredMask:
    """A mask as run lengths, which is how it stays in memory."""

    size_hw: tuple[int, int]
    runs: NDArray[np.uint32]

    def pixels(self) -> NDArray[np.bool_]:
        """Return (H, W) bool."""
        return decode_runs(self.runs, self.size_hw, max_pixels=self.size_hw[0] * self.size_hw[1])


@dataclass(frozen=True, eq=False)
class DraftReference:
    """A reference image as a caller gives it."""

    image: EncodedImage | FrameImage
    masks: Mapping[int, StoredMask]
    """By class id."""


@dataclass(frozen=True, eq=False)
class PromptSetDraft:
    """What a prompt set is to be made from."""

    prompt_set_id: str
    display_name: str
    classes: tuple[SegmentClass, ...]
    references: tuple[DraftReference, ...]
    segmenter: str
    """Full version or alias name; empty means the default."""
    feature_encoder: str
    options: Options
    request_id: str
    request_digest: str
    """sha256 of everything above but the request id: tells a repeat from a reuse."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image as it is stored."""

    image_digest: str
    image_hw: tuple[int, int]
    masks: Mapping[int, StoredMask]


@dataclass(frozen=True, eq=False)
class PromptSetContent:
    """What a prompt set's files say."""

    display_name: str
    classes: tuple[SegmentClass, ...]
    references: tuple[Reference, ...]
    options: Options
    presence_thresholds: Mapping[int, float]
    """By class id, as calibrated when the set was made."""


@dataclass(frozen=True, eq=False)
class PromptSet:
    """One immutable version."""

    model: ModelRef
    content: PromptSetContent
    segmenter: ModelRef
    feature_encoder: ModelRef
    create_time: datetime | None


@dataclass(frozen=True, eq=False)
class Chosen:
    """The versions that a call, or a whole stream, segments with."""

    prompt_set: PromptSet
    adapter: AdapterVersion | None
    """None is the base segmenter."""


@dataclass(frozen=True)
class Provenance:
    """Everything that determined a result."""

    image_digest: str
    segmenter: ModelRef
    image_encoder: ModelRef
    feature_encoder: ModelRef | None = None
    prompt_set: ModelRef | None = None
    adapter: ModelRef | None = None


@dataclass(frozen=True, eq=False)
class PredictedMask:
    """One mask of one object."""

    mask: StoredMask
    predicted_iou: float
    low_res_logits: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to PredictMasks."""

    objects: tuple[tuple[PredictedMask, ...], ...]
    image_hw: tuple[int, int]
    provenance: Provenance


@dataclass(frozen=True)
class Timings:
    """Wall seconds of the stages."""

    embed_s: float
    match_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, eq=False)
class ClassFinding:
    """What was found of one class."""

    segment_class: SegmentClass
    found: ClassSegmentation
    mask: StoredMask


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to SegmentImage."""

    classes: tuple[ClassFinding, ...]
    image_hw: tuple[int, int]
    provenance: Provenance
    timings: Timings
    options: Options


@dataclass(frozen=True, eq=False)
class References:
    """A prompt set ready to be matched."""

    banks: Mapping[int, ClassBank]
    """By class id."""

    @property
    def num_bytes(self) -> int:
        return sum(
            b.foreground.nbytes
            + b.background.nbytes
            + (0 if b.pixel_classifier is None else b.pixel_classifier.num_bytes)
            for b in self.banks.values()
        )


@dataclass(frozen=True, eq=False)
class Target:
    """An image ready to be matched and decoded, in tiles."""

    image_digest: str
    image_hw: tuple[int, int]
    patches: TargetPatches
    embeddings: tuple[NDArray[Any], ...]
    """Image embeddings (C, h, w), one for each tile."""
    colours: tuple[NDArray[Any] | None, ...]
    """Colours (3, H, W) of each tile, where the segmenter uses them."""
    early_features: tuple[NDArray[Any] | None, ...] = ()
    """Early features (E, h, w) of each tile, where the adapter takes them; empty is none."""

    def early(self, tile: int) -> NDArray[Any] | None:
        """Return the early features of a tile, or None."""
        return self.early_features[tile] if self.early_features else None
