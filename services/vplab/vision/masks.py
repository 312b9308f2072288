"""Binary masks: lossless run lengths, and low-resolution logits brought to the image's own size.

Sources: ``Sam.postprocess_masks`` of segment-anything (modeling/sam.py) for the resize. Files and outlines that others
read are in ``vplab.vision.mask_formats``.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vplab.errors import InvalidInput
from vplab.vision.mask_formats import (
    coco_polygons_to_mask,
    coco_rle_to_mask,
    mask_to_coco_rle,
    mask_to_png,
    mask_to_polygons,
    png_to_mask,
)
from vplab.vision.preprocessing import FrameTransform

__all__ = [
    "MAX_MASK_PIXELS",
    "coco_polygons_to_mask",
    "coco_rle_to_mask",
    "decode_runs",
    "encode_runs",
    "mask_box",
    "mask_to_coco_rle",
    "mask_to_low_res_logits",
    "mask_to_png",
    "mask_to_polygons",
    "png_to_mask",
    "union",
    "upsample_logits",
]

MAX_MASK_PIXELS = 1 << 28
"""Largest mask that is decoded unless the caller says otherwise: 16384 x 16384, 256 MiB as bool."""

_CERTAINTY = 1e-3
"""Share of doubt left in a binary mask turned into logits, which then are +-6.9."""


def encode_runs(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Return the lengths of alternating runs of 0 and 1 in row-major order; the first counts zeros and may be 0.

    mask: (H, W) bool or 0/1 integers, at least one pixel. Raises InvalidInput otherwise.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0:
        raise InvalidInput(f"a mask is (height, width) with at least one pixel, not {mask.shape}", field="mask")
    flat = np.ascontiguousarray(mask, dtype=np.bool_).reshape(-1)
    bounds = np.flatnonzero(flat[1:] != flat[:-1])
    starts_with_one = bool(flat[0])
    edges = np.empty(bounds.size + 2 + starts_with_one, np.int64)
    edges[: 1 + starts_with_one] = 0
    edges[1 + starts_with_one : -1] = bounds + 1
    edges[-1] = flat.size
    return np.diff(edges).astype(np.uint32)


def decode_runs(runs: ArrayLike, size_hw: tuple[int, int], *, max_pixels: int = MAX_MASK_PIXELS) -> NDArray[np.bool_]:
    """Return the (H, W) bool mask of ``runs``.

    Raises InvalidInput, before anything of the mask's size is allocated, for a size below 1 or above ``max_pixels``,
    runs that are not whole and non-negative, a zero run after the first, or a sum other than H * W.
    """
    height, width = size_hw
    if height < 1 or width < 1:
        raise InvalidInput(f"a mask has at least one pixel, not {width} x {height}", field="mask")
    if height * width > max_pixels:
        raise InvalidInput(f"the mask of {width} x {height} exceeds {max_pixels} pixels", field="mask")
    lengths = np.asarray(runs)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu"):
        raise InvalidInput("runs are a list of whole numbers", field="mask.runs")
    if lengths.size > height * width + 1:
        raise InvalidInput(f"{lengths.size} runs are more than the mask has pixels", field="mask.runs")
    if lengths.size and (int(lengths.min()) < 0 or int(lengths.max()) > height * width):
        raise InvalidInput("a run is negative or longer than the mask", field="mask.runs")
    lengths = lengths.astype(np.int64)
    if lengths.size > 1 and not lengths[1:].all():
        index = 1 + int(np.argmin(lengths[1:] != 0))
        raise InvalidInput(f"run {index} is 0; only the first may be", field=f"mask.runs[{index}]")
    total = int(lengths.sum())
    if total != height * width:
        raise InvalidInput(f"the runs cover {total} pixels, the mask has {height * width}", field="mask.runs")
    values = np.arange(lengths.size) & 1 == 1
    return np.repeat(values, lengths).reshape(height, width)


def upsample_logits(low_res: NDArray[np.float32], transform: FrameTransform) -> NDArray[np.float32]:
    """Bring mask logits from the decoder's grid to the original image, as ``Sam.postprocess_masks`` does.

    low_res: (M, h, w) float32 over the whole padded input. Returns (M, H, W) float32 in the original's pixels:
    bilinear to the padded input, cropped to its valid area, bilinear to the original, without antialiasing.
    """
    (pad_h, pad_w), (valid_h, valid_w), (height, width) = transform.padded_hw, transform.input_hw, transform.original_hw
    planes = []
    for logits in low_res:
        padded = _resize(np.ascontiguousarray(logits, np.float32), pad_h, pad_w)
        planes.append(_resize(padded[:valid_h, :valid_w], height, width))
    # Most calls are of one plane, which then is not copied.
    return planes[0][None] if len(planes) == 1 else np.array(planes, np.float32).reshape(-1, height, width)


def mask_to_low_res_logits(
    mask: NDArray[np.bool_], transform: FrameTransform, low_res_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Turn a binary mask of the original image into decoder logits, so that it can be given as a mask input.

    mask: (H, W) bool. Returns (h, w) float32: the logit of the share of each cell that the mask covers, at most +-6.9;
    padding counts as background. Raises InvalidInput when the mask's size is not the image's.
    """
    if mask.shape != transform.original_hw:
        height, width = transform.original_hw
        raise InvalidInput(f"the mask is {mask.shape[1]} x {mask.shape[0]}, the image {width} x {height}", field="mask")
    valid_h, valid_w = transform.input_hw
    share = np.zeros(transform.padded_hw, np.float32)
    share[:valid_h, :valid_w] = _shrink(mask.astype(np.float32), valid_h, valid_w)
    share = np.clip(_shrink(share, *low_res_hw), _CERTAINTY, 1 - _CERTAINTY)
    return np.asarray(np.log(share / (1 - share)), np.float32)


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return (x_min, y_min, x_max, y_max) in pixels with the far edges outside, or None for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _resize(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear, align_corners=False, borders repeated, no antialiasing: torch's F.interpolate to its last digits."""
    if all(math.log2(new / old).is_integer() for new, old in zip((height, width), plane.shape, strict=True)):
        return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    # torch rounds a sample's position to float32 and OpenCV does not: up to 1e-3 on steep logits, unless the ratio is a
    # power of two and both are exact. So the positions are torch's here; OpenCV is about five times as fast.
    near, far, weight = _taps(plane.shape[0], height)
    rows, step = plane[near], plane[far]
    step -= rows
    step *= weight[:, None]
    rows += step  # (height, w)
    near, far, weight = _taps(plane.shape[1], width)
    out, step = rows.take(near, axis=1), rows.take(far, axis=1)
    step -= out
    step *= weight
    out += step  # (height, width)
    return out


def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the two source indices of every new sample and the weight of the second."""
    half = np.float32(0.5)
    position = np.maximum((np.arange(new, dtype=np.float32) + half) * (np.float32(old) / np.float32(new)) - half, 0)
    near = np.minimum(position.astype(np.int64), old - 1)
    return near, np.minimum(near + 1, old - 1), position - near.astype(np.float32)


def _shrink(plane: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    interpolation = cv2.INTER_AREA if height <= plane.shape[0] and width <= plane.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=interpolation), np.float32)


def union(masks: Sequence[NDArray[np.bool_]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return where any of the masks is set; all background where there are none."""
    out = np.zeros(size_hw, np.bool_)
    for mask in masks:
        out |= mask
    return out
