"""What a person would point at who knows the object: boxes, the next correcting click, clicks spread over a class."""

import cv2
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


def tight_box(mask: BoolArray) -> NDArray[np.float32]:
    """Return (x_min, y_min, x_max, y_max) of a non-empty mask, far edges outside."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def next_click(predicted: BoolArray, target: BoolArray) -> tuple[NDArray[np.float32], int]:
    """Return the point (x, y) deepest inside what is wrong, and its label: the protocol of interactive segmentation.

    The two (H, W) masks must differ. The label is 1 where the object was missed, 0 where too much was taken.
    """
    best: tuple[float, NDArray[np.float32], int] = (-1.0, np.zeros(2, np.float32), 1)
    for wrong, label in ((target & ~predicted, 1), (predicted & ~target, 0)):
        depth = depth_inside(wrong)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if depth[row, column] > best[0]:
            best = (float(depth[row, column]), np.array([column, row], np.float32), label)
    return best[1], best[2]


def spread_clicks(mask: BoolArray, num_clicks: int) -> NDArray[np.float32]:
    """Return up to ``num_clicks`` points (N, 2) well inside a class: the deepest, then the deepest far from those.

    Around each point a disc is left out whose radius is a quarter of the square root of the area, so that pieces of one
    class get a click each and a large one several.
    """
    left = mask.copy()
    radius = max(3, round(float(np.sqrt(mask.sum())) / 4))
    clicks: list[tuple[float, float]] = []
    while left.any() and len(clicks) < num_clicks:
        depth = depth_inside(left)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        clicks.append((float(column), float(row)))
        around = np.ones(mask.shape, np.uint8)
        cv2.circle(around, (int(column), int(row)), radius, 0, -1)
        left &= around.astype(bool)
    return np.array(clicks, np.float32).reshape(-1, 2)


def depth_inside(mask: BoolArray) -> NDArray[np.float32]:
    """Return how far each pixel of a (H, W) mask is from what is outside, the image's border included; 0 outside."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1], np.float32)
