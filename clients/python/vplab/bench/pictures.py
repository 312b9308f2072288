"""The images and clicks that are sent: generated, so that nothing of anybody's is needed or leaves the machine."""

import io
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.vision.synthesis import synthesize_inspection_set


@dataclass(frozen=True, eq=False)
class Picture:
    """A JPEG file with points inside of its defects."""

    data: bytes
    points_xy: tuple[tuple[float, float], ...]
    mask: NDArray[np.bool_] = field(repr=False)
    """(H, W) where the defects are."""


_LARGEST_DRAWN = 1024
"""Larger images are mirrored from ones of this side, which have the same detail: drawing 4096 pixels takes a minute."""


def make_pictures(num_images: int, side_px: int, num_points: int, seed: int = 0) -> list[Picture]:
    """Return square images of JPEG quality 90 and points on their defects, drawn from a seed.

    Raises InvalidInput for a side below 64 pixels or no image.
    """
    rng = np.random.default_rng(seed)
    found = []
    drawn_px = min(side_px, _LARGEST_DRAWN)
    more = (0, side_px - drawn_px)
    for image in synthesize_inspection_set(num_images, (drawn_px, drawn_px), "patch", seed):
        pixels = np.pad(image.image_rgb, (more, more, (0, 0)), mode="symmetric")
        mask = np.pad(image.mask, (more, more), mode="symmetric")
        rows, columns = np.nonzero(mask)
        chosen = rng.integers(len(rows), size=num_points)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=90)
        points = tuple((float(columns[i]), float(rows[i])) for i in chosen)
        found.append(Picture(file.getvalue(), points, mask))
    return found
