"""Prompts for training: boxes, clicks, noisy masks, and the matcher's proposals, in the tokens that serving makes.

Everything is drawn from one generator, so a step's prompts are a function of the seed and the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.training.tuning.values import ClassProposals, TuningExample
from vplab.vision.masks import mask_box
from vplab.vision.prompts import BOX_MAX, BOX_MIN, PADDING, PromptTokens, rasterize_prompt
from vplab.vision.specs import SegmenterSpec

Kind = Literal["box", "point", "proposal"]

PROPOSAL_SHARE = 0.5
"""Of a step's prompts, where there are proposals; boxes and clicks share the rest equally."""
FALSE_SHARE = 0.2
"""Of the proposals, those that fall on no object, however many the matcher makes, so that a poor matcher does not fill
the training with them. A choice, not measured apart."""
NOISY_MASK_SHARE = 0.15
"""Of the boxes, those that come with a rough mask."""
WHOLE_SHARE = 0.5
"""Of the boxes, those around all pieces of the class together; the others hold one piece."""
BOX_NOISE = 0.1
"""Standard deviation of a corner, as a share of the side, and at most 20 / 1024 of the frame (SAM's)."""
EXACT_BOX_SHARE = 0.5
REACH_PX = 8
"""A proposal this near an object, in pixels of the input, means it: points are centres of patches, 8 or 16 wide."""
_MIN_PIECE_PX = 12


@dataclass(frozen=True, eq=False)
class DrawnPrompt:
    """One prompt and the mask it should give."""

    kind: Kind
    example: int
    """Position among the examples that were drawn from."""
    class_id: int
    tokens: PromptTokens
    target: NDArray[np.bool_]
    """(S, S) bool in the frame of the input; empty for a proposal on no object."""

    @property
    def is_false(self) -> bool:
        """Whether there is nothing to find."""
        return not self.target.any()


_Proposals = dict[int, dict[int, list[tuple[int, int]]]]
"""By class and position of the example: positions among its proposals, each with the piece it means, 0 for none."""


class PromptDrawer:
    """Draws prompts from a set of examples."""

    def __init__(self, examples: Sequence[TuningExample], segmenter: SegmenterSpec) -> None:
        self._examples = examples
        self._segmenter = segmenter
        class_ids = sorted({c for e in examples for c in e.masks})
        self._shown = {c: [i for i, e in enumerate(examples) if e.masks[c].any()] for c in class_ids}
        self._true, self._false = self._sorted_proposals(class_ids)
        self._classes = [c for c in class_ids if self._shown[c]]

    def draw(self, count: int, rng: np.random.Generator) -> list[DrawnPrompt]:
        """Draw ``count`` prompts; every class has an equal share."""
        prompts = []
        for _ in range(count):
            class_id = int(rng.choice(self._classes))
            proposal = self._proposal(class_id, rng) if rng.random() < PROPOSAL_SHARE else None
            if proposal is not None:
                prompts.append(proposal)
            else:
                example = int(rng.choice(self._shown[class_id]))
                draw = self._box if rng.random() < 0.5 else self._point
                prompts.append(draw(example, class_id, rng))
        return prompts

    def _sorted_proposals(self, class_ids: Sequence[int]) -> tuple[_Proposals, _Proposals]:
        """Return, by class and example, the proposals on an object with the piece they mean, and the others."""
        true: _Proposals = {c: {} for c in class_ids}
        false: _Proposals = {c: {} for c in class_ids}
        for index, example in enumerate(self._examples):
            for class_id, proposals in example.proposals.items():
                pieces = [nearest_piece(example.segments[class_id], point) for point in proposals.points_xy]
                for kind, is_kind in ((true, True), (false, False)):
                    if found := [(i, piece) for i, piece in enumerate(pieces) if bool(piece) == is_kind]:
                        kind[class_id][index] = found
        return true, false

    def _proposal(self, class_id: int, rng: np.random.Generator) -> DrawnPrompt | None:
        """Draw a proposal of the matcher, first the image and then the point; None where the class has none."""
        wanted = self._false if rng.random() < FALSE_SHARE else self._true
        by_example = wanted[class_id]
        if not by_example:
            return None
        index = int(rng.choice(list(by_example)))
        example = self._examples[index]
        chosen, piece = by_example[index][int(rng.integers(len(by_example[index])))]
        tokens = proposal_tokens(example.proposals[class_id], chosen, self._segmenter)
        return DrawnPrompt("proposal", index, class_id, tokens, _pieces(example.segments[class_id], piece))

    def _point(self, example: int, class_id: int, rng: np.random.Generator) -> DrawnPrompt:
        """Draw one click on a piece, or in a third of the cases three clicks, of which up to two say what it is not."""
        target = self._piece(example, class_id, rng)
        num_positive, num_negative = [(1, 0), (1, 0), (1, 2), (2, 1)][int(rng.integers(4))]
        inside = self._frame_mask(example)
        points = [_pixel(target, rng, central=bool(rng.random() < 0.5)) for _ in range(num_positive)]
        outside = inside & ~target
        points += [_pixel(outside if outside.any() else target, rng, central=False) for _ in range(num_negative)]
        labels = [1.0] * num_positive + [0.0 if outside.any() else 1.0] * num_negative
        coords = np.array([*points, (0, 0)], np.float32)
        tokens = self._tokens(coords, np.array([*labels, PADDING], np.float32), None)
        return DrawnPrompt("point", example, class_id, tokens, target)

    def _box(self, example: int, class_id: int, rng: np.random.Generator) -> DrawnPrompt:
        whole = self._examples[example].masks[class_id]
        target = whole if rng.random() < WHOLE_SHARE else self._piece(example, class_id, rng)
        corners = _noisy_box(target, rng)
        rough = _rough_logits(target, self._segmenter.low_res_hw, rng) if rng.random() < NOISY_MASK_SHARE else None
        tokens = self._tokens(corners, np.array([BOX_MIN, BOX_MAX], np.float32), rough)
        return DrawnPrompt("box", example, class_id, tokens, target)

    def _piece(self, example: int, class_id: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Choose a piece of the class; large ones more often, though not as often as they are large."""
        segments = self._examples[example].segments[class_id]
        areas = np.bincount(segments.reshape(-1)).astype(np.float64)
        areas[0] = 0
        usable = areas * (areas >= min(_MIN_PIECE_PX, areas.max()))
        weight = usable**0.4
        return _pieces(segments, int(rng.choice(len(weight), p=weight / weight.sum())))

    def _frame_mask(self, example: int) -> NDArray[np.bool_]:
        transform = self._examples[example].transform
        inside = np.zeros(transform.padded_hw, np.bool_)
        inside[: transform.input_hw[0], : transform.input_hw[1]] = True
        return inside

    def _tokens(
        self, coords: NDArray[np.float32], labels: NDArray[np.float32], mask_logits: NDArray[np.float32] | None
    ) -> PromptTokens:
        return input_tokens(coords, labels, mask_logits, self._segmenter)


def input_tokens(
    coords: NDArray[np.float32],
    labels: NDArray[np.float32],
    mask_logits: NDArray[np.float32] | None,
    segmenter: SegmenterSpec,
) -> PromptTokens:
    """Return the tokens of a prompt in the input's frame; ``vplab.vision.prompts.prompt_tokens`` for that frame."""
    if segmenter.prompt_raster is not None:
        kinds = labels if mask_logits is None else np.where(labels >= BOX_MIN, np.float32(PADDING), labels)
        drawn = rasterize_prompt(coords, kinds, segmenter.low_res_hw, segmenter.input_size, segmenter.prompt_raster)
        mask_logits = drawn if mask_logits is None else mask_logits + drawn
    return PromptTokens(coords, labels, mask_logits)


def proposal_tokens(proposals: ClassProposals, index: int, segmenter: SegmenterSpec) -> PromptTokens:
    """Return the tokens that serving makes of one matched point: it, all background points, and padding."""
    background = proposals.background_xy
    coords = np.concatenate([proposals.points_xy[index : index + 1], background, np.zeros((1, 2), np.float32)])
    labels = np.array([1] + [0] * len(background) + [PADDING], np.float32)
    return input_tokens(coords.astype(np.float32), labels, None, segmenter)


def nearest_piece(segments: NDArray[np.uint16], point_xy: NDArray[np.float32]) -> int:
    """Return the piece a point means, within REACH_PX; 0 for none."""
    x, y = round(float(point_xy[0])), round(float(point_xy[1]))
    top, left = max(y - REACH_PX, 0), max(x - REACH_PX, 0)
    window = segments[top : y + REACH_PX + 1, left : x + REACH_PX + 1]
    rows, columns = np.nonzero(window)
    if not len(rows):
        return 0
    distance = (rows + top - y) ** 2 + (columns + left - x) ** 2
    nearest = int(distance.argmin())
    return int(window[rows[nearest], columns[nearest]]) if distance[nearest] <= REACH_PX**2 else 0


def _pieces(segments: NDArray[np.uint16], piece: int) -> NDArray[np.bool_]:
    return np.asarray(segments == piece) if piece else np.zeros(segments.shape, np.bool_)


def central_pixel(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel (x, y) of a mask that is farthest from its border."""
    row, column = divmod(int(_depth(mask).argmax()), mask.shape[1])
    return column, row


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    padded = np.pad(mask, 1).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def _pixel(mask: NDArray[np.bool_], rng: np.random.Generator, *, central: bool) -> tuple[int, int]:
    """Draw a pixel (x, y) of a mask that is not empty, on request one far from its border."""
    if central:
        depth = _depth(mask)
        mask = np.asarray(depth >= 0.6 * depth.max())
    pixels = np.flatnonzero(mask)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return column, row


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the corners (2, 2), as x and y, of a mask that is not empty; the far one lies outside."""
    box = mask_box(mask)
    assert box is not None
    return np.array(box, np.float32).reshape(2, 2)


def _noisy_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    corners = tight_box(mask)
    if rng.random() < EXACT_BOX_SHARE:
        return corners
    limit = 20 / 1024 * mask.shape[0]
    noise = np.clip(rng.normal(0, BOX_NOISE, (2, 2)) * (corners[1] - corners[0]), -limit, limit)
    noisy = np.clip(corners + noise, 0, mask.shape[0])
    return np.asarray(np.stack([noisy.min(axis=0), noisy.max(axis=0)]), np.float32)


def _rough_logits(
    mask: NDArray[np.bool_], low_res_hw: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return coarse logits of a mask (h, w): blurred, with its border pushed about by smooth noise."""
    size = (low_res_hw[1], low_res_hw[0])
    blurred = cv2.blur(cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA), (7, 7))
    noise = cv2.blur(rng.standard_normal(low_res_hw).astype(np.float32), (9, 9)) * 9  # averaging 81 divides by 9
    return np.asarray((blurred - 0.5 + 0.25 * noise) * 16, np.float32)
