"""Which runs a tuning consists of, which images each leaves out, and what their validation decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi

import numpy as np

from vplab.training.tuning.values import Candidate, TuningMetrics, TuningOptions

MIN_IMAGES_FOR_FOLDS = 3
LEFT_OUT_SHARE = 0.4
MAX_LEFT_OUT = 3
"""Images a fold leaves out: two of five, and at most these, since each check measures them all. One image alone
says too little: the gain on it and that on new images hardly agree."""
MIN_GAIN = 0.004
"""What gains less than this on the images left out is not worth a change: the base stays."""


@dataclass(frozen=True)
class Run:
    """One training from the initial adapter."""

    name: str
    left_out: frozenset[int]
    """Image indices that are validated on and not trained on; empty in a run on all images."""

    @property
    def is_fold(self) -> bool:
        """Whether it is measured on images that it leaves out."""
        return bool(self.left_out)


def plan_runs(image_indices: Sequence[int], has_validation: bool, options: TuningOptions) -> list[Run]:
    """Return the folds, no image left out by all of them; or one run on all images.

    Deviation: two folds that leave out up to two images of five stop early where leave-one-out would train once for
    each image, five runs for five images; and one image alone says too little (LEFT_OUT_SHARE).
    """
    images = sorted(set(image_indices))
    if has_validation or len(images) < MIN_IMAGES_FOR_FOLDS or not options.num_folds:
        return [Run("all images", frozenset())]
    order = np.random.default_rng([options.seed, 0]).permutation(images).tolist()
    num_folds = min(options.num_folds, len(images))
    size = min(MAX_LEFT_OUT, max(1, int(LEFT_OUT_SHARE * len(images))), len(images) // num_folds)
    return [Run(f"fold {f + 1} of {num_folds}", frozenset(order[f * size : (f + 1) * size])) for f in range(num_folds)]


def check_steps(options: TuningOptions) -> list[int]:
    """Return the steps after which a run is validated, beside step 0; the last is the end."""
    count = min(options.num_checks, options.num_steps)
    return [round(options.num_steps * (i + 1) / count) for i in range(count)]


def candidates_at(step: int, options: TuningOptions) -> list[Candidate]:
    """Return what is measured at a check: the adapter as it is, and after all steps shares of it too."""
    shares = options.shares if step == options.num_steps else (1.0,)
    return [Candidate(step, share) for share in shares]


def choose(curve: Sequence[tuple[Candidate, TuningMetrics]]) -> Candidate:
    """Return the candidate that gains most on the first, which is the base; the base where nothing gains MIN_GAIN."""
    base, before = curve[0]
    best, after = max(curve, key=lambda measured: gain(measured[1], before))
    return best if gain(after, before) >= MIN_GAIN else base


def gain(after: TuningMetrics, before: TuningMetrics) -> float:
    """Return the mean gain in IoU over the kinds of prompts that both measured."""
    pairs = (
        (after.box_iou, before.box_iou),
        (after.point_iou, before.point_iou),
        (after.proposal_iou, before.proposal_iou),
    )
    changes = [new - old for new, old in pairs if new is not None and old is not None]
    return sum(changes) / len(changes)


def mean_metrics(metrics: Sequence[TuningMetrics]) -> TuningMetrics:
    """Return the mean over folds; of what some folds lack, over the others."""

    def mean(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known else None

    return TuningMetrics(
        box_iou=mean([m.box_iou for m in metrics]) or 0.0,
        point_iou=mean([m.point_iou for m in metrics]) or 0.0,
        proposal_iou=mean([m.proposal_iou for m in metrics]),
        rejected=mean([m.rejected for m in metrics]),
    )


def learning_rate(step: int, options: TuningOptions) -> float:
    """Return the rate of a step (from 0): a linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / (options.warmup_steps + 1))
    progress = step / options.num_steps
    return options.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + cos(pi * progress)))
