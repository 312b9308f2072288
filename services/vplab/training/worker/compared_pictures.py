"""What a tuned decoder's graph is compared on: images of the job, and as many more as a report should have.

A decoder sees embeddings and prompts, so no picture has to be drawn or encoded for a further one: an image encoder's
answer, turned, mirrored and shifted, has the same numbers in other places, and an ellipse is an object to prompt for.
That costs a millisecond where encoding sixteen pictures would cost a small job, on a large encoder, minutes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.training.models.imported import PARITY_IMAGE_SIZES_HW
from vplab.training.tuning.values import TuningExample
from vplab.vision.preprocessing import FrameTransform

NUM_PICTURES = len(PARITY_IMAGE_SIZES_HW)
"""As of any import."""
MAX_SEEN = 12
"""Pictures of the job's own; a line's images have one size, and the others are to vary it."""


@dataclass(frozen=True, eq=False)
class ComparedPicture:
    """An embedding and one object on it."""

    embedding: NDArray[np.float32]
    """(C, h, w)."""
    early_features: NDArray[np.float32] | None
    """(E, h, w) where the examples have them."""
    transform: FrameTransform
    mask: NDArray[np.bool_]
    """(S, S) in the segmenter's frame, not empty."""


def compared_pictures(examples: Sequence[TuningExample], seed: int = 0) -> list[ComparedPicture]:
    """Return NUM_PICTURES: images of the job, then their views, then turned ones; at least one example has a mask."""
    shown = [_seen(number, example) for number, example in enumerate(_with_masks(examples))]
    chosen = shown[:MAX_SEEN]
    return chosen + list(_turned(chosen, NUM_PICTURES - len(chosen), np.random.default_rng(seed)))


def _with_masks(examples: Sequence[TuningExample]) -> list[TuningExample]:
    showing = [e for e in examples if any(mask.any() for mask in e.masks.values())]
    return sorted(showing, key=lambda example: not example.is_original)


def _seen(number: int, example: TuningExample) -> ComparedPicture:
    # One object of each picture, the classes by turns: pictures vary more than the objects of one do.
    masks = [mask for mask in example.masks.values() if mask.any()]
    early = None if example.early_features is None else np.asarray(example.early_features, np.float32)
    embedding = np.asarray(example.embedding, np.float32)
    return ComparedPicture(embedding, early, example.transform, masks[number % len(masks)])


def _turned(seen: Sequence[ComparedPicture], count: int, random: np.random.Generator) -> Iterator[ComparedPicture]:
    for number in range(count):
        origin = seen[number % len(seen)]
        quarters, is_mirrored = int(random.integers(4)), bool(random.integers(2))
        shift = random.integers(0, origin.embedding.shape[1:])
        embedding = _moved(origin.embedding, quarters, is_mirrored, shift)
        early = origin.early_features
        early = None if early is None else _moved(early, quarters, is_mirrored, shift)
        transform = _in_frame(PARITY_IMAGE_SIZES_HW[number], origin.transform.padded_hw)
        yield ComparedPicture(embedding, early, transform, _ellipse(transform, random))


def _moved(
    features: NDArray[np.float32], quarters: int, is_mirrored: bool, shift: NDArray[np.int64]
) -> NDArray[np.float32]:
    turned = np.rot90(features, quarters, axes=(1, 2))
    turned = turned[:, :, ::-1] if is_mirrored else turned
    return np.ascontiguousarray(np.roll(turned, shift, axis=(1, 2)))


def _in_frame(size_hw: tuple[int, int], padded_hw: tuple[int, int]) -> FrameTransform:
    scale = padded_hw[0] / max(size_hw)
    height, width = (max(1, round(side * scale)) for side in size_hw)
    return FrameTransform(size_hw, (height, width), padded_hw)


def _ellipse(transform: FrameTransform, random: np.random.Generator) -> NDArray[np.bool_]:
    height, width = transform.input_hw
    centre = (int(random.uniform(0.3, 0.7) * width), int(random.uniform(0.3, 0.7) * height))
    axes = (max(1, int(random.uniform(0.02, 0.3) * width)), max(1, int(random.uniform(0.02, 0.3) * height)))
    drawn = np.zeros(transform.padded_hw, np.uint8)
    cv2.ellipse(drawn, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    mask: NDArray[np.bool_] = drawn > 0
    return mask
