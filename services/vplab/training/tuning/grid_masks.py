"""Masks on the decoder's logit grid."""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.specs import SegmenterSpec


def on_grid(mask: NDArray[np.bool_], segmenter: SegmenterSpec) -> NDArray[np.bool_]:
    """Bring a mask (S, S) to the logit grid, keeping its area."""
    height, width = segmenter.low_res_hw
    share = mask.reshape(height, mask.shape[0] // height, width, mask.shape[1] // width).mean((1, 3))
    wanted = round(float(share.sum()))
    if not wanted:
        return np.asarray(share >= share.max()) if mask.any() else np.zeros((height, width), np.bool_)
    return np.asarray(share >= max(np.partition(share.reshape(-1), share.size - wanted)[share.size - wanted], 1e-3))


def mask_iou(predicted: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> float:
    """Return the IoU of two masks (h, w) bool; 1 where both are empty."""
    union = int((predicted | wanted).sum())
    return int((predicted & wanted).sum()) / union if union else 1.0
