"""Prototype matching: k-means centres of foreground and background, and the nearest centre wins.

Source: FSSDINO (arXiv 2602.07550), whose argmax includes the background and so needs no threshold.
"""

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.matcher import Match, MatchOptions
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.matching.proposals import propose


class PrototypeMatcher:
    """The cheapest matcher."""

    groups_masks = False

    def match(self, bank: ClassBank, target: TargetPatches, options: MatchOptions) -> Match:
        foreground, background = bank.similarities(target.features)
        margin = foreground - background
        candidates = (margin > 0) & (margin >= options.min_relative_score * margin.max())
        return propose(bank, target, options, margin, candidates)
