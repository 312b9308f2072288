"""One class of one target: match, decode, weigh, group, join tiles, and take the union."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.masks import upsample_logits
from vplab.vision.matching.class_bank import ClassBank
from vplab.vision.matching.grids import on_decoder_grid, pixels_on_grid
from vplab.vision.matching.matcher import Match, Matcher, MatchOptions
from vplab.vision.matching.patches import TargetPatches
from vplab.vision.pipeline.decoding import Candidate, PromptDecoder, decode_points, refine
from vplab.vision.pipeline.grouping import group_by_overlap, group_by_points
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.tiling import PlacedMask, Tile, TileMask, blend, join_views

# Deviation: the similarity map has a say in the masks themselves and not only in their scores.
SIMILARITY_WEIGHT = 0.5
"""Share of the similarity map's log-odds that is added to the decoder's logits. Where the decoder is sure (SAM's logits
are +-10 and more) it decides; where it is not, the features do. 0 and 1 were both worse with the nano models."""
_SIMILARITY_DOUBT = 1e-3
PIXEL_WEIGHT = 0.5
"""Share of the pixel classifier's log-odds that is added to the final logits, on the finest grid there is. 0.25 and 1
were as good on average: 1 better for defects, worse for natural objects, whose inside looks like their surroundings."""


@dataclass(frozen=True)
class SegmentOptions:
    """What the pipeline may be told beyond the matcher's options."""

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
    logits: NDArray[np.float32]
    """(h, w) float32 on the low-resolution grid or a finer one, the similarity map weighed in."""
    predicted_iou: float
    score: float
    """The best candidate's."""


@dataclass(frozen=True, eq=False)
class _Piece:
    """One connected piece of a group's mask."""

    view: TileMask
    similarity: float
    predicted_iou: float


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
    return segment_matched(match, matcher.groups_masks, target, decoder, options, bank.group_share)


def segment_matched(
    match: Match,
    groups_masks: bool,
    target: TargetPatches,
    decoder: PromptDecoder,
    options: SegmentOptions,
    group_share: float,
) -> ClassSegmentation:
    """Turn the points of one class into its instances. ``groups_masks``: the matcher's. ``group_share``: the bank's."""
    if not match.is_present:
        return ClassSegmentation(match, ())
    tiles = range(len(target.tiles))
    maps = {t: similarity_on_grid(target, match, t, decoder.transform(t), decoder.spec.low_res_hw) for t in tiles}
    candidates = {t: _candidates(target, match, decoder, t, maps[t], options) for t in tiles}
    groups = [g for t in tiles for g in _groups(groups_masks, decoder, t, candidates[t], maps[t])]
    best = max((group.score for group in groups), default=0.0)
    kept = [group for group in groups if group.score >= group_share * best]
    instances = [i for i in _instances(target, match, decoder, kept, maps) if i.score >= options.min_mask_score]
    return ClassSegmentation(match, tuple(sorted(instances, key=lambda i: -i.score)))


def similarity_on_grid(
    target: TargetPatches, match: Match, tile: int, transform: FrameTransform, low_res_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Return a tile's similarity map (h, w) in 0..1 on the decoder's grid: of pixels where the match has them."""
    if match.pixel_odds:
        share = np.asarray(1 / (1 + np.exp(-match.pixel_odds[tile])), np.float32)
        return pixels_on_grid(share, target.tiles[tile], transform, low_res_hw)
    return on_decoder_grid(target.grid(tile, match.similarity), target.tiles[tile], transform, low_res_hw)


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
    groups_masks: bool,
    decoder: PromptDecoder,
    tile: int,
    candidates: Sequence[Candidate],
    similarity: NDArray[np.float32],
) -> list[_TileGroup]:
    if groups_masks:
        scale = decoder.transform(tile).scale_xy
        groups = group_by_points(candidates, similarity, decoder.spec.input_size, scale)
    else:
        groups = group_by_overlap(candidates)
    odds = np.clip(similarity, _SIMILARITY_DOUBT, 1 - _SIMILARITY_DOUBT)
    weighed = np.asarray(SIMILARITY_WEIGHT * np.log(odds / (1 - odds)), np.float32)
    return [_TileGroup(tile, g.logits + weighed, g.predicted_iou, g.members[0].score) for g in groups]


def _instances(
    target: TargetPatches,
    match: Match,
    decoder: PromptDecoder,
    groups: Sequence[_TileGroup],
    maps: Mapping[int, NDArray[np.float32]],
) -> list[Instance]:
    # Once for each tile, however many groups it has.
    pixel_say = cache(partial(_pixel_say, target, match, decoder))
    pieces = []
    for tile, members in groupby(groups, key=lambda group: group.tile):
        similarity = _upsample(decoder, tile, maps[tile])
        for group in members:
            logits = decoder.sharpen(tile, group.logits)
            if match.pixel_odds:
                logits = logits + pixel_say(tile, (logits.shape[0], logits.shape[1]))
            sharp = replace(group, logits=logits)
            pieces += _pieces(target, decoder, sharp, similarity)
    instances = []
    for indices in join_views([piece.view for piece in pieces]):
        found = [pieces[i] for i in indices]
        placed = blend([piece.view for piece in found], target.image_hw)
        if placed is None:
            continue
        areas = [int(piece.view.foreground.mask.sum()) for piece in found]
        mean = float(np.average([piece.similarity for piece in found], weights=areas))
        iou = max(piece.predicted_iou for piece in found)
        instances.append(Instance(placed, mean * min(max(iou, 0.0), 1.0), iou))
    return instances


def _pixel_say(
    target: TargetPatches, match: Match, decoder: PromptDecoder, tile: int, size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Return what pixels add to the final logits of a tile, (H, W) float32 on their grid."""
    odds = pixels_on_grid(match.pixel_odds[tile], target.tiles[tile], decoder.transform(tile), size_hw)
    return np.asarray(np.float32(PIXEL_WEIGHT) * odds, np.float32)


def _pieces(
    target: TargetPatches, decoder: PromptDecoder, group: _TileGroup, similarity: NDArray[np.float32]
) -> list[_Piece]:
    """Cut a group's mask into connected pieces; those smaller than a cell of the decoder's grid are noise.

    similarity: (H, W) float32 of the tile's size.
    """
    area = target.tiles[group.tile].area
    mask = np.asarray(_upsample(decoder, group.tile, group.logits) > 0, np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    smallest = 1 / float(np.prod(decoder.transform(group.tile).scale_xy)) * _cell_area(decoder)
    pieces = []
    for label in range(1, len(stats)):
        x, y, width, height, size = (int(n) for n in stats[label])
        if size < smallest:
            continue
        box = Tile(x, y, x + width, y + height)
        inside = box.crop(labels) == label
        placed = PlacedMask(
            Tile(area.x_min + x, area.y_min + y, area.x_min + x + width, area.y_min + y + height), inside
        )
        view = TileMask(area, placed, partial(_logits_of_piece, decoder, group, box, inside))
        pieces.append(_Piece(view, float(box.crop(similarity)[inside].mean()), group.predicted_iou))
    return pieces


def _cell_area(decoder: PromptDecoder) -> float:
    """Return the area of a cell of the low-resolution grid, in pixels of the decoder's input."""
    height, width = decoder.spec.low_res_hw
    return decoder.spec.input_size / height * decoder.spec.input_size / width


def _logits_of_piece(
    decoder: PromptDecoder, group: _TileGroup, box: Tile, inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the group's logits with its other pieces taken out."""
    logits = _upsample(decoder, group.tile, group.logits)
    is_other = logits > 0
    box.crop(is_other)[inside] = False
    logits[is_other] = -logits[is_other]
    return logits


def _upsample(decoder: PromptDecoder, tile: int, low_res: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(upsample_logits(low_res[None], decoder.transform(tile))[0], np.float32)
