"""Candidates of one tile put together into instances.

Two ways: by overlap (the default), and by GF-SAM's graph of which mask covers which point (``matcher/GFSAM.py``).

Deviation: overlapping candidates are averaged by score instead of suppressed by box NMS, since forty prompts are forty
opinions of one object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vplab.vision.pipeline.decoding import Candidate

_SAME_IOU = 0.5
_CONTAINED = 0.8
"""Masks are views of one instance from this IoU on, or when the better one holds this share of the other."""
_MIN_SHARE = 0.7
"""Members of a group with less than this share of its best score have no say in it."""
_SURE = 12.0
"""Logits are clipped here before they become probabilities; float32's sigmoid is 1 not much further on."""


@dataclass(frozen=True, eq=False)
class Group:
    """Candidates that show one instance."""

    logits: NDArray[np.float32]
    """(h, w) float32: the log-odds of the members' mean probability, weighted by score."""
    predicted_iou: float
    """The best member's."""
    members: tuple[Candidate, ...]


def group_by_overlap(candidates: Sequence[Candidate]) -> list[Group]:
    """Merge masks that overlap, best score first, instead of suppressing all but one: forty prompts are forty opinions
    of one object, and their mean was better than the best wherever it was tried."""
    ranked = sorted(candidates, key=lambda c: -c.score)
    if not ranked:
        return []
    masks = np.stack([c.logits.reshape(-1) > 0 for c in ranked]).astype(np.float32)
    common, area = masks @ masks.T, masks.sum(axis=1)
    is_same = common / (area[:, None] + area[None] - common) >= _SAME_IOU
    is_same |= common >= _CONTAINED * area[None]
    free = np.ones(len(ranked), np.bool_)
    groups = []
    for index in range(len(ranked)):
        if not free[index]:
            continue
        members = np.flatnonzero(free & (is_same[index] | (np.arange(len(ranked)) == index)))
        free[members] = False
        floor = _MIN_SHARE * ranked[index].score
        groups.append(_group([ranked[m] for m in members if ranked[m].score >= floor]))
    return groups


def group_by_points(
    candidates: Sequence[Candidate], similarity: NDArray[np.float32], input_size: int, scale_xy: NDArray[np.float64]
) -> list[Group]:
    """Group masks that cover each other's points, and grow each group only where it gains more foreground than not.

    similarity: (h, w) float32 in 0..1 on the logit grid; above 0.5 is foreground. scale_xy: input pixels per tile's.
    A mask that covers another's point is joined with it (weakly connected components). Within a component masks are
    taken best first while the new area they add holds more foreground than background. A component most of whose points
    lie on background is dropped; when all are, the best mask stays.
    """
    if not candidates:
        return []
    height, width = similarity.shape
    masks = np.stack([c.logits > 0 for c in candidates])
    cells = np.array([c.point_xy for c in candidates]) * scale_xy * (width / input_size, height / input_size)
    columns = np.clip(cells[:, 0].astype(np.int64), 0, width - 1)
    rows = np.clip(cells[:, 1].astype(np.int64), 0, height - 1)
    component = _components(masks[:, rows, columns])
    margin = similarity - np.float32(0.5)
    groups = []
    for label in dict.fromkeys(component.tolist()):
        members = np.flatnonzero(component == label)
        if 2 * int((margin[rows[members], columns[members]] > 0).sum()) <= len(members):
            continue
        kept = _grow(members, masks, margin, candidates)
        if kept:
            groups.append(_union([candidates[k] for k in kept]))
    return groups or [_group([max(candidates, key=lambda c: c.score)])]


def _components(covers: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Label the weakly connected components; covers[i, j] says that mask i covers point j."""
    linked = covers | covers.T
    label = np.arange(len(covers))
    while True:
        lowest = np.where(linked, label[None, :], len(covers)).min(axis=1)
        new = np.minimum(label, lowest)
        if (new == label).all():
            return label
        label = new


def _grow(
    members: NDArray[np.int64],
    masks: NDArray[np.bool_],
    margin: NDArray[np.float32],
    candidates: Sequence[Candidate],
) -> list[int]:
    ranked = sorted(members.tolist(), key=lambda m: -candidates[m].score)
    covered = np.zeros(margin.shape, np.bool_)
    kept = []
    for member in ranked:
        gained = masks[member] & ~covered
        if 2 * int((margin[gained] > 0).sum()) > int(gained.sum()):
            covered |= masks[member]
            kept.append(member)
    return kept


def _group(members: Sequence[Candidate]) -> Group:
    weights = np.array([max(c.score, 1e-6) for c in members], np.float32)
    probability = sum(w * _sigmoid(c.logits) for w, c in zip(weights / weights.sum(), members, strict=True))
    return Group(_log_odds(np.asarray(probability, np.float32)), members[0].predicted_iou, tuple(members))


def _union(members: Sequence[Candidate]) -> Group:
    return Group(np.max([c.logits for c in members], axis=0), members[0].predicted_iou, tuple(members))


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_SURE, _SURE))), np.float32)


def _log_odds(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.log(probability / np.maximum(1 - probability, 1e-7)), np.float32)
