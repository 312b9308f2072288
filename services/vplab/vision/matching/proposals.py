"""What every matcher shares: the similarity map, choosing points that lie apart, and background points."""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import SOFTNESS, ClassBank
from vplab.vision.matching.matcher import Match, MatchOptions, PatchScores
from vplab.vision.matching.patches import TargetPatches

_SPACING = 1.5
"""Least distance of two points in patches."""


def similarity_map(bank: ClassBank, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P,) float32 in 0..1: how much nearer a patch is to the foreground's centres than to the background's."""
    foreground, background = bank.similarities(features)
    return np.asarray(1 / (1 + np.exp((background - foreground) / SOFTNESS)), np.float32)


def patch_scores(
    bank: ClassBank,
    features: NDArray[np.float32],
    scores: NDArray[np.float32],
    candidates: NDArray[np.bool_],
    max_points: int,
) -> PatchScores:
    """Add to a matcher's scores what all matchers say alike."""
    mean_row = (bank.foreground * bank.foreground_weight[:, None]).sum(axis=0) / bank.foreground_weight.sum()
    return PatchScores(
        scores=scores,
        candidates=candidates,
        similarity=similarity_map(bank, features),
        mean_similarity=features @ mean_row,
        presence_score=bank.presence_score(features),
        max_points=max_points,
    )


def propose(found: PatchScores, target: TargetPatches, options: MatchOptions, calibrated_threshold: float) -> Match:
    """Choose points among the candidates by score, best first and apart, and add background points.

    calibrated_threshold: of presence, where the options say none.
    """
    threshold = calibrated_threshold if options.presence_threshold is None else options.presence_threshold
    chosen = np.zeros(0, np.int64)
    if found.presence_score >= threshold:
        candidates = found.candidates & target.is_home
        chosen = pick_apart(target.centres_xy, found.scores, candidates, found.max_points, _SPACING * target.spacing_px)
    return Match(
        points_xy=target.centres_xy[chosen],
        point_tiles=target.tile_index[chosen],
        background_xy=lowest_similarity(found.mean_similarity, target, options.num_background_points, chosen),
        similarity=found.similarity,
        presence_score=found.presence_score,
        presence_threshold=threshold,
    )


def pick_apart(
    xy: NDArray[np.float32],
    scores: NDArray[np.float32],
    candidates: NDArray[np.bool_],
    at_most: int,
    distance_px: float,
) -> NDArray[np.int64]:
    """Return up to ``at_most`` candidates, greedily by score, none nearer than ``distance_px`` to a better one.

    1.5 patches apart is the 3 x 3 local maximum of the grid, and works across tiles too. When that leaves more than
    ``at_most``, they are taken best first.
    """
    order = np.flatnonzero(candidates)
    order = order[np.argsort(-scores[order], kind="stable")]
    chosen: list[int] = []
    alive = np.ones(len(order), np.bool_)
    positions = xy[order]
    for rank in range(len(order)):
        if not alive[rank]:
            continue
        chosen.append(int(order[rank]))
        if len(chosen) == at_most:
            break
        offsets = positions[rank + 1 :] - positions[rank]
        alive[rank + 1 :] &= (offsets**2).sum(axis=1) > distance_px**2
    return np.array(chosen, np.int64)


def lowest_similarity(
    mean_similarity: NDArray[np.float32], target: TargetPatches, count: int, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.float32], ...]:
    """Return (Q, 2) centres of each tile's ``count`` patches with the lowest mean similarity to the foreground rows.

    Patches in ``chosen`` are left out, so Q is less than ``count`` where a tile has no others.
    """
    is_free = np.ones(len(mean_similarity), np.bool_)
    is_free[chosen] = False
    points = []
    for tile in range(len(target.tiles)):
        free = np.flatnonzero(is_free & (target.tile_index == tile))
        points.append(target.centres_xy[free[np.argsort(mean_similarity[free], kind="stable")[:count]]])
    return tuple(points)
