"""One class of one target: match, decode, weigh, group, join tiles, and take the union."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vplab.vision.masks import upsample_logits
from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.matcher import Match, Matcher, MatchOptions
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.pipeline.decoding import Candidate, PromptDecoder, decode_points, refine
from vplab.vision.pipeline.grouping import Group, group_by_overlap, group_by_points
from vplab.vision.pipeline.similarity_grid import on_decoder_grid
from vplab.vision.tiling import PlacedMask, TileMask, blend, join_across_tiles

SIMILARITY_WEIGHT = 0.5
"""Share of the similarity map's log-odds that is added to the decoder's logits. Where the decoder is sure (SAM's logits
are +-10 and more) it decides; where it is not, the features do. 0 and 1 were 4 and 1.5 points of IoU worse."""
_SIMILARITY_DOUBT = 1e-3


@dataclass(frozen=True)
class SegmentOptions:
    """What the pipeline may be told beyond the matcher's options."""

    min_relative_score: float = 0.7
    """Candidates below this share of the best candidate's score are dropped."""
    min_mask_score: float = 0.0
    """Instances below this score are dropped. Scores depend on the models, so the default keeps all."""
    refines: bool = True
    """Whether every candidate gets a second pass with its box and logits."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One object of a class."""

    placed: PlacedMask
    score: float
    """Mean similarity inside the mask times predicted IoU, 0..1."""
    predicted_iou: float

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Box of the mask in pixels of the image, far edges outside."""
        area = self.placed.area
        return area.x_min, area.y_min, area.x_max, area.y_max


@dataclass(frozen=True, eq=False)
class ClassSegmentation:
    """What was found of one class."""

    match: Match
    instances: tuple[Instance, ...]
    """Best first; empty when the class is absent."""

    @property
    def is_present(self) -> bool:
        return self.match.is_present and len(self.instances) > 0

    def mask(self, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the union of the instances, (H, W) bool."""
        canvas = np.zeros(image_hw, np.bool_)
        for instance in self.instances:
            instance.placed.paint(canvas)
        return canvas


@dataclass(frozen=True, eq=False)
class _TileGroup:
    tile: int
    group: Group
    similarity: float


def segment_class(
    matcher: Matcher,
    bank: ClassBank,
    target: TargetPatches,
    decoder: PromptDecoder,
    match_options: MatchOptions,
    options: SegmentOptions,
    on_matched: Callable[[], None] = lambda: None,
) -> ClassSegmentation:
    """Find one class of the references in a target.

    ``decoder`` has the same tiles as ``target``, in the same order. ``on_matched`` is called between matching and
    decoding. Deterministic for a seed. Raises what the decoder raises, and InvalidInput for features of another width.
    """
    match = matcher.match(bank, target, match_options)
    on_matched()
    if not match.is_present:
        return ClassSegmentation(match, ())
    tiles = range(len(target.tiles))
    maps = {t: _similarity(target, match, decoder, t) for t in tiles}
    candidates = {t: _candidates(target, match, decoder, t, maps[t], options) for t in tiles}
    best = max((c.score for found in candidates.values() for c in found), default=0.0)
    groups: list[_TileGroup] = []
    for tile, found in candidates.items():
        kept = [c for c in found if c.score >= options.min_relative_score * best]
        groups += _groups(matcher, decoder, tile, kept, maps[tile])
    instances = [i for i in _instances(target, decoder, groups) if i.score >= options.min_mask_score]
    return ClassSegmentation(match, tuple(sorted(instances, key=lambda i: -i.score)))


def _similarity(target: TargetPatches, match: Match, decoder: PromptDecoder, tile: int) -> NDArray[np.float32]:
    grid = target.grid(tile, match.similarity)
    return on_decoder_grid(grid, target.tiles[tile], decoder.transform(tile), decoder.spec.low_res_hw)


def _candidates(
    target: TargetPatches,
    match: Match,
    decoder: PromptDecoder,
    tile: int,
    similarity: NDArray[np.float32],
    options: SegmentOptions,
) -> list[Candidate]:
    """Decode every point that a tile contains: one in the overlap is decoded in both tiles, so that both know it."""
    area = target.tiles[tile].area
    origin = np.array(area.origin_xy, np.float32)
    points = match.points_xy[area.contains(match.points_xy)] - origin
    if not len(points):
        return []
    found = decode_points(decoder, tile, points, match.background_xy[tile] - origin, similarity)
    return refine(decoder, tile, found, similarity) if options.refines and found else found


def _groups(
    matcher: Matcher,
    decoder: PromptDecoder,
    tile: int,
    candidates: Sequence[Candidate],
    similarity: NDArray[np.float32],
) -> list[_TileGroup]:
    if matcher.groups_masks:
        scale = decoder.transform(tile).scale_xy
        groups = group_by_points(candidates, similarity, decoder.spec.input_size, scale)
    else:
        groups = group_by_overlap(candidates)
    odds = np.clip(similarity, _SIMILARITY_DOUBT, 1 - _SIMILARITY_DOUBT)
    weighed = SIMILARITY_WEIGHT * np.log(odds / (1 - odds))
    out = []
    for group in groups:
        logits = group.logits + weighed
        mask = logits > 0
        if mask.any():
            mean = float(similarity[mask].mean())
            out.append(_TileGroup(tile, Group(logits, group.predicted_iou, group.members), mean))
    return out


def _instances(target: TargetPatches, decoder: PromptDecoder, groups: Sequence[_TileGroup]) -> list[Instance]:
    masks, seen = [], []
    for group in groups:
        area = target.tiles[group.tile].area
        full = partial(_full_logits, decoder, group)
        foreground = PlacedMask.of(full() > 0, area.origin_xy)
        if foreground is not None:
            masks.append(TileMask(area, foreground, full))
            seen.append(group)
    joined = join_across_tiles(masks) if len(target.tiles) > 1 else [[i] for i in range(len(masks))]
    instances = []
    for members in joined:
        placed = blend([masks[m] for m in members], target.image_hw)
        if placed is None:
            continue
        areas = [int(masks[m].foreground.mask.sum()) for m in members]
        similarity = float(np.average([seen[m].similarity for m in members], weights=areas))
        iou = max(seen[m].group.predicted_iou for m in members)
        instances.append(Instance(placed, similarity * min(max(iou, 0.0), 1.0), iou))
    return instances


def _full_logits(decoder: PromptDecoder, group: _TileGroup) -> NDArray[np.float32]:
    return np.asarray(upsample_logits(group.group.logits[None], decoder.transform(group.tile))[0], np.float32)
