"""An RGB image brought to another size. A line bundle has another implementation of this module, without Pillow."""

from typing import Literal

import numpy as np
from PIL import Image

from vplab.vision.images import ImageRGB

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize_rgb(
    image_rgb: ImageRGB, size_hw: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> ImageRGB:
    """Return (h, w, 3) uint8, resized by Pillow's antialiased filter of that name. image_rgb: (H, W, 3) uint8."""
    height, width = size_hw
    return np.asarray(Image.fromarray(image_rgb).resize((width, height), _FILTERS[interpolation]))
