"""What tuning takes, tells while it runs, and returns. Imports no torch, so a service may check options with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.colour_evidence import ColourModel
from vplab.vision.matching.class_bank import GROUP_SHARE
from vplab.vision.matching.patches import PatchFeatures
from vplab.vision.preprocessing import FrameTransform

if TYPE_CHECKING:
    from torch import Tensor

ValidationKind = Literal["given", "held_out", "training"]
"""Whose masks the metrics are of: images given for validation, images that a fold left out, or, with fewer than three
images, the training images themselves."""


@dataclass(frozen=True, eq=False)
class EmbeddedView:
    """One view of one validated image, as the encoders returned it."""

    image_index: int
    """Position of the image in the data set; the views of an image share it."""
    is_original: bool
    """Whether this is the image itself and not an augmented view; every image has exactly one such view."""
    embedding: NDArray[np.float16] | NDArray[np.float32]
    """(C, h, w), the segmenter's."""
    transform: FrameTransform
    """From the view's pixels to the segmenter's input."""
    masks: Mapping[int, NDArray[np.bool_]]
    """Per class id (H, W) bool of the view's size; a class that is missing is not on the image."""
    patches: PatchFeatures | None = None
    """The matcher's features of the view; None trains on clicks and boxes alone."""
    early_features: NDArray[np.float16] | NDArray[np.float32] | None = None
    """(C, h, w) intermediate feature of the image encoder, for methods that fuse it."""
    colours: NDArray[np.float16] | NDArray[np.float32] | None = None
    """(3, h, w) RGB in 0..1 over the padded frame, for a segmenter whose masks are sharpened by colours."""


@dataclass(frozen=True, eq=False)
class ClassProposals:
    """What the matcher says of one class on one view, when the other images are the references."""

    points_xy: NDArray[np.float32]
    """(N, 2) float32 in pixels of the segmenter's input, best first; empty where the class seems absent."""
    background_xy: NDArray[np.float32]
    """(Q, 2) float32, the background points that go with each of them."""
    similarity: NDArray[np.float16]
    """(h, w) in 0..1 on the low-resolution logit grid."""
    group_share: float = GROUP_SHARE
    """Share of the best group's score from which serving keeps a group of masks."""
    pixel_odds: NDArray[np.float16] | None = None
    """(H, W) log-odds of the pixel classifier on the grid of the view's colours, where serving adds them."""


@dataclass(frozen=True, eq=False)
class TuningExample:
    """One cached view with everything that training needs of it."""

    image_index: int
    is_original: bool
    embedding: NDArray[np.float16] | NDArray[np.float32]
    """(C, h, w)."""
    transform: FrameTransform
    masks: Mapping[int, NDArray[np.bool_]]
    """Per class of the job (S, S) bool in the segmenter's input frame, S its side; padding is background."""
    segments: Mapping[int, NDArray[np.uint16]]
    """Per class (S, S) ids of the mask's separate pieces from 1 on, 0 for background."""
    proposals: Mapping[int, ClassProposals]
    """Per class; a class without is trained on clicks and boxes alone."""
    early_features: NDArray[np.float16] | NDArray[np.float32] | None = None
    colours: ColourModel | None = None
    """What sharpens the masks of this view in serving; None takes the decoder's as they are."""


@dataclass(frozen=True)
class TuningOptions:
    """How an adapter is trained. The defaults are those of E-PEFT; ``for_method`` has every method's."""

    num_steps: int = 30
    """Most optimiser steps of a run; early stopping may choose fewer."""
    learning_rate: float = 1e-3
    part_rates: tuple[tuple[str, float], ...] = ()
    """Factors on the learning rate: that of the first pair whose text a tensor's name holds, 1 where none does."""
    weight_decay: float = 0.01
    warmup_steps: int = 5
    batch_size: int = 8
    """Prompts of a step."""
    clip_norm: float = 1.0
    seed: int = 0
    num_views: int = 4
    """Embedded views of each image, the image itself among them."""
    num_folds: int = 2
    """Runs that leave images out to find the number of steps, from three images up, and whose mean is the adapter; 0
    always trains all steps on all images. One alone would leave images out of all training."""
    num_checks: int = 2
    """How often a run measures the validation IoU."""
    shares: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Shares of what all steps changed that are measured: part of the way back to the base often keeps the gain and
    undoes the harm."""
    unchecked_share: float = 0.75
    """Share that is taken where there is no image to measure on."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "num_views", "num_checks", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is at least 1, not {getattr(self, name)}", field=f"options.{name}")
        for name in ("warmup_steps", "num_folds", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} is at least 0, not {getattr(self, name)}", field=f"options.{name}")
        if self.num_folds == 1:
            raise InvalidInput("num_folds is 0 or at least 2, not 1", field="options.num_folds")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} is above 0, not {getattr(self, name)}", field=f"options.{name}")
        if not self.shares:
            raise InvalidInput("there is no share to measure", field="options.shares")
        for share in (*self.shares, self.unchecked_share):
            if not 0 < share <= 1:
                raise InvalidInput(f"a share is above 0 and at most 1, not {share}", field="options.shares")
        for name, factor in self.part_rates:
            if not 0 < factor < float("inf"):
                raise InvalidInput(f"the factor of {name!r} is above 0, not {factor}", field="options.part_rates")

    def rate_factor(self, tensor: str) -> float:
        """Return what the learning rate of an adapter's tensor is multiplied by."""
        return next((factor for part, factor in self.part_rates if part in tensor), 1.0)

    @classmethod
    def for_method(cls, method: str, num_images: int) -> "TuningOptions":
        """Return the defaults of a method (the name in its AdapterSpec) for so many images."""
        from vplab.training.tuning.recipes import recipe

        return recipe(method, num_images)


class Candidate(NamedTuple):
    """An adapter that a run could end with."""

    step: int
    """Steps it is trained for; 0 is the base."""
    share: float
    """Of what those steps changed: 0.5 lies half way between the initial tensors and the trained ones."""


BASE = Candidate(0, 1.0)


@dataclass(frozen=True)
class TuningMetrics:
    """Mean IoU over images and classes that are there, 0..1, by how the mask was asked for."""

    box_iou: float
    point_iou: float
    proposal_iou: float | None
    """Of the matcher's best proposals; None where no example has any."""
    rejected: float | None
    """Share of false proposals (points on no object) answered by an empty mask or a predicted IoU below one half."""

    @property
    def iou(self) -> float:
        """The mean of those that were measured, which is what early stopping and promotion look at."""
        measured = [v for v in (self.box_iou, self.point_iou, self.proposal_iou) if v is not None]
        return sum(measured) / len(measured)


@dataclass(frozen=True, eq=False)
class TuningPreview:
    """What the adapter makes of one validation image now."""

    image_index: int
    class_id: int
    mask: NDArray[np.bool_]
    """(H, W) of the image's size."""


@dataclass(frozen=True, eq=False)
class TuningProgress:
    """One report; steps count over all runs, so they only rise."""

    step: int
    """Steps done, from 1 on."""
    num_steps: int
    """Steps in all."""
    run: str
    """``fold 1 of 2`` or ``all images``."""
    loss: float
    validation: TuningMetrics | None = None
    """Where it was measured at this step."""
    previews: tuple[TuningPreview, ...] = ()
    """Beside ``validation``: masks of up to four images."""


@dataclass(frozen=True, eq=False)
class TuningResult:
    """A trained adapter."""

    adapter_state: Mapping[str, "Tensor"]
    """The module's ``adapter_state()``, float32 on the CPU; the module that was passed in holds it too."""
    chosen: Candidate
    """What was best; BASE where no training was better than none."""
    metrics_before: TuningMetrics
    metrics_after: TuningMetrics
    validation_kind: ValidationKind
    curve: tuple[tuple[Candidate, float], ...] = field(default=())
    """Validation IoU of all that was measured, from BASE on; the mean over folds."""
