"""Pictures as ``vplab.api.vision.v1.Image``: a whole file, a camera frame, or the digest of one sent before."""

import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.vision.images import PixelFormat
from vplab.wire.names import parse_sha256

_PIXEL_FORMATS: dict[int, PixelFormat] = {
    vision_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{pixel_format}"): pixel_format for pixel_format in PixelFormat
}

MAX_FRAME_BYTES = 30 << 20
"""Frames above this are sent as lossless PNG, so that a message stays below the 32 MiB limit."""


@dataclass(frozen=True)
class EncodedImage:
    """A whole JPEG, PNG, BMP, TIFF or WebP file; not decoded yet."""

    data: bytes


@dataclass(frozen=True)
class FrameImage:
    """An uncompressed camera frame."""

    data: bytes
    width: int
    height: int
    stride_bytes: int
    """Distance between the starts of two rows; never 0 here."""
    pixel_format: PixelFormat


@dataclass(frozen=True)
class DigestImage:
    """An image the server saw before, by its image digest."""

    digest: str


ImageContent = EncodedImage | FrameImage | DigestImage
ImageSource = bytes | str | PathLike[str] | NDArray[Any] | EncodedImage | FrameImage | DigestImage
"""What a caller may hand over as an image: a file's bytes, its path, pixels, or one of the three forms above.

Pixels are (H, W) uint8 or uint16 grey, or (H, W, 3) uint8 in red, green, blue order.
"""


def image_to_proto(source: ImageSource) -> vision_pb2.Image:
    """Encode an image from whatever the caller has.

    Raises InvalidInput for pixels of another shape or type, and for a path that cannot be read.
    """
    match source:
        case bytes() | bytearray() | memoryview():
            return vision_pb2.Image(encoded=bytes(source))
        case str() | PathLike():
            return vision_pb2.Image(encoded=_read(Path(source)))
        case EncodedImage(data):
            return vision_pb2.Image(encoded=data)
        case DigestImage(digest):
            return vision_pb2.Image(digest=digest)
        case FrameImage():
            return vision_pb2.Image(frame=_frame_to_proto(source))
        case np.ndarray():
            return _pixels_to_proto(source)
    raise InvalidInput(f"cannot read an image from {type(source).__name__}", field="image")


def image_from_proto(message: vision_pb2.Image, *, field: str = "image") -> ImageContent:
    """Check an image without decoding it; pixels, and files with their limits, are the business of vision.images.

    Raises InvalidInput when no content is set, it is empty, a frame's geometry does not fit its data, or a digest is
    malformed.
    """
    match message.WhichOneof("content"):
        case "encoded":
            data = message.encoded  # protobuf copies the bytes at each look
            if not data:
                raise InvalidInput("holds no bytes", field=f"{field}.encoded", reason="IMAGE_UNREADABLE")
            return EncodedImage(data)
        case "frame":
            return _frame_from_proto(message.frame, f"{field}.frame")
        case "digest":
            return DigestImage(parse_sha256(message.digest, field=f"{field}.digest"))
    raise InvalidInput("one of encoded, frame and digest is required", field=f"{field}.content")


def image_size_to_proto(size_hw: tuple[int, int]) -> vision_pb2.ImageSize:
    """Encode (height, width)."""
    return vision_pb2.ImageSize(height=size_hw[0], width=size_hw[1])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}", field="image") from error


def _pixels_to_proto(pixels: NDArray[Any]) -> vision_pb2.Image:
    kind = (pixels.dtype.name, pixels.shape[2:])
    formats: dict[tuple[str, tuple[int, ...]], PixelFormat] = {
        ("uint8", ()): PixelFormat.MONO8,
        ("uint16", ()): PixelFormat.MONO16,
        ("uint8", (3,)): PixelFormat.RGB8,
    }
    pixel_format = formats.get(kind) if pixels.ndim in (2, 3) and pixels.size else None
    if pixel_format is None:
        raise InvalidInput(
            f"pixels are {pixels.dtype.name} {list(pixels.shape)}; expected uint8 (H, W, 3), or uint8 or uint16 (H, W)",
            field="image",
        )
    little_endian = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    if pixels.nbytes > MAX_FRAME_BYTES:
        return vision_pb2.Image(encoded=_to_png(pixels))
    height, width = pixels.shape[:2]
    stride_bytes = width * pixels.itemsize * (3 if pixels.ndim == 3 else 1)
    frame = FrameImage(little_endian.tobytes(), width, height, stride_bytes, pixel_format)
    return vision_pb2.Image(frame=_frame_to_proto(frame))


def _to_png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _frame_to_proto(frame: FrameImage) -> vision_pb2.RawFrame:
    return vision_pb2.RawFrame(
        width=frame.width,
        height=frame.height,
        stride_bytes=frame.stride_bytes,
        pixel_format=vision_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{frame.pixel_format}"),
        data=frame.data,
    )


def _frame_from_proto(message: vision_pb2.RawFrame, field: str) -> FrameImage:
    pixel_format = _PIXEL_FORMATS.get(message.pixel_format)
    if pixel_format is None:
        raise InvalidInput("is unspecified or unknown", field=f"{field}.pixel_format")
    for name in ("width", "height"):
        if getattr(message, name) < 1:
            raise InvalidInput("must be 1 or more", field=f"{field}.{name}")
    row_bytes = message.width * pixel_format.num_bytes
    stride_bytes = message.stride_bytes or row_bytes
    if stride_bytes < row_bytes:
        raise InvalidInput(f"is {stride_bytes}; a row needs {row_bytes} bytes", field=f"{field}.stride_bytes")
    needed = stride_bytes * (message.height - 1) + row_bytes
    data = message.data  # protobuf copies the bytes at each look
    if len(data) < needed:
        raise InvalidInput(f"holds {len(data)} bytes; the frame needs {needed}", field=f"{field}.data")
    return FrameImage(data, message.width, message.height, stride_bytes, pixel_format)
