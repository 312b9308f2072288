"""A person's marks as pixels, on an image that was scaled down for the sake of time."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.evaluation.values import BoolArray, RgbArray


@dataclass(frozen=True, eq=False)
class ScaledImage:
    """An image no larger than a given side, and the way back."""

    image_rgb: RgbArray
    """(h, w, 3) uint8."""
    original_hw: tuple[int, int]

    @classmethod
    def fit(cls, image_rgb: RgbArray, max_side: int) -> "ScaledImage":
        """Scale (H, W, 3) uint8 down until its longer side is at most ``max_side`` pixels; never up."""
        height, width = image_rgb.shape[:2]
        scale = max_side / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image_rgb = cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
        return cls(image_rgb, (height, width))

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return (h, w)."""
        return self.image_rgb.shape[0], self.image_rgb.shape[1]

    def points(self, points_xy: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the pixels (N, 2), x then y, in which points of the original lie; integers are centres of pixels."""
        (height, width), (original_h, original_w) = self.size_hw, self.original_hw
        scaled = (points_xy.reshape(-1, 2) + 0.5) * [width / original_w, height / original_h]
        pixels: NDArray[np.int64] = np.clip(np.floor(scaled), 0, [width - 1, height - 1]).astype(np.int64)
        return pixels

    def box(self, box_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a box of the original in this image's pixels."""
        (height, width), (original_h, original_w) = self.size_hw, self.original_hw
        scale = np.array([width / original_w, height / original_h], np.float32)
        return box_xyxy * np.tile(scale, 2)

    def restore(self, share: NDArray[np.float32]) -> BoolArray:
        """Return where a map (h, w) of 0..1 exceeds one half, as (H, W) bool."""
        height, width = self.original_hw
        full: BoolArray = cv2.resize(share.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
        return full


def discs(size_hw: tuple[int, int], pixels_xy: NDArray[np.int64], radius: int) -> BoolArray:
    """Return the union of filled circles as (h, w) bool."""
    drawn = np.zeros(size_hw, np.uint8)
    for x, y in pixels_xy:
        cv2.circle(drawn, (int(x), int(y)), radius, 1, -1)
    return drawn.astype(np.bool_)


def box_mask(size_hw: tuple[int, int], box_xyxy: NDArray[np.float32]) -> BoolArray:
    """Return every pixel that a box touches, at least one, as (H, W) bool."""
    height, width = size_hw
    x_min, y_min = (int(v) for v in np.clip(np.floor(box_xyxy[:2]), 0, [width - 1, height - 1]))
    x_max, y_max = (int(v) for v in np.clip(np.ceil(box_xyxy[2:]), [x_min + 1, y_min + 1], [width, height]))
    mask = np.zeros(size_hw, np.bool_)
    mask[y_min:y_max, x_min:x_max] = True
    return mask


def border_mask(size_hw: tuple[int, int]) -> BoolArray:
    """Return the outermost pixels as (h, w) bool."""
    mask = np.zeros(size_hw, np.bool_)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def components_at(mask: BoolArray, pixels_xy: NDArray[np.int64]) -> BoolArray:
    """Keep the connected regions of a mask (h, w) that hold a pixel of the list; the whole mask where none does."""
    _, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    wanted = np.unique(regions[pixels_xy[:, 1], pixels_xy[:, 0]])
    wanted = wanted[wanted > 0]
    return np.isin(regions, wanted) if len(wanted) else mask
