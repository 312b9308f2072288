"""The similarity map moved from the feature encoder's grid to the mask decoder's."""

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.patches import PatchFeatures
from vplab.vision.preprocessing import FrameTransform


def on_decoder_grid(
    similarity: NDArray[np.float32], patches: PatchFeatures, transform: FrameTransform, low_res_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Resample bilinearly from the patch grid (h, w) to the low-resolution logit grid; padding there is 0.

    The two encoders may scale, stretch and pad differently: cells correspond by where they lie in the tile.
    """
    rows, columns = (
        _positions(patches, transform, low_res_hw[axis], axis, int(patches.valid.any(axis=1 - axis).sum()))
        for axis in (0, 1)
    )
    out = _lerp(_lerp(similarity, rows[0]).T, columns[0]).T
    out *= np.outer(rows[1], columns[1])
    return np.ascontiguousarray(out)


def _positions(
    patches: PatchFeatures, transform: FrameTransform, num_cells: int, axis: int, num_valid: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return where each cell of the decoder's grid lies on the patch grid, and which cells lie on the image."""
    in_input = (np.arange(num_cells) + 0.5) * transform.padded_hw[axis] / num_cells
    in_tile = in_input * transform.original_hw[axis] / transform.input_hw[axis]
    scale = patches.transform.input_hw[axis] / patches.transform.original_hw[axis]
    position = np.clip(in_tile * scale / patches.stride - 0.5, 0, num_valid - 1)
    return position.astype(np.float32), in_input < transform.input_hw[axis]


def _lerp(values: NDArray[np.float32], positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate along the first axis."""
    near = np.minimum(positions.astype(np.int64), len(values) - 1)
    far = np.minimum(near + 1, len(values) - 1)
    weight = (positions - near)[:, None].astype(np.float32)
    return np.asarray(values[near] * (1 - weight) + values[far] * weight, np.float32)
