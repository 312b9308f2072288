"""Soft matching: reference foreground distributes itself over the target, and its mean is where the object is.

Source: Frick et al., SoftMatcher (IJCAI 2024 demo), whose text gives the idea only; the numbers are those of Intel's
independent implementation (geti-instant-learn, ``soft_matcher``): temperature 0.1, points from 0.4 of the best score.
"""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.matcher import Match, MatchOptions, PatchScores
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.matching.proposals import patch_scores, propose

TEMPERATURE = 0.1
BLOCK = 4096


class SoftMatcher:
    """The default matcher."""

    groups_masks = False

    def score(self, bank: ClassBank, features: NDArray[np.float32], options: MatchOptions) -> PatchScores:
        scores = soft_scores(bank, features)
        low, high = float(scores.min()), float(scores.max())
        relative = (scores - low) / (high - low) if high > low else np.ones_like(scores)
        foreground, background = bank.similarities(features)
        # The relative score always proposes something; a patch that is nearer to the background is no proposal.
        candidates = (relative >= options.min_relative_score) & (foreground > background)
        return patch_scores(bank, features, scores, candidates, options.max_points)

    def match(self, bank: ClassBank, target: TargetPatches, options: MatchOptions) -> Match:
        scores = self.score(bank, target.features, options)
        return propose(scores, target, options, bank.presence_threshold, bank.pixel_classifier)


def soft_scores(bank: ClassBank, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P,) float32, the best 1: the geometric mean, over foreground rows, of each row's softmax over target
    positions, times that of the share which each target patch gives to the row among all reference rows.

    Deviation: the second factor is the implementation's bidirectional option, on here: without it, texture that
    resembles the object but resembles its surroundings more is proposed too.

    The geometric mean of softmaxes is, but for a factor that all positions share, the exponential of the mean
    similarity, so no (M, P) matrix is kept; the second factor's sums are taken a block of patches at a time.
    """
    weight = bank.foreground_weight / bank.foreground_weight.sum()
    mean_row = weight @ bank.foreground
    log_score = np.empty(len(features), np.float32)
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK]
        forward = block @ mean_row / TEMPERATURE
        log_score[start : start + BLOCK] = 2 * forward - _log_sum_over_references(bank, block)
    return np.asarray(np.exp(log_score - log_score.max()), np.float32)


def _log_sum_over_references(bank: ClassBank, block: NDArray[np.float32]) -> NDArray[np.float32]:
    if not len(bank.background):
        return np.zeros(len(block), np.float32)
    rows = np.concatenate([bank.foreground, bank.background])
    # Cosines are at most 1, so the largest exponent is 1 / temperature and 10 fits float32.
    return np.asarray(np.log(np.exp(block @ rows.T / TEMPERATURE).sum(axis=1)), np.float32)
