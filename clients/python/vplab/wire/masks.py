"""Binary masks as ``vplab.api.vision.v1.Mask``: row-major run lengths, the first run counting zeros."""

import numpy as np
from numpy.typing import NDArray

from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.vision.masks import decode_runs, encode_runs

MAX_PIXELS = 1 << 28
"""Larger than any image a server accepts (16,384 x 16,384): a few bytes of runs must not claim the memory of a host."""


def mask_to_proto(mask: NDArray[np.bool_]) -> vision_pb2.Mask:
    """Encode a mask (H, W) of bool, or of integers where everything but 0 is foreground.

    Raises InvalidInput for an array that has no pixels or other than two axes.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise InvalidInput(f"shape is {list(mask.shape)}; expected (H, W) with pixels", field="mask")
    height, width = mask.shape
    runs = encode_runs(np.ascontiguousarray(mask, dtype=np.bool_))
    return vision_pb2.Mask(width=width, height=height, runs=runs.tolist())


def mask_from_proto(
    message: vision_pb2.Mask, *, field: str, size_hw: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.bool_]:
    """Decode a mask to (H, W) bool.

    ``size_hw``, when given, is the size the mask must have: that of its image.
    Raises InvalidInput for a size of zero or above ``max_pixels``, a size other than ``size_hw``, a zero run after the
    first, or runs that do not sum to the number of pixels.
    """
    height, width = mask_size_from_proto(message, field=field, max_pixels=max_pixels)
    if size_hw is not None and (height, width) != size_hw:
        raise InvalidInput(f"mask is {width}x{height}; its image is {size_hw[1]}x{size_hw[0]}", field=field)
    runs = np.fromiter(message.runs, dtype=np.uint32, count=len(message.runs))
    if (runs[1:] == 0).any():
        index = int(np.flatnonzero(runs[1:] == 0)[0]) + 1
        raise InvalidInput("only the first run may be 0", field=f"{field}.runs[{index}]")
    total = int(runs.sum(dtype=np.uint64))
    if total != height * width:
        raise InvalidInput(f"runs sum to {total}; {width}x{height} needs {height * width}", field=f"{field}.runs")
    return decode_runs(runs, (height, width))


def mask_size_from_proto(message: vision_pb2.Mask, *, field: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (height, width) of a mask without decoding it. Raises InvalidInput when it is empty or too large."""
    for name in ("width", "height"):
        if getattr(message, name) < 1:
            raise InvalidInput("must be 1 or more", field=f"{field}.{name}")
    if message.width * message.height > max_pixels:
        raise InvalidInput(f"{message.width}x{message.height} is more than {max_pixels} pixels", field=field)
    return message.height, message.width
