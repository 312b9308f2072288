"""Masks in JPEG and lossy WebP: what of them can be trusted, and what cannot.

Lossy compression rings: beside an edge from 0 to 255 there are some twenty other values, which are no classes.
Kvasir-SEG and other sets come so.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from vplab.errors import InvalidInput
from vplab.vision.images import ImageLimits, decode_image

_HALF = 128
_DARK, _BRIGHT = 64, 192
"""Below and from there on a value is near 0 and 255. Ringing passes them at qualities below 60."""
_BLOCK = 8
"""Side of a JPEG block, in pixels; WebP's are 4 or 16, filtered afterwards. Ringing stays within."""
_BLACK = 1
"""Most that compression makes of a picture of zeros: 0 in JPEG at any quality, 1 in WebP."""


def is_lossy(data: bytes) -> bool:
    """Say whether a file's pixels are not those that were saved: a JPEG, or a WebP that is not lossless."""
    if data.startswith(b"\xff\xd8\xff"):
        return True
    if not (data.startswith(b"RIFF") and data[8:12] == b"WEBP"):
        return False
    at = 12
    while at + 8 <= len(data):  # chunks: a name of four bytes, a size, so many bytes, and one more if that is odd
        if data[at : at + 4] in (b"VP8 ", b"VP8L"):
            return data[at : at + 4] == b"VP8 "
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return True


def lossy_mask(data: bytes, limits: ImageLimits | None = None, *, is_binary: bool | None = None) -> NDArray[np.bool_]:
    """Return (H, W) bool, what is bright in a lossy file, grey or colour: 128 or more in one channel.

    is_binary: True takes any picture, False none; None takes one whose values are 0 and 255 but for what compression
    did to the edges. Raises InvalidInput for what may have been class ids, and as ``decode_image``.
    """
    values = decode_image(data, limits).max(axis=2)
    if is_binary is None and not _is_black_and_white(values):
        message = (
            "is compressed with loss (JPEG or WebP) and holds more than 0 and 255: with --binary what is brighter than "
            "half is the object; class ids need PNG"
        )
        raise InvalidInput(message, field="labels")
    if is_binary is False:
        raise InvalidInput("is compressed with loss (JPEG or WebP), which keeps no ids: save it as PNG", field="labels")
    found: NDArray[np.bool_] = values >= _HALF
    return found


def _is_black_and_white(values: NDArray[np.uint8]) -> bool:
    bright = values >= _BRIGHT
    if not bright.any():
        return int(values.max()) <= _BLACK  # nothing is there that could ring: other values were drawn
    side = 2 * _BLOCK + 1
    beside_bright = cv2.dilate(bright.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return not ((values >= _DARK) & ~beside_bright).any()
