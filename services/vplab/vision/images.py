"""Pictures as they arrive, to RGB uint8 arrays: files by content, never by name, and raw camera frames.

Everything here is bounded before pixels are decoded, and whatever is wrong with the input is InvalidInput. Colour is
taken as sRGB: embedded profiles are ignored. Of a file with several frames (TIFF, WebP, APNG, MPO) the first is used.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from vplab.errors import InvalidInput, ResourceExhausted
from vplab.vision._exif import exif_orientation, orient, png_exif

ImageRGB = npt.NDArray[np.uint8]

ENCODED_FIELD = "image.encoded"
FRAME_FIELD = "image.frame"

# libjpeg decodes every scan over the whole picture, so a small progressive file can ask for hours. Real ones have about
# ten; libjpeg-turbo's own fuzzers stop at 500. Two billion is 20 scans of 100 million pixels, about ten seconds.
_MAX_JPEG_SCANS = 500
_MAX_JPEG_SCANNED_PIXELS = 2_000_000_000
# Pillow decodes run-length coded BMP in Python, about ten million pixels a second.
_MAX_RLE_BMP_PIXELS = 10_000_000


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may cost."""

    max_bytes: int = 32 * 1024 * 1024
    """Size of the file or frame; the default is the message limit of every server."""
    max_pixels: int = 100_000_000
    """Width times height. 100 million pixels decode to 300 MB."""


class PixelFormat(StrEnum):
    """The layout of one pixel of a raw frame, named as in GenICam; 16 bits are little-endian."""

    MONO8 = "MONO8"
    MONO16 = "MONO16"
    RGB8 = "RGB8"
    BGR8 = "BGR8"

    @property
    def num_bytes(self) -> int:
        """Bytes of one pixel."""
        return {"MONO8": 1, "MONO16": 2, "RGB8": 3, "BGR8": 3}[self.value]


# Files are told apart by their first bytes and opened by their own plugin: ``Image.open`` would also try formats that
# nobody audited, and its bomb check is a process-wide setting that warns.
_OPENERS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"II+\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00+", TiffImagePlugin.TiffImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)
_WARNING_FILTERS = threading.Lock()


def decode_image(data: bytes, limits: ImageLimits | None = None) -> ImageRGB:
    """Decode a JPEG, PNG, BMP, TIFF or WebP file to (H, W, 3) uint8 RGB, EXIF orientation applied, C-contiguous.

    Alpha is dropped; 16-bit grey is scaled linearly to 8 bit and 16-bit colour keeps its high byte.
    Raises InvalidInput (IMAGE_TOO_LARGE, before decoding; IMAGE_UNREADABLE for anything the formats do not allow).
    """
    limits = limits or ImageLimits()
    with _reading(data, limits) as image:
        orientation = _orientation(image, data)  # TIFF is turned by Pillow when its pixels are loaded
        pixels = _jpeg_pixels(image, data) if isinstance(image, JpegImagePlugin.JpegImageFile) else None
        return orient(pixels if pixels is not None else _rgb_pixels(image, data), orientation)


def read_size_hw(data: bytes, limits: ImageLimits | None = None) -> tuple[int, int]:
    """Return (height, width) after orientation, from the header alone. Raises as decode_image."""
    with _reading(data, limits or ImageLimits()) as image:
        width, height = image.size
        return (width, height) if _orientation(image, data) in (5, 6, 7, 8) else (height, width)


def encoded_digest(data: bytes) -> str:
    """Return the image digest of a file: sha256 hex of its bytes, so two encodings of one picture differ."""
    return hashlib.sha256(data).hexdigest()


def frame_to_rgb(
    data: bytes,
    width: int,
    height: int,
    stride_bytes: int,
    pixel_format: PixelFormat,
    limits: ImageLimits | None = None,
) -> ImageRGB:
    """Return a raw frame as (H, W, 3) uint8 RGB; 16-bit grey is scaled linearly by 1/257.

    stride_bytes: distance between the starts of two rows; 0 means rows without padding.
    Raises InvalidInput naming the field: a size of zero, a stride shorter than a row, missing data, or too large.
    """
    rows = _frame_rows(data, width, height, stride_bytes, pixel_format, limits or ImageLimits())
    if pixel_format is PixelFormat.MONO16:
        grey = _to_8_bit(rows.view("<u2"), num_bits=16)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if pixel_format is PixelFormat.MONO8:
        return np.repeat(rows[:, :, None], 3, axis=2)
    colours = rows.reshape(height, width, 3)
    return np.ascontiguousarray(colours[:, :, ::-1] if pixel_format is PixelFormat.BGR8 else colours)


def frame_digest(
    data: bytes,
    width: int,
    height: int,
    stride_bytes: int,
    pixel_format: PixelFormat,
    limits: ImageLimits | None = None,
) -> str:
    """Return a frame's image digest, which does not depend on the stride. Raises as frame_to_rgb.

    It is the sha256 hex of ``frame:{width}x{height}:PIXEL_FORMAT_{format}:`` and the rows without their padding.
    """
    rows = _frame_rows(data, width, height, stride_bytes, pixel_format, limits or ImageLimits())
    digest = hashlib.sha256(f"frame:{width}x{height}:PIXEL_FORMAT_{pixel_format}:".encode())
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


@contextmanager
def _reading(data: bytes, limits: ImageLimits) -> Iterator[ImageFile.ImageFile]:
    if len(data) > limits.max_bytes:
        raise _too_large("bytes", len(data), limits.max_bytes, ENCODED_FIELD)
    opener = next((opener for signature, opener in _OPENERS if data.startswith(signature)), None)
    if opener is None:
        raise _unreadable("it is empty" if not data else "it is no JPEG, PNG, BMP, TIFF or WebP file")
    try:
        with _without_warnings():
            opened = opener(io.BytesIO(data))
        with opened as image:
            num_pixels = image.size[0] * image.size[1]
            most = limits.max_pixels
            if image.tile and image.tile[0].codec_name == "bmp_rle":
                most = min(most, _MAX_RLE_BMP_PIXELS)
            if num_pixels > most:
                raise _too_large("pixels", num_pixels, most, ENCODED_FIELD)
            yield image
    except InvalidInput:
        raise
    except MemoryError as error:
        raise ResourceExhausted("There is not enough memory to decode the image") from error
    except Image.DecompressionBombError as error:
        raise _too_large("pixels", -1, limits.max_pixels, ENCODED_FIELD) from error
    except Exception as error:
        # A parser of hostile bytes raises whatever it stumbled over: OSError, SyntaxError, struct.error, KeyError ...
        raise _unreadable(f"it is damaged, cut off or of an unsupported kind ({str(error)[:100]})") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Pillow's remarks about odd metadata to itself; the filters are process-wide, hence the lock."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    if isinstance(image, PngImagePlugin.PngImageFile):
        return exif_orientation(png_exif(data))
    return exif_orientation(image.info.get("exif", b""))


def _jpeg_pixels(image: ImageFile.ImageFile, data: bytes) -> ImageRGB | None:
    """Decode by libjpeg-turbo directly, about twice as fast as through Pillow; None where Pillow must decide."""
    num_scans = data.count(b"\xff\xda")
    if num_scans > _MAX_JPEG_SCANS or num_scans * image.size[0] * image.size[1] > _MAX_JPEG_SCANNED_PIXELS:
        raise _unreadable(f"its {num_scans} scans are too many")
    if image.mode not in ("L", "RGB"):
        return None
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != image.size[::-1]:
            return None
        pixels: ImageRGB = simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:  # also for harmless flaws, such as bytes between segments, that Pillow knows to forgive
        return None
    return pixels


def _rgb_pixels(image: ImageFile.ImageFile, data: bytes) -> ImageRGB:
    # Only these read metadata again after the pixels; everything else decodes in parallel.
    reads_metadata = isinstance(image, TiffImagePlugin.TiffImageFile) or b"acTL" in data
    with _without_warnings() if reads_metadata else nullcontext():
        image.load()
    if image.mode in ("I;16", "I;16B", "I;16L"):
        return np.repeat(_grey_16_bit(image)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise _unreadable("its pixels are 32-bit or signed numbers, whose range is not stated: convert to 8 or 16 bit")
    image.info.pop("transparency", None)  # alpha is dropped, and Pillow warns where a palette has some
    straight = image.convert("RGBA") if image.mode in ("RGBa", "La", "LA", "PA") else image
    return np.asarray(straight.convert("RGB"))


def _grey_16_bit(image: ImageFile.ImageFile) -> npt.NDArray[np.uint8]:
    num_bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        num_bits = int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0])
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    grey = _to_8_bit(np.asarray(image), num_bits)
    return 255 - grey if white_is_zero else grey


def _to_8_bit(values: npt.NDArray[np.uint16], num_bits: int) -> npt.NDArray[np.uint8]:
    divisor = (2**num_bits - 1) / 255  # 257 for 16 bits: 65535 becomes 255
    # One table look-up per pixel; Pillow keeps 12-bit values in 16 bits, so the table always covers all of those.
    table: npt.NDArray[np.uint8] = np.minimum(np.arange(2**16) / divisor + 0.5, 255).astype(np.uint8)
    eight: npt.NDArray[np.uint8] = table[values]
    return eight


def _frame_rows(
    data: bytes, width: int, height: int, stride_bytes: int, pixel_format: PixelFormat, limits: ImageLimits
) -> npt.NDArray[np.uint8]:
    """Return the rows without padding: (H, width * bytes per pixel) uint8, a view on ``data``."""
    for name, value in (("width", width), ("height", height)):
        if value < 1:
            raise InvalidInput(f"{name} must be 1 or more", field=f"{FRAME_FIELD}.{name}")
    if len(data) > limits.max_bytes:
        raise _too_large("bytes", len(data), limits.max_bytes, f"{FRAME_FIELD}.data")
    if width * height > limits.max_pixels:
        raise _too_large("pixels", width * height, limits.max_pixels, FRAME_FIELD)
    row_bytes = width * pixel_format.num_bytes
    stride = stride_bytes or row_bytes
    if stride < row_bytes:
        message = f"{stride} is shorter than a row: {width} pixels of {pixel_format} take {row_bytes} bytes"
        raise InvalidInput(message, field=f"{FRAME_FIELD}.stride_bytes")
    needed = stride * (height - 1) + row_bytes
    if len(data) < needed:
        message = f"{len(data)} bytes are too few: {height} rows with a stride of {stride} take {needed}"
        raise InvalidInput(message, field=f"{FRAME_FIELD}.data")
    shape, strides = (height, row_bytes), (stride, 1)
    rows: npt.NDArray[np.uint8] = np.ndarray(shape, np.uint8, buffer=data, strides=strides)
    return rows if stride == row_bytes else np.ascontiguousarray(rows)


def _unreadable(why: str) -> InvalidInput:
    return InvalidInput(f"The image cannot be read: {why}", field=ENCODED_FIELD, reason="IMAGE_UNREADABLE")


def _too_large(unit: str, actual: int, limit: int, field: str) -> InvalidInput:
    amount = f"{actual:,} {unit}" if actual >= 0 else f"too many {unit}"
    metadata = {"limit": str(limit)} | ({"actual": str(actual)} if actual >= 0 else {})
    message = f"The image has {amount}; the server takes at most {limit:,}"
    return InvalidInput(message, field=field, reason="IMAGE_TOO_LARGE", metadata=metadata)
