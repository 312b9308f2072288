"""What the segmentation service speaks of, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vplab.client.models import ModelReference, Provenance
from vplab.errors import VPLabError
from vplab.vision.mask_formats import Polygon, mask_to_coco_rle, mask_to_png, mask_to_polygons
from vplab.wire.images import ImageSource

MatcherName = Literal["softmatch", "prototype", "graph"]
DropPolicy = Literal["wait", "oldest", "newest"]


@dataclass(frozen=True, eq=False)
class Masked:
    """Something with a mask in the size of the oriented original image."""

    mask: NDArray[np.bool_]
    """(H, W) bool."""

    def to_png(self, *, bits: int = 8) -> bytes:
        """Return a grey PNG file: background 0, foreground white; 1 or 8 bits a pixel."""
        return mask_to_png(self.mask, bits=bits)

    def to_polygons(self, *, tolerance_px: float = 0.0) -> list[Polygon]:
        """Return the outlines of the mask's pieces, largest first; lossless at tolerance 0."""
        return mask_to_polygons(self.mask, tolerance_px=tolerance_px)

    def to_coco_rle(self, *, compressed: bool = True) -> dict[str, object]:
        """Return ``{"size": [H, W], "counts": ...}`` as COCO's tools read it."""
        return mask_to_coco_rle(self.mask, compressed=compressed)


@dataclass(frozen=True, eq=False)
class PredictedMask(Masked):
    """One mask of one object."""

    predicted_iou: float
    """The segmenter's own estimate of the mask's quality, about 0 to 1."""
    low_res_logits: NDArray[np.float32] | None
    """(h, w) float32 to refine from; None unless asked for."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to PredictMasks."""

    objects: tuple[tuple[PredictedMask, ...], ...]
    """One entry for each prompt, in order: one mask, or three with multimask."""
    image_size_hw: tuple[int, int]
    provenance: Provenance


@dataclass(frozen=True)
class SegmentClass:
    """One class of a prompt set."""

    class_id: int
    """Value in label images: 1 to 255."""
    display_name: str


@dataclass(frozen=True, eq=False)
class Reference:
    """A reference image and where each class is on it."""

    image: ImageSource
    """The picture itself; a digest is refused."""
    masks: Mapping[int, NDArray[np.bool_]]
    """Class id to (H, W) bool with at least one pixel."""


@dataclass(frozen=True)
class SegmentOptions:
    """Options of SegmentImage; None means the prompt set's value, or else the server's default."""

    matcher: MatcherName | None = None
    max_points: int | None = None
    """Most foreground points per class, 1 to 128."""
    num_background_points: int | None = None
    """Background points in each prompt, 0 to 16."""
    min_relative_score: float | None = None
    """Keep points with at least this share of the best score, 0 to 1."""
    presence_threshold: float | None = None
    """Absolute similarity, -1 to 1, that the best match must reach for the class to be present."""
    min_mask_score: float | None = None
    """Drop instances below, 0 to 1."""
    seed: int | None = None
    """Equal seeds give equal results."""
    tile_side: int | None = None
    """Cut images whose long side is greater into tiles of this side, in pixels; 0 never tiles."""
    include_instances: bool = False
    include_points: bool = False


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A reference image as the service keeps it."""

    image_digest: str
    """Also the digest of the registry blob that holds its bytes."""
    image_size_hw: tuple[int, int]
    masks: Mapping[int, NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class PromptSet:
    """One immutable version of a set of references."""

    model: ModelReference
    display_name: str
    classes: tuple[SegmentClass, ...]
    references: tuple[StoredReference, ...]
    segmenter: ModelReference
    feature_encoder: ModelReference
    options: SegmentOptions
    create_time: datetime | None


@dataclass(frozen=True, eq=False)
class Instance(Masked):
    """One connected proposal of a class."""

    score: float
    """Mean similarity inside the mask times predicted IoU."""
    predicted_iou: float
    box_xyxy: NDArray[np.float32]
    """(4,) float32 around the mask, in pixels."""


@dataclass(frozen=True, eq=False)
class ClassResult(Masked):
    """What was found of one class; ``mask`` is the union of its instances, empty when it is not present."""

    class_id: int
    display_name: str
    present: bool
    presence_score: float
    """Absolute similarity of the best match, -1 to 1."""
    presence_threshold: float
    score: float
    """The best instance's; 0 when not present."""
    instances: tuple[Instance, ...]
    """Best first; empty unless asked for."""
    points_xy: NDArray[np.float32]
    """(N, 2) float32 proposed prompts, best first; empty unless asked for."""
    point_labels: NDArray[np.int64]
    """(N,) 1 foreground, 0 background."""


@dataclass(frozen=True)
class Timings:
    """Wall seconds inside the server."""

    embed_s: float
    match_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer to SegmentImage."""

    classes: tuple[ClassResult, ...]
    """In the order of the prompt set."""
    image_size_hw: tuple[int, int]
    provenance: Provenance
    timings: Timings

    def label_image(self) -> NDArray[np.uint8]:
        """Return (H, W) uint8 with each pixel's class id, 0 for none; where classes overlap the better score wins."""
        labels = np.zeros(self.image_size_hw, np.uint8)
        for result in sorted(self.classes, key=lambda result: result.score):
            labels[result.mask] = result.class_id
        return labels


@dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """The answer to one frame of a stream: a result, an error, or neither when the drop policy took the frame."""

    frame_id: str
    result: Segmentation | None = None
    error: VPLabError | None = None
    num_dropped: int = 0
    """How many frames the stream dropped so far; set when this one was."""

    @property
    def is_dropped(self) -> bool:
        """Whether the drop policy took this frame."""
        return self.result is None and self.error is None


@dataclass(frozen=True, eq=False)
class PromptSetDraft:
    """What a prompt set is to be made from."""

    prompt_set_id: str
    """Becomes the artifact's id; an existing one gets a new version."""
    classes: Sequence[SegmentClass]
    references: Sequence[Reference]
    display_name: str = ""
    segmenter: str = ""
    """Version or alias name; empty means the server's default. The version is pinned."""
    feature_encoder: str = ""
    """Version or alias name; empty means the server's default. The version is pinned."""
    options: SegmentOptions = field(default_factory=SegmentOptions)
