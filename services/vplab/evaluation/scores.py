"""What is written down of one image, and how it comes from a prediction and the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vplab.evaluation.values import BoolArray, LabelArray
from vplab.vision.measures import boundary_f, iou

NOT_LEARNED = "learning failed: "
"""How the error begins of images for which a method that learns was not there: they say nothing of it."""
BOUNDARY_TOLERANCE = 0.0075
"""Tolerance of the boundary score as a share of the image's diagonal, that of BSDS: 5 pixels at 640x480 are 0.63 %."""


@dataclass(frozen=True)
class ClassScore:
    """One class on one image. Counts are pixels."""

    class_id: int
    """0 is the background."""
    intersection: int
    union: int
    truth: int
    boundary_f: float | None
    """None where the image does not show the class, and for the background."""


@dataclass(frozen=True)
class ShotScore:
    """One image segmented by a method that learned from shots."""

    method: str
    num_shots: int
    seed: int
    image: str
    classes: tuple[ClassScore, ...]
    seconds: float = 0.0
    error: str = ""
    """Why there was no answer; the scores are then those of an empty one."""


@dataclass(frozen=True)
class StepScore:
    """One object after a box or some clicks."""

    step: str
    """``box``, or the number of clicks."""
    iou: float
    boundary_f: float


@dataclass(frozen=True)
class ClickScore:
    """One object marked with a method."""

    method: str
    class_id: int
    image: str
    steps: tuple[StepScore, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall seconds of the box and of the first and last click."""
    error: str = ""
    num_shots: int = 0
    """Images that the method learned from first; 0 of one that learns nothing."""
    seed: int = 0


def score_labels(found: LabelArray, truth: LabelArray, class_ids: Sequence[int]) -> tuple[ClassScore, ...]:
    """Compare two (H, W) label images for each class and, last, for the background."""
    tolerance = tolerance_px(truth.shape)
    scores = []
    for class_id in (*class_ids, 0):
        mask, wanted = found == class_id, truth == class_id
        outlines = boundary_f(mask, wanted, tolerance) if class_id and wanted.any() else None
        counts = (int((mask & wanted).sum()), int((mask | wanted).sum()), int(wanted.sum()))
        scores.append(ClassScore(class_id, *counts, None if outlines is None else round(outlines, 5)))
    return tuple(scores)


def score_step(step: str, found: BoolArray, truth: BoolArray) -> StepScore:
    """Compare one object's mask with the truth."""
    outlines = boundary_f(found, truth, tolerance_px(truth.shape))
    return StepScore(step, round(iou(found, truth), 5), round(outlines, 5))


def tolerance_px(size_hw: tuple[int, ...]) -> float:
    """Return the boundary tolerance in pixels; at least the distance to a neighbour."""
    return max(1.0, BOUNDARY_TOLERANCE * math.hypot(*size_hw[:2]))
