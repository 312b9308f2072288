"""How well one mask agrees with another.

The boundary measure is that of Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation" (CVPR 2016), after Martin et al. (BSDS): F of precision and recall of the outlines within a tolerance.
Deviation: distances are exact instead of by a dilated disc, so a pixel needs no partner of its own.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]


def iou(predicted: BoolArray, target: BoolArray) -> float:
    """Return intersection over union of two (H, W) masks; 1 where both are empty."""
    union = int((predicted | target).sum())
    return int((predicted & target).sum()) / union if union else 1.0


def boundary_f(predicted: BoolArray, target: BoolArray, tolerance_px: float) -> float:
    """Return the F-score of the outlines of two (H, W) masks, 0 to 1; 1 where neither has an outline.

    An outline is the mask's own outermost pixels; the image's border is none. A pixel agrees if the other outline is
    within ``tolerance_px``.
    """
    outlines = outline(predicted), outline(target)
    if not (outlines[0].any() and outlines[1].any()):
        return float(not outlines[0].any() and not outlines[1].any())
    precision = float((_distance_to(outlines[1])[outlines[0]] <= tolerance_px).mean())
    recall = float((_distance_to(outlines[0])[outlines[1]] <= tolerance_px).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def outline(mask: BoolArray) -> BoolArray:
    """Return the pixels of a (H, W) mask that have one of their four neighbours outside of it."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.asarray(mask & (inner == 0))


def largest_piece(mask: BoolArray) -> BoolArray:
    """Return the largest 8-connected component of a non-empty (H, W) mask."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return np.asarray(components == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()))


def _distance_to(points: BoolArray) -> NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform((~points).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
