"""The EXIF orientation of a picture, read without Pillow's EXIF parser, which warns and raises on cameras' habits.

Source: EXIF 2.32, 4.6.2 (IFD structure) and 4.6.4 tag 0x0112; PNG 3rd edition 11.3.3.2 (eXIf).
"""

import struct

import numpy as np
import numpy.typing as npt

_ORIENTATION_TAG = 0x0112
_SHORT = 3
_PNG_SIGNATURE_BYTES = 8


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, of an EXIF block with or without its ``Exif`` prefix; 1 where it states none.

    A damaged block counts as none, as in every viewer: the pixels are still good.
    """
    tiff = exif[6:] if exif.startswith(b"Exif\x00\x00") else exif
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (ifd_offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, ifd_offset)
        for entry in range(num_entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, ifd_offset + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG and kind == _SHORT:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def png_exif(data: bytes) -> bytes:
    """Return the content of a PNG's eXIf chunk, which may stand before or after the pixels; empty without one."""
    position = _PNG_SIGNATURE_BYTES
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return data[position + 8 : position + 8 + size]
        position += 12 + size  # length, type and checksum are four bytes each
    return b""


def orient(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turn stored rows the way the orientation says they are to be seen. image: (H, W, C) uint8."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
