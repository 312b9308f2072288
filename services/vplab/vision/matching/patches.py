"""Patch features with their place in the image, and masks brought to the patch grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.tiling import Tile, inner_distance


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """What a feature encoder returned for an image, or for one tile of it."""

    features: NDArray[np.float32]
    """(h, w, D) float32, each patch L2-normalised."""
    transform: FrameTransform
    """From the tile's pixels to the encoder's input; a whole image is one tile."""
    stride: int
    """Input pixels per patch."""
    origin_xy: tuple[int, int] = (0, 0)
    """Upper left corner of the tile in the image, in pixels."""
    colours: NDArray[Any] | None = None
    """(3, H, W), RGB in 0..1 of the whole padded frame, where the encoder gives them."""

    @property
    def grid_hw(self) -> tuple[int, int]:
        return self.features.shape[0], self.features.shape[1]

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(h, w) bool: patches whose centre lies on the image, not on padding; at least one."""
        rows, columns = (
            (np.arange(cells) + 0.5) * self.stride <= max(length, 0.5 * self.stride)
            for cells, length in zip(self.grid_hw, self.transform.input_hw, strict=True)
        )
        return np.outer(rows, columns)

    @cached_property
    def centres_xy(self) -> NDArray[np.float32]:
        """(h, w, 2) float32 centres of the patches in pixels of the whole image; those on padding lie outside."""
        rows, columns = self.grid_hw
        x, y = np.meshgrid((np.arange(columns) + 0.5) * self.stride, (np.arange(rows) + 0.5) * self.stride)
        return self.transform.points_to_original(np.stack([x, y], axis=-1)) + np.array(self.origin_xy, np.float32)

    @property
    def area(self) -> Tile:
        """The tile's rectangle in the image."""
        (x, y), (height, width) = self.origin_xy, self.transform.original_hw
        return Tile(x, y, x + width, y + height)

    @cached_property
    def pixels(self) -> NDArray[np.float32] | None:
        """(3, h, w) float32: the colours without their padding."""
        if self.colours is None:
            return None
        height, width = (
            -(-cells * length // padded)
            for cells, length, padded in zip(
                self.colours.shape[1:], self.transform.input_hw, self.transform.padded_hw, strict=True
            )
        )
        return np.asarray(self.colours[:, :height, :width], np.float32)

    def coverage(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the share of each patch that the tile's mask covers: (h, w) float32 in 0..1, 0 on padding.

        mask: (H, W) bool of the tile's size. A single pixel of an object leaves more than 0. Raises InvalidInput for
        another size.
        """
        if mask.shape != self.transform.original_hw:
            message = f"the mask is {mask.shape[::-1]} pixels, the image {self.transform.original_hw[::-1]}"
            raise InvalidInput(message, field="mask")
        return _share_of_patches(mask, self.transform.input_hw, self.grid_hw, self.stride)


def _share_of_patches(
    mask: NDArray[np.bool_], input_hw: tuple[int, int], grid_hw: tuple[int, int], stride: int
) -> NDArray[np.float32]:
    height, width = input_hw
    rows, columns = grid_hw
    if rows == 0 or columns == 0:
        raise InvalidInput("the patch grid is empty", field="features")
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled = cv2.resize(mask.astype(np.float32), (width, height), interpolation=interpolation)
    sides = (rows * stride, columns * stride)
    covered, seen = np.zeros(sides, np.float32), np.zeros(sides, np.float32)
    height, width = min(height, sides[0]), min(width, sides[1])
    covered[:height, :width] = scaled[:height, :width]
    seen[:height, :width] = 1
    cells = (rows, stride, columns, stride)
    return np.asarray(covered.reshape(cells).sum((1, 3)) / np.maximum(seen.reshape(cells).sum((1, 3)), 1), np.float32)


@dataclass(frozen=True, eq=False)
class TargetPatches:
    """All patches of a target image that lie on it, from one tile or several, in one list."""

    tiles: tuple[PatchFeatures, ...]
    features: NDArray[np.float32]
    """(P, D) float32."""
    centres_xy: NDArray[np.float32]
    """(P, 2) float32 in pixels of the image."""
    tile_index: NDArray[np.int64]
    """(P,) which tile each patch is of."""
    is_home: NDArray[np.bool_]
    """(P,) whether no other tile sees more around the patch; one patch of each place is at home. Points are these."""
    spacing_px: float
    """Distance of neighbouring patches in pixels of the image; the largest of the tiles'."""

    @property
    def image_hw(self) -> tuple[int, int]:
        """Size of the image the tiles cover."""
        return _image_hw(self.tiles)

    @classmethod
    def of(cls, tiles: Sequence[PatchFeatures]) -> "TargetPatches":
        """Gather the patches of ``tiles``, which are at least one."""
        centres_xy = np.concatenate([t.centres_xy[t.valid] for t in tiles])
        tile_index = np.concatenate([np.full(int(t.valid.sum()), i) for i, t in enumerate(tiles)])
        return cls(
            tiles=tuple(tiles),
            features=np.concatenate([t.features[t.valid] for t in tiles]),
            centres_xy=centres_xy,
            tile_index=tile_index,
            is_home=_at_home(tiles, centres_xy, tile_index),
            spacing_px=max(float((t.stride / t.transform.scale_xy).max()) for t in tiles),
        )

    def grid(self, tile: int, values: NDArray[np.float32], fill: float = 0.0) -> NDArray[np.float32]:
        """Return one tile's values (P,) on its grid (h, w); padding is ``fill``."""
        out = np.full(self.tiles[tile].grid_hw, fill, np.float32)
        out[self.tiles[tile].valid] = values[self.tile_index == tile]
        return out


def _image_hw(tiles: Sequence[PatchFeatures]) -> tuple[int, int]:
    return max(t.area.y_max for t in tiles), max(t.area.x_max for t in tiles)


def _at_home(
    tiles: Sequence[PatchFeatures], centres_xy: NDArray[np.float32], tile_index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    if len(tiles) == 1:
        return np.ones(len(centres_xy), np.bool_)
    image_hw = _image_hw(tiles)
    depth = np.stack([inner_distance(t.area, image_hw, centres_xy) for t in tiles])
    return np.asarray(depth.argmax(axis=0) == tile_index)
