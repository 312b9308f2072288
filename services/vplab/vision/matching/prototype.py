"""Prototype matching: k-means centres of foreground and background, and the nearest centre wins.

Source: FSSDINO (arXiv 2602.07550), whose argmax includes the background and so needs no threshold.
"""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.matcher import Match, MatchOptions, PatchScores
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.matching.proposals import patch_scores, propose


class PrototypeMatcher:
    """The cheapest matcher."""

    groups_masks = False

    def score(self, bank: ClassBank, features: NDArray[np.float32], options: MatchOptions) -> PatchScores:
        foreground, background = bank.similarities(features)
        margin = foreground - background
        candidates = (margin > 0) & (margin >= options.min_relative_score * margin.max())
        return patch_scores(bank, features, margin, candidates, options.max_points)

    def match(self, bank: ClassBank, target: TargetPatches, options: MatchOptions) -> Match:
        scores = self.score(bank, target.features, options)
        return propose(scores, target, options, bank.presence_threshold, bank.pixel_classifier)
