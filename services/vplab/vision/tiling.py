"""Large images in overlapping tiles, and masks of one object put together across their borders."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vplab.vision.masks import mask_box

Scalar = TypeVar("Scalar", bound=np.generic)

OVERLAP = 0.25
"""Share of a tile's side that neighbours have in common: an object up to that size is whole in one of them."""

_SAME_OBJECT = 0.5
"""Share of the smaller mask, within the common area, from which two tiles' masks are one object."""
_CONTAINED = 0.8
"""The same for two masks of one tile, where what they have in common is all that is known."""
_CLIP = 8.0
"""Logits beyond, 99.97 % sure, are no more sure: one tile's certainty does not drown its neighbour's."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image in pixels, far edges outside."""

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    @property
    def origin_xy(self) -> tuple[int, int]:
        return self.x_min, self.y_min

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.y_max - self.y_min, self.x_max - self.x_min

    def crop(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a view of this part of an (H, W, ...) array."""
        return array[self.y_min : self.y_max, self.x_min : self.x_max]

    def common(self, other: "Tile") -> "Tile | None":
        """Return the area both have, or None."""
        low = max(self.x_min, other.x_min), max(self.y_min, other.y_min)
        high = min(self.x_max, other.x_max), min(self.y_max, other.y_max)
        return Tile(*low, *high) if low[0] < high[0] and low[1] < high[1] else None

    def within(self, other: "Tile") -> "Tile":
        """Return the same area in the coordinates of ``other``."""
        x, y = other.origin_xy
        return Tile(self.x_min - x, self.y_min - y, self.x_max - x, self.y_max - y)

    def contains(self, points_xy: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which points (N, 2) lie in the tile, borders included."""
        return np.asarray(
            ((points_xy >= (self.x_min, self.y_min)) & (points_xy <= (self.x_max, self.y_max))).all(axis=1)
        )


def tile_layout(image_hw: tuple[int, int], side: int) -> list[Tile]:
    """Return the tiles of an image: itself when its long side is at most ``side`` or side is 0, else overlapping ones.

    Tiles are ``side`` squared (less along an axis that is shorter), evenly spread, and overlap by OVERLAP or more.
    """
    height, width = image_hw
    if side == 0 or max(image_hw) <= side:
        return [Tile(0, 0, width, height)]
    rows, columns = _starts(height, side), _starts(width, side)
    return [Tile(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    step = max(1, side - math.ceil(OVERLAP * side))
    count = 1 + math.ceil((length - side) / step)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def inner_distance(tile: Tile, image_hw: tuple[int, int], points_xy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far points (N, 2) are inside a tile, in pixels; a tile border on the image's border does not count."""
    height, width = image_hw
    x, y = points_xy[:, 0], points_xy[:, 1]
    distances = [np.full(len(points_xy), np.inf, np.float32)]
    if tile.x_min > 0:
        distances.append(x - tile.x_min)
    if tile.y_min > 0:
        distances.append(y - tile.y_min)
    if tile.x_max < width:
        distances.append(tile.x_max - x)
    if tile.y_max < height:
        distances.append(tile.y_max - y)
    return np.asarray(np.min(distances, axis=0), np.float32)


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask with its place in the image."""

    area: Tile
    """The foreground's box."""
    mask: NDArray[np.bool_]
    """(h, w) bool of the area's size."""

    @classmethod
    def of(cls, mask: NDArray[np.bool_], origin_xy: tuple[int, int]) -> "PlacedMask | None":
        """Crop (H, W) bool, which lies at ``origin_xy`` in the image, to its foreground; None where there is none."""
        box = mask_box(mask)
        if box is None:
            return None
        (x, y), (x_min, y_min, x_max, y_max) = origin_xy, box
        return cls(Tile(x + x_min, y + y_min, x + x_max, y + y_max), mask[y_min:y_max, x_min:x_max].copy())

    def paint(self, canvas: NDArray[np.bool_]) -> None:
        """Set the foreground in ``canvas``, (H, W) bool of the image."""
        view = self.area.crop(canvas)
        view |= self.mask


@dataclass(frozen=True, eq=False)
class TileMask:
    """One object as one tile sees it."""

    tile: Tile
    foreground: PlacedMask
    logits: Callable[[], NDArray[np.float32]]
    """Makes the (H, W) float32 logits of the tile's size; a function, because forty of them at once would be large."""


def join_views(masks: Sequence[TileMask]) -> list[list[int]]:
    """Return which masks are one object, transitively: those of different tiles that agree where the tiles overlap, and
    those of one tile of which one holds the other."""
    parent = list(range(len(masks)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for a in range(len(masks)):
        for b in range(a):
            if _agree(masks[a], masks[b]):
                parent[root(a)] = root(b)
    groups: dict[int, list[int]] = {}
    for index in range(len(masks)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _agree(first: TileMask, second: TileMask) -> bool:
    common = first.tile.common(second.tile)
    if common is None or first.foreground.area.common(second.foreground.area) is None:
        return False
    a, b = (_foreground_in(common, m.foreground) for m in (first, second))
    smaller = min(int(a.sum()), int(b.sum()))
    share = _CONTAINED if first.tile == second.tile else _SAME_OBJECT
    return smaller > 0 and int((a & b).sum()) >= share * smaller


def _foreground_in(area: Tile, placed: PlacedMask) -> NDArray[np.bool_]:
    canvas = np.zeros(area.size_hw, np.bool_)
    both = area.common(placed.area)
    if both is not None:
        both.within(area).crop(canvas)[...] = both.within(placed.area).crop(placed.mask)
    return canvas


def blend(masks: Sequence[TileMask], image_hw: tuple[int, int]) -> PlacedMask | None:
    """Put the tiles' views of one object together: a mean of logits whose weight falls towards a tile's inner border.

    So a pixel in the overlap follows the tile that sees more around it, and there is no step at a border. Returns None
    where nothing is foreground. Cost follows the object's box, not the image.
    """
    if len(masks) == 1:
        return masks[0].foreground
    boxes = [m.foreground.area for m in masks]
    area = Tile(
        min(b.x_min for b in boxes),
        min(b.y_min for b in boxes),
        max(b.x_max for b in boxes),
        max(b.y_max for b in boxes),
    )
    total = np.zeros(area.size_hw, np.float32)
    for tile in dict.fromkeys(m.tile for m in masks):
        common = area.common(tile)
        if common is None:
            continue
        views = [common.within(tile).crop(m.logits()) for m in masks if m.tile == tile]
        logits = np.clip(np.max(views, axis=0), -_CLIP, _CLIP)
        # The sum's sign is the mean's, so the weights need not be divided out.
        view = common.within(area).crop(total)
        view += _weight(common, tile, image_hw) * logits
    return PlacedMask.of(total > 0, area.origin_xy)


def _weight(area: Tile, tile: Tile, image_hw: tuple[int, int]) -> NDArray[np.float32]:
    height, width = image_hw
    rows = _ramp(area.y_min, area.y_max, tile.y_min, tile.y_max, height)
    columns = _ramp(area.x_min, area.x_max, tile.x_min, tile.x_max, width)
    return np.minimum(rows[:, None], columns[None, :])


def _ramp(start: int, stop: int, low: int, high: int, length: int) -> NDArray[np.float32]:
    """Return weights of pixels start..stop of a tile low..high: from about 0 at an inner border to 1 inside."""
    centre = np.arange(start, stop, dtype=np.float32) + 0.5
    distance = np.full(len(centre), np.inf, np.float32)
    if low > 0:
        distance = np.minimum(distance, centre - low)
    if high < length:
        distance = np.minimum(distance, high - centre)
    return np.asarray(np.minimum(distance / max(1.0, OVERLAP * (high - low)), 1), np.float32)
