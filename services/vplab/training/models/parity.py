"""Does a graph say what it was made from? Measured at every import and kept with the version."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Literal, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from vplab.errors import FailedPrecondition
from vplab.training.values import PARITY_PASSED
from vplab.vision.specs import Precision

FloatArray = NDArray[np.float32]

LOGIT_TOLERANCE = 1e-3
"""Largest difference of low-resolution logits and IoU predictions, given the same image embedding."""
MASK_IOU_TOLERANCE = 0.999
EMBEDDING_TOLERANCE: dict[Precision, float] = {"float32": 1e-2, "float16": 0.25}
"""Largest difference of an image embedding, in standard deviations of the reference. Of float16 only the masks tell
whether it matters."""
FEATURE_TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2}
"""Largest difference of a component of a patch feature, which is a unit vector."""


class DecodingTolerance(NamedTuple):
    """How far a decoder's answers may be from the reference's."""

    logits: float
    iou_predictions: float
    mask_iou: float


GIVEN_EMBEDDING = DecodingTolerance(LOGIT_TOLERANCE, LOGIT_TOLERANCE, MASK_IOU_TOLERANCE)
"""With the same image embedding on both sides."""
END_TO_END = DecodingTolerance(1e-2, 1e-2, MASK_IOU_TOLERANCE)
"""With each side's own image embedding, whose rounding a deep encoder's residual stream amplifies."""
HALF_PRECISION = DecodingTolerance(1.0, 0.05, 0.99)
"""Of float16 against float32: logits span about -20 to 20, and what is judged is the masks."""


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ParityCase(_Report):
    """One comparison of the graph with the reference."""

    name: str
    image_sizes_hw: tuple[tuple[int, int], ...]
    """Original sizes of the images of the batch, height and width."""
    num_prompts: int | None = None
    num_tokens: int | None = None
    """Tokens of each prompt, padding included."""
    quantity: Literal[
        "image_embedding", "patch_features", "early_features", "colours", "low_res_logits", "patch_scores"
    ]
    max_abs_difference: float
    max_abs_tolerance: float
    mask_iou: float | None = None
    """IoU of the masks at the segmenter's threshold, over all prompts and planes together; None without masks."""
    mask_iou_tolerance: float = MASK_IOU_TOLERANCE
    """Least ``mask_iou``."""
    min_mask_iou: float | None = None
    """The same of the worst single mask. Not judged: one borderline pixel of a small mask moves it past any limit."""
    max_iou_prediction_difference: float | None = None
    iou_prediction_tolerance: float | None = None
    """None is ``max_abs_tolerance``."""

    @property
    def passed(self) -> bool:
        """Whether every figure is within its tolerance; NaN is not."""
        of_predictions = self.iou_prediction_tolerance
        return (
            self.max_abs_difference <= self.max_abs_tolerance
            and (self.mask_iou is None or self.mask_iou >= self.mask_iou_tolerance)
            and (
                self.max_iou_prediction_difference is None
                or self.max_iou_prediction_difference
                <= (self.max_abs_tolerance if of_predictions is None else of_predictions)
            )
        )


class ParityReport(_Report):
    """The content of ``parity.json``."""

    reference: str
    """What the graph was compared with."""
    versions: dict[str, str]
    """Of the libraries on both sides."""
    providers: tuple[str, ...]
    """ONNX Runtime execution providers that ran the graph."""
    machine: str
    cases: tuple[ParityCase, ...]
    passed: bool

    @property
    def metrics(self) -> dict[str, float]:
        """The verdict and the worst figures, for the version's manifest."""
        ious = [c.mask_iou for c in self.cases if c.mask_iou is not None]
        worst = {
            PARITY_PASSED: float(self.passed),
            "parity_max_abs_difference": max(c.max_abs_difference for c in self.cases),
        }
        return worst | ({"parity_mask_iou": min(ious)} if ious else {})

    def require_passed(self, what: str) -> None:
        """Raise FailedPrecondition naming the cases that failed, so that nothing wrong is published."""
        if self.passed:
            return
        failed = [
            f"{c.name}: {c.quantity} differ by {c.max_abs_difference:.3g} (allowed {c.max_abs_tolerance:.3g})"
            + ("" if c.mask_iou is None else f", mask IoU {c.mask_iou:.4f} (needed {c.mask_iou_tolerance})")
            for c in self.cases
            if not c.passed
        ]
        raise FailedPrecondition(f"the graph of {what} does not match {self.reference}: {'; '.join(failed)}")


def make_report(
    reference: str, packages: Iterable[str], providers: Sequence[str], cases: Sequence[ParityCase]
) -> ParityReport:
    """Gather cases; at least one is needed for a pass.

    packages: distributions whose versions matter, beside ONNX Runtime.
    """
    return ParityReport(
        reference=reference,
        versions={"onnxruntime": onnxruntime.__version__} | {name: version(name) for name in sorted(packages)},
        providers=tuple(providers),
        machine=platform.machine(),
        cases=tuple(cases),
        passed=bool(cases) and all(case.passed for case in cases),
    )


def logit_case(
    name: str,
    sizes_hw: Iterable[tuple[int, int]],
    num_tokens: int,
    actual: tuple[FloatArray, FloatArray],
    expected: tuple[FloatArray, FloatArray],
    threshold: float,
    tolerance: DecodingTolerance = GIVEN_EMBEDDING,
) -> ParityCase:
    """Compare what two decoders answer to the same prompts: logits (N, M, h, w) and IoU predictions (N, M) of each.

    sizes_hw: of each prompt's image. threshold: the segmenter's, of logits.
    """
    mask_iou, worst = mask_ious(actual[0], expected[0], threshold)
    return ParityCase(
        name=name,
        image_sizes_hw=tuple(sizes_hw),
        num_prompts=len(expected[0]),
        num_tokens=num_tokens,
        quantity="low_res_logits",
        max_abs_difference=max_abs_difference(actual[0], expected[0]),
        max_abs_tolerance=tolerance.logits,
        mask_iou=mask_iou,
        mask_iou_tolerance=tolerance.mask_iou,
        min_mask_iou=worst,
        max_iou_prediction_difference=max_abs_difference(actual[1], expected[1]),
        iou_prediction_tolerance=tolerance.iou_predictions,
    )


def max_abs_difference(actual: FloatArray, expected: FloatArray) -> float:
    """Return the largest difference of two arrays; infinite if the shapes differ, so that no tolerance admits it."""
    if actual.shape != expected.shape:
        return float("inf")
    return float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))


def mask_ious(actual: FloatArray, expected: FloatArray, threshold: float = 0.0) -> tuple[float, float]:
    """Return the IoU of the masks of two (..., h, w) logit arrays: over all of them together, and of the worst.

    Two empty masks agree fully; arrays of different shapes do not agree at all.
    """
    if actual.shape != expected.shape:
        return 0.0, 0.0
    ours, theirs = actual > threshold, expected > threshold
    both = (ours & theirs).sum(axis=(-2, -1))
    either = (ours | theirs).sum(axis=(-2, -1))
    together = 1.0 if either.sum() == 0 else float(both.sum() / either.sum())
    return together, float(np.where(either == 0, 1.0, both / np.maximum(either, 1)).min(initial=1.0))
