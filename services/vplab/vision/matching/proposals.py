"""What every matcher shares: the similarity map, choosing points that lie apart, and background points."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.grids import patches_at_pixels
from vplab.vision.matching.matcher import Match, MatchOptions, PatchScores
from vplab.vision.matching.patches import PatchFeatures, TargetPatches
from vplab.vision.matching.pixel_classifier import MAX_LOG_ODDS, PixelClassifier

_SPACING = 1.5
"""Least distance of two points in patches."""
_DOUBT = 1e-4
"""Similarities nearer to 0 or 1 count as that near; their log-odds are past ``MAX_LOG_ODDS``."""


def similarity_map(bank: ClassBank, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P,) float32 in 0..1: how much nearer a patch is to the foreground's centres than to the background's."""
    return np.asarray(1 / (1 + np.exp(-bank.log_odds(features))), np.float32)


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


def propose(
    found: PatchScores,
    target: TargetPatches,
    options: MatchOptions,
    calibrated_threshold: float,
    pixel_classifier: PixelClassifier | None = None,
) -> Match:
    """Choose points among the candidates by score, best first and apart, and add background points.

    calibrated_threshold: of presence, where the options say none. pixel_classifier: the bank's; on tiles with colours
    the similarity map becomes what it says of a patch's pixels, and points are the patches that have most of them.
    """
    threshold = calibrated_threshold if options.presence_threshold is None else options.presence_threshold
    pixel_odds: tuple[NDArray[np.float32], ...] = ()
    if (
        pixel_classifier is not None
        and found.presence_score >= threshold
        and all(tile.colours is not None for tile in target.tiles)
    ):
        pixel_odds = tuple(
            _pixel_odds(pixel_classifier, found, target, number, tile) for number, tile in enumerate(target.tiles)
        )
        found = _by_pixels(found, target, pixel_odds)
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
        pixel_odds=pixel_odds,
    )


def _pixel_odds(
    classifier: PixelClassifier, found: PatchScores, target: TargetPatches, number: int, tile: PatchFeatures
) -> NDArray[np.float32]:
    """Return a tile's log-odds of foreground at the pixels of its colours, (h, w) float32."""
    assert tile.pixels is not None
    similarity = np.clip(found.similarity[target.tile_index == number], _DOUBT, 1 - _DOUBT)
    map_odds = np.clip(np.log(similarity / (1 - similarity)), -MAX_LOG_ODDS, MAX_LOG_ODDS)
    return classifier.log_odds(tile.pixels, patches_at_pixels(map_odds, tile))


def _by_pixels(found: PatchScores, target: TargetPatches, pixel_odds: tuple[NDArray[np.float32], ...]) -> PatchScores:
    """Return scores with the mean probability of each patch's pixels in the place of what patches say."""
    shares = []
    for tile, odds in zip(target.tiles, pixel_odds, strict=True):
        assert tile.colours is not None
        frame = np.zeros(tile.colours.shape[1:], np.float32)
        frame[: odds.shape[0], : odds.shape[1]] = 1 / (1 + np.exp(-odds))
        (rows, columns), valid = tile.grid_hw, tile.valid
        shares.append(cv2.resize(frame, (columns, rows), interpolation=cv2.INTER_AREA)[valid])
    share = np.concatenate(shares).astype(np.float32)
    # Of thin things a patch has few pixels: half of the best one's are enough.
    candidates = share > min(0.5, 0.5 * float(share.max()))
    return replace(found, scores=share, candidates=candidates, similarity=share)


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
