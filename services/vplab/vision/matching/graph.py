"""Graph matching: as many points as the similarity map asks for, and masks grouped by the points they cover.

Source: Zhang et al., GF-SAM (NeurIPS 2024), ``matcher/GFSAM.py``: the prior map and the number of points are here, the
grouping of masks is in ``vplab.vision.pipeline.grouping``.
Deviation: features are normalised over channels; the published code normalises over tokens before its cosine.
"""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.matcher import Match, MatchOptions, PatchScores
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.matching.proposals import patch_scores, propose


class GraphMatcher:
    """Chooses the number of points by itself, up to the caller's limit."""

    groups_masks = True

    def score(self, bank: ClassBank, features: NDArray[np.float32], options: MatchOptions) -> PatchScores:
        prior = prior_map(bank, features)
        num_points = int(np.clip(prior.sum(), 1, options.max_points))
        return patch_scores(bank, features, prior, prior > 0, num_points)

    def match(self, bank: ClassBank, target: TargetPatches, options: MatchOptions) -> Match:
        scores = self.score(bank, target.features, options)
        return propose(scores, target, options, bank.presence_threshold, bank.pixel_classifier)


def prior_map(bank: ClassBank, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P,) float32 in 0..1: mean times best similarity to the foreground; 0 where background is more similar."""
    weight = bank.foreground_weight / bank.foreground_weight.sum()
    to_foreground = features @ bank.foreground.T
    cross = _stretch((to_foreground @ weight) * to_foreground.max(axis=1))
    if not len(bank.background):
        return cross
    to_background = _stretch((features @ bank.background.T).mean(axis=1))
    return np.where(to_background > cross, np.float32(0), cross)


def _stretch(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / (high - low) if high > low else np.zeros_like(values), np.float32)
