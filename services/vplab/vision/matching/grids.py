"""What lies on the grid of patches or of colours, moved to another grid over the same tile."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vplab.vision.matching.patches import PatchFeatures
from vplab.vision.preprocessing import FrameTransform


@dataclass(frozen=True)
class _Axis:
    """One axis of a source grid."""

    cell: float
    """Input pixels of the source's encoder for each cell."""
    num_valid: int
    """Cells that lie on the tile; the first ones."""


def on_decoder_grid(
    similarity: NDArray[np.float32], patches: PatchFeatures, transform: FrameTransform, low_res_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Resample bilinearly from the patch grid (h, w) to another, such as that of the logits; padding there is 0.

    The two encoders may scale, stretch and pad differently: cells correspond by where they lie in the tile.
    """
    axes = [_Axis(patches.stride, int(patches.valid.any(axis=1 - axis).sum())) for axis in (0, 1)]
    return _resample(similarity, patches.transform, axes, transform, low_res_hw)


def pixels_on_grid(
    pixels: NDArray[np.float32], patches: PatchFeatures, transform: FrameTransform, size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Resample bilinearly from the pixels of a tile's colours (h, w), without their padding; padding there is 0.

    patches: the tile's, with colours.
    """
    assert patches.colours is not None, "pixels are of the colours"
    frame_hw, padded_hw = patches.colours.shape[1:], patches.transform.padded_hw
    axes = [_Axis(padded_hw[axis] / frame_hw[axis], pixels.shape[axis]) for axis in (0, 1)]
    return _resample(pixels, patches.transform, axes, transform, size_hw)


def patches_at_pixels(values: NDArray[np.float32], patches: PatchFeatures) -> NDArray[np.float32]:
    """Bring what is said of a tile's patches (P,) to the pixels of its colours, (h, w) float32 without padding."""
    assert patches.colours is not None, "pixels are of the colours"
    assert patches.pixels is not None
    grid = np.zeros(patches.grid_hw, np.float32)
    grid[patches.valid] = values
    height, width = patches.pixels.shape[1:]
    frame_hw = patches.colours.shape[1], patches.colours.shape[2]
    return on_decoder_grid(grid, patches, patches.transform, frame_hw)[:height, :width]


def _resample(
    values: NDArray[np.float32],
    source: FrameTransform,
    axes: list[_Axis],
    transform: FrameTransform,
    size_hw: tuple[int, int],
) -> NDArray[np.float32]:
    rows, columns = (_positions(axes[axis], source, transform, size_hw[axis], axis) for axis in (0, 1))
    out = _lerp(_lerp(values, rows[0]).T, columns[0]).T
    out *= np.outer(rows[1], columns[1])
    return np.ascontiguousarray(out)


def _positions(
    own: _Axis, source: FrameTransform, transform: FrameTransform, num_cells: int, axis: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return where each cell of the other grid lies on the source's, and which cells lie on the image."""
    in_input = (np.arange(num_cells) + 0.5) * transform.padded_hw[axis] / num_cells
    in_tile = in_input * transform.original_hw[axis] / transform.input_hw[axis]
    scale = source.input_hw[axis] / source.original_hw[axis]
    position = np.clip(in_tile * scale / own.cell - 0.5, 0, own.num_valid - 1)
    return position.astype(np.float32), in_input < transform.input_hw[axis]


def _lerp(values: NDArray[np.float32], positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate along the first axis."""
    near = np.minimum(positions.astype(np.int64), len(values) - 1)
    far = np.minimum(near + 1, len(values) - 1)
    weight = (positions - near)[:, None].astype(np.float32)
    return np.asarray(values[near] * (1 - weight) + values[far] * weight, np.float32)
