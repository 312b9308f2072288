"""Pillow's antialiased filters without Pillow, bit for bit.

Source: Pillow 13, ``src/libImaging/Resample.c``: coefficients in fixed point of 22 bits, one pass across and one down,
each rounded to 8 bits. Before 13 Pillow always went across first: where this goes down first, values then differ by 1.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vplab.vision.images import ImageRGB

_BITS = 22
_BICUBIC_A = -0.5


def resize_rgb(
    image_rgb: ImageRGB, size_hw: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> ImageRGB:
    """Return (h, w, 3) uint8. image_rgb: (H, W, 3) uint8."""
    (old_height, old_width), (height, width) = image_rgb.shape[:2], size_hw
    pixels = image_rgb
    goes_down_first = old_height > height and old_height - height > 2 * (old_width - width)
    if goes_down_first:
        pixels = _pass(pixels, height, interpolation)
    if old_width != width:
        pixels = _pass(pixels.swapaxes(0, 1), width, interpolation).swapaxes(0, 1)
    if old_height != height and not goes_down_first:
        pixels = _pass(pixels, height, interpolation)
    return np.ascontiguousarray(pixels)


def _pass(pixels: ImageRGB, length: int, interpolation: str) -> ImageRGB:
    """Resize the first axis."""
    flat = pixels.reshape(len(pixels), -1)
    out = np.empty((length, flat.shape[1]), np.uint8)
    for index, (start, weights) in enumerate(_coefficients(len(pixels), length, interpolation)):
        # Products and sums are below 2 ** 53, so float64, for which numpy has a fast product, is exact.
        total = weights @ flat[start : start + len(weights)].astype(np.float64)
        out[index] = np.clip(np.floor((total + 2.0 ** (_BITS - 1)) / 2.0**_BITS), 0, 255)
    return out.reshape(length, *pixels.shape[1:])


def _coefficients(before: int, after: int, interpolation: str) -> list[tuple[int, NDArray[np.float64]]]:
    """Return where the window of each output pixel starts, and its whole-numbered weights."""
    value, radius = (_bilinear, 1.0) if interpolation == "bilinear" else (_bicubic, 2.0)
    scale = before / after
    stretch = max(scale, 1.0)
    support = radius * stretch
    found = []
    for index in range(after):
        centre = (index + 0.5) * scale
        start = max(0, int(centre - support + 0.5))
        stop = min(before, int(centre + support + 0.5))
        inverse = 1.0 / stretch
        weights = [value((x + start - centre + 0.5) * inverse) for x in range(stop - start)]
        total = 0.0
        for weight in weights:  # one after the other, as Pillow does: numpy would round otherwise
            total += weight
        factor = 1.0 / total if total else 1.0
        scaled = [weight * factor * (1 << _BITS) for weight in weights]
        whole = [math.trunc(weight - 0.5) if weight < 0 else math.trunc(weight + 0.5) for weight in scaled]
        found.append((start, np.array(whole, np.float64)))
    return found


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _bicubic(x: float) -> float:
    x, a = abs(x), _BICUBIC_A
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0
