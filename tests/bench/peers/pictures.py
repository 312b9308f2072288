"""The images and clicks of the comparison: generated, the same for every server."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vplab.vision.synthesis import synthesize_inspection_set


@dataclass(frozen=True)
class Picture:
    """A JPEG file with points inside of its defects."""

    data: bytes
    points_xy: tuple[tuple[float, float], ...]


def make_pictures(num_images: int, side: int, num_points: int, seed: int = 0) -> list[Picture]:
    """Return square images of quality 90 and points on their defects, drawn from a seed."""
    rng = np.random.default_rng(seed)
    found = []
    for image in synthesize_inspection_set(num_images, (side, side), "patch", seed):
        rows, columns = np.nonzero(image.mask)
        chosen = rng.integers(len(rows), size=num_points)
        file = io.BytesIO()
        Image.fromarray(image.image_rgb).save(file, format="JPEG", quality=90)
        points = tuple((float(columns[i]), float(rows[i])) for i in chosen)
        found.append(Picture(file.getvalue(), points))
    return found
