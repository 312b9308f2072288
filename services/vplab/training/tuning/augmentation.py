"""Extra views of a validated image: flips, quarter turns, scale and light. Each is embedded once and then cached.

Geometry moves whole pixels only, so masks stay exact: nothing is interpolated but by the encoder's own resize.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.vision.images import ImageRGB

Plane = TypeVar("Plane", NDArray[np.uint8], NDArray[np.bool_])

_SCALES = ((1.25, 1.8), (0.65, 0.85))
"""Zooming in keeps 1 / scale of each side around a point of the object; zooming out mirrors the borders."""


@dataclass(frozen=True)
class View:
    """What is done to an image, in the order of the fields."""

    is_flipped: bool = False
    """Left and right swapped."""
    quarter_turns: int = 0
    """Counter-clockwise."""
    scale: float = 1.0
    focus: float = 0.5
    """Which pixel of the object a zoom keeps: its rank in row-major order over the number of pixels, 0 to 1."""
    gain: float = 1.0
    """Contrast about the middle grey 127.5."""
    offset: float = 0.0
    """Brightness, in 0..255."""
    gamma: float = 1.0

    @property
    def is_original(self) -> bool:
        """Whether the view is the image itself."""
        return self == View()


def plan_views(num_views: int, seed: int, image_index: int) -> tuple[View, ...]:
    """Return the views of one image, the image itself first. Equal arguments, equal views; a longer plan goes on where
    a shorter one ends."""
    views = [View()]
    for index in range(1, num_views):
        rng = np.random.default_rng([seed, image_index, index])
        low, high = _SCALES[int(rng.random() < 0.35)]
        views.append(
            View(
                is_flipped=bool(index % 2),  # the first is a flip, as in HQ-SAM; then by turns
                quarter_turns=0 if index == 1 else int(rng.integers(4)),
                scale=float(rng.uniform(low, high)) if index % 3 == 2 else 1.0,
                focus=float(rng.random()),
                gain=float(np.exp(rng.normal(0, 0.12))),
                offset=float(rng.normal(0, 10)),
                gamma=float(np.exp(rng.normal(0, 0.15))),
            )
        )
    return tuple(views)


def apply_view(
    view: View, image_rgb: ImageRGB, masks: Mapping[int, NDArray[np.bool_]]
) -> tuple[ImageRGB, dict[int, NDArray[np.bool_]]]:
    """Return the view of an image (H, W, 3) uint8 and of its masks by class, (H, W) bool."""
    planes = {class_id: _turn(mask, view) for class_id, mask in masks.items()}
    image = _turn(image_rgb, view)
    if view.scale > 1:
        rows, columns = _window(planes, image.shape[:2], view)
        image, planes = image[rows, columns], {c: m[rows, columns] for c, m in planes.items()}
    elif view.scale < 1:
        margin = [round(side * (1 / view.scale - 1) / 2) for side in image.shape[:2]]
        image, planes = _mirror(image, margin), {c: _mirror(m, margin) for c, m in planes.items()}
    return _light(np.ascontiguousarray(image), view), {c: np.ascontiguousarray(m) for c, m in planes.items()}


def _turn(plane: Plane, view: View) -> Plane:
    flipped = plane[:, ::-1] if view.is_flipped else plane
    return np.rot90(flipped, view.quarter_turns)


def _window(planes: Mapping[int, NDArray[np.bool_]], size_hw: tuple[int, ...], view: View) -> tuple[slice, slice]:
    """Return what is kept of rows and columns: around a pixel of the object, or of the image where there is none."""
    inside = np.zeros(size_hw, np.bool_)
    for plane in planes.values():
        inside |= plane
    pixels = np.flatnonzero(inside if inside.any() else ~inside)
    focus = divmod(int(pixels[min(int(view.focus * len(pixels)), len(pixels) - 1)]), size_hw[1])
    kept = [max(1, round(side / view.scale)) for side in size_hw]
    starts = [min(max(at - k // 2, 0), side - k) for at, k, side in zip(focus, kept, size_hw, strict=True)]
    return slice(starts[0], starts[0] + kept[0]), slice(starts[1], starts[1] + kept[1])


def _mirror(plane: Plane, margin_hw: list[int]) -> Plane:
    rows, columns = ((m, m) for m in margin_hw)
    return np.pad(plane, (rows, columns) + ((0, 0),) * (plane.ndim - 2), mode="symmetric")


def _light(image: ImageRGB, view: View) -> ImageRGB:
    if (view.gain, view.offset, view.gamma) == (1.0, 0.0, 1.0):
        return image
    levels = np.arange(256, dtype=np.float64)
    lit = np.clip((levels - 127.5) * view.gain + 127.5 + view.offset, 0, 255)
    table = np.round(255 * (lit / 255) ** view.gamma).astype(np.uint8)
    return np.asarray(cv2.LUT(image, table), np.uint8)
