"""Point prompts to candidate masks of one tile.

Source: geti-instant-learn ``components/sam/decoder.py`` for one prompt per point with all background points, and for
the second pass.

Deviation: of the three masks of a click the one is taken that best explains the similarity map, not the first; position
means nothing in a segmenter whose planes were trained as alternatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vplab.vision.masks import mask_box
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import BOX_MAX, BOX_MIN, ObjectPrompt, PromptTokens, prompt_tokens
from vplab.vision.specs import SegmenterSpec

CHUNK = 32
"""Prompts decoded in one call: 32 x 4 planes of 256 x 256 float32 are 32 MiB."""


class PromptDecoder(Protocol):
    """A mask decoder with the embeddings of one image's tiles at hand."""

    @property
    def spec(self) -> SegmenterSpec:
        """What the decoder takes and returns."""
        ...

    def transform(self, tile: int) -> FrameTransform:
        """Return how a tile lies in the decoder's input."""
        ...

    def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (N, planes, h, w) and predicted IoU (N, planes) for prompts of equally many tokens."""
        ...

    def sharpen(self, tile: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the final logits of a mask, (h, w) as decoded, on that grid or a finer one."""
        ...


@dataclass(frozen=True, eq=False)
class Candidate:
    """A proposed mask of one tile."""

    logits: NDArray[np.float32]
    """(h, w) float32 on the decoder's low-resolution grid; foreground above 0."""
    predicted_iou: float
    similarity: float
    """Mean similarity inside the mask, 0..1."""
    tokens: PromptTokens
    """What it was decoded from."""
    point_xy: tuple[float, float]
    """The matched point, in pixels of the tile."""

    @property
    def score(self) -> float:
        """Mean similarity times predicted IoU, 0..1."""
        return self.similarity * min(max(self.predicted_iou, 0.0), 1.0)


def decode_points(
    decoder: PromptDecoder,
    tile: int,
    points_xy: NDArray[np.float32],
    background_xy: NDArray[np.float32],
    similarity: NDArray[np.float32],
) -> list[Candidate]:
    """Decode one mask for each foreground point, with all the background points.

    points_xy: (N, 2), background_xy: (Q, 2) in pixels of the tile. similarity: (h, w) float32 in 0..1 on the decoder's
    low-resolution grid. Empty masks are dropped.
    """
    labels = np.array([1] + [0] * len(background_xy), np.int64)
    transform = decoder.transform(tile)
    tokens = [
        prompt_tokens(
            ObjectPrompt(points_xy=np.concatenate([point[None], background_xy]), point_labels=labels),
            transform,
            decoder.spec,
        )
        for point in points_xy
    ]
    origins = [(float(x), float(y)) for x, y in points_xy]
    planes = slice(1, None) if decoder.spec.num_planes > 1 else slice(0, 1)
    return [c for c in _decode(decoder, tile, tokens, origins, similarity, planes) if c is not None]


def refine(
    decoder: PromptDecoder, tile: int, candidates: Sequence[Candidate], similarity: NDArray[np.float32]
) -> list[Candidate]:
    """Decode every candidate again from its points, its mask's box and its own logits; keep the better of the two.

    The box leaves nothing ambiguous, so the answer is plane 0, the single mask.
    """
    height, width = decoder.spec.low_res_hw
    step = np.array([decoder.spec.input_size / width, decoder.spec.input_size / height] * 2, np.float32)
    tokens = []
    for candidate in candidates:
        old, box = candidate.tokens, mask_box(candidate.logits > 0)
        assert box is not None, "a candidate has foreground"
        corners = (np.array(box, np.float32) * step).reshape(2, 2)
        is_point = old.labels >= 0
        tokens.append(
            PromptTokens(
                np.concatenate([old.coords[is_point], corners]),
                np.concatenate([old.labels[is_point], np.array([BOX_MIN, BOX_MAX], np.float32)]),
                candidate.logits,
            )
        )
    again = _decode(decoder, tile, tokens, [c.point_xy for c in candidates], similarity, planes=slice(0, 1))
    return [
        new if new is not None and new.score >= old.score else old for old, new in zip(candidates, again, strict=True)
    ]


def _decode(
    decoder: PromptDecoder,
    tile: int,
    tokens: Sequence[PromptTokens],
    points_xy: Sequence[tuple[float, float]],
    similarity: NDArray[np.float32],
    planes: slice,
) -> list[Candidate | None]:
    found: list[Candidate | None] = []
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        logits, ious = decoder.decode(tile, chunk)
        logits = logits[:, planes] - np.float32(decoder.spec.mask_threshold)
        for index, (masks, mask_ious) in enumerate(zip(logits, ious[:, planes], strict=True), start):
            found.append(_best_plane(masks, mask_ious, similarity, tokens[index], points_xy[index]))
    return found


def _best_plane(
    planes: NDArray[np.float32],
    ious: NDArray[np.float32],
    similarity: NDArray[np.float32],
    tokens: PromptTokens,
    point_xy: tuple[float, float],
) -> Candidate | None:
    """Choose a plane by predicted IoU times how well its mask explains the similarity map; None where all are empty.

    The second factor is the similarity inside over area plus half of all similarity: mean similarity alone favours the
    part over the whole, and predicted IoU alone the crisp over the matching.
    """
    best, best_value = None, 0.0
    total = float(similarity.sum())
    for plane in range(len(planes)):
        mask = planes[plane] > 0
        area = int(mask.sum())
        if not area:
            continue
        inside = float(similarity[mask].sum())
        value = max(float(ious[plane]), 1e-6) * (inside + 1e-6) / (area + 0.5 * total)
        if value > best_value:
            best_value = value
            best = Candidate(planes[plane].copy(), float(ious[plane]), inside / area, tokens, point_xy)
    return best
