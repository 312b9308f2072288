"""Decoding gives the picture a person sees, and refuses what is too large or broken by naming the field."""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from vplab.errors import InvalidInput
from vplab.vision.images import (
    ImageLimits,
    PixelFormat,
    decode_image,
    encoded_digest,
    frame_digest,
    frame_to_rgb,
    read_size_hw,
)

SMALL = ImageLimits(max_bytes=1_000_000, max_pixels=10_000)


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 10, (x + y) * 3], axis=2).astype(np.uint8)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def hand_made_png(width: int, height: int, colour_type: int, depth: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_come_back_exactly(file_format: str, options: dict[str, object]) -> None:
    data = encode(Image.fromarray(gradient()), file_format, **options)
    decoded = decode_image(data)
    assert np.array_equal(decoded, gradient())
    assert decoded.flags.c_contiguous
    assert read_size_hw(data) == (24, 40)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_jpeg_equals_pillow(options: dict[str, object]) -> None:
    data = encode(Image.fromarray(gradient(123, 77)), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data), expected)


def test_grey_jpeg_has_three_equal_channels() -> None:
    data = encode(Image.fromarray(gradient()[:, :, 0]), "JPEG")
    decoded = decode_image(data)
    assert np.array_equal(decoded[:, :, 0], decoded[:, :, 2])


def test_cmyk_jpeg_is_converted() -> None:
    cmyk = Image.fromarray(np.full((16, 16, 3), (200, 30, 90), dtype=np.uint8)).convert("CMYK")
    decoded = decode_image(encode(cmyk, "JPEG", quality=100))
    assert np.abs(decoded.astype(int) - (200, 30, 90)).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_png_mode_becomes_rgb_without_its_alpha(mode: str) -> None:
    source = Image.fromarray(gradient()).convert(mode)
    if mode in ("LA", "RGBA"):
        source.putalpha(Image.fromarray(gradient()[:, :, 1]))
    expected = np.asarray(source.convert("RGB"))
    assert np.array_equal(decode_image(encode(source, "PNG")), expected)


def test_palette_with_transparency_keeps_its_colours() -> None:
    source = Image.fromarray(gradient()).convert("P")
    data = encode(source, "PNG", transparency=bytes(range(256)))
    assert np.array_equal(decode_image(data), np.asarray(source.convert("RGB")))


def test_16_bit_grey_png_is_divided_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_16_bit_colour_png_keeps_the_high_byte() -> None:
    rows = b"\x00" + struct.pack(">6H", 0x12FF, 0xFFFF, 0x0000, 0x00FF, 0x8001, 0x7F00)
    decoded = decode_image(hand_made_png(2, 1, colour_type=2, depth=16, rows=rows))
    assert decoded.tolist() == [[[0x12, 0xFF, 0x00], [0x00, 0x80, 0x7F]]]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_16_bit_tiff_is_divided_by_257(compression: str | None) -> None:
    values = (np.arange(600, dtype=np.uint32) * 109).astype(np.uint16).reshape(20, 30)
    decoded = decode_image(encode(Image.fromarray(values), "TIFF", compression=compression))
    assert np.array_equal(decoded[:, :, 1], np.round(values / 257).astype(np.uint8))


def test_big_endian_16_bit_tiff_is_read() -> None:
    values = np.array([[0, 65535], [257, 514]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes())
    assert decode_image(encode(image, "TIFF"))[:, :, 0].tolist() == [[0, 255], [1, 2]]


def test_white_is_zero_16_bit_tiff_is_inverted() -> None:
    values = np.array([[0, 65535]], dtype=np.uint16)
    data = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    if Image.open(io.BytesIO(data)).tag_v2[262] != 0:  # pragma: no cover - depends on Pillow's writer
        pytest.skip("this Pillow writes no inverted TIFF")
    assert decode_image(data)[0, :, 0].tolist() == [255, 0]


def test_float_tiff_is_refused_with_advice() -> None:
    data = encode(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(InvalidInput, match="convert to 8 or 16 bit") as caught:
        decode_image(data)
    assert caught.value.reason == "IMAGE_UNREADABLE"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(Image.fromarray(gradient()), file_format, exif=orientation_exif(orientation), **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    decoded = decode_image(data)
    assert np.array_equal(decoded, expected)
    assert decoded.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))
    assert read_size_hw(data) == decoded.shape[:2]


def test_png_orientation_is_found_behind_the_pixels() -> None:
    png = encode(Image.fromarray(gradient()), "PNG")
    exif = png_chunk(b"eXIf", orientation_exif(6).tobytes()[6:])
    data = png[:-12] + exif + png[-12:]
    assert read_size_hw(data) == (40, 24)
    assert decode_image(data).shape == (40, 24, 3)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00MM\x00*\x00"])
def test_damaged_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    data = encode(Image.fromarray(gradient()), "JPEG", exif=exif)
    assert decode_image(data).shape == (24, 40, 3)


@pytest.mark.parametrize(("file_format", "options"), [("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_of_several_frames_the_first_is_used(file_format: str, options: dict[str, object]) -> None:
    second = Image.fromarray(255 - gradient())
    data = encode(Image.fromarray(gradient()), file_format, save_all=True, append_images=[second], **options)
    assert np.array_equal(decode_image(data), gradient())


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_is_unreadable(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    for keep in (0, 1, 2, 12, 30, 60, len(data) // 2):
        with pytest.raises(InvalidInput) as caught:
            decode_image(data[:keep])
        assert caught.value.reason == "IMAGE_UNREADABLE"
        assert caught.value.violations[0].field == "image.encoded"


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"%PDF-1.7", b"not an image", bytes(1000)])
def test_other_content_is_unreadable(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_image(data)
    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_a_zero_size_png_is_unreadable() -> None:
    for size in ((0, 5), (5, 0)):
        with pytest.raises(InvalidInput):
            decode_image(hand_made_png(*size, colour_type=0, depth=8, rows=b""))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_too_many_pixels_are_refused_before_decoding(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    data = encode(Image.fromarray(gradient(120, 100)), file_format)

    def decoded_anyway(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded_anyway)
    monkeypatch.setattr("simplejpeg.decode_jpeg", decoded_anyway)
    with pytest.raises(InvalidInput, match="12,000 pixels") as caught:
        decode_image(data, SMALL)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert caught.value.metadata == {"limit": "10000", "actual": "12000"}


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = hand_made_png(60_000, 60_000, colour_type=0, depth=8, rows=bytes(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidInput, match=r"3,600,000,000 pixels") as caught:
            decode_image(bomb)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_jpeg_with_endless_scans_is_refused() -> None:
    data = encode(Image.fromarray(gradient()), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidInput, match="scans"):
        decode_image(data[:scan] + data[scan:-2] * 600 + data[-2:])


def test_a_large_run_length_bmp_is_refused() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 4000, 4000, 1, 8, 1, 0, 0, 0, 256, 0)
    data = struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + 40 + 1024) + header + bytes(1024) + b"\x00\x01"
    with pytest.raises(InvalidInput) as caught:
        decode_image(data)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_image(bytes(2_000_000), SMALL)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_odd_tiff_metadata_does_not_warn() -> None:
    data = bytearray(encode(Image.fromarray(gradient()), "TIFF", tiffinfo={65000: "x" * 100}))
    entry = data.index(struct.pack("<HHI", 65000, 2, 101))
    data[entry + 4 : entry + 8] = struct.pack("<I", 2**31)
    with pytest.warns(UserWarning, match="larger than file"):
        Image.open(io.BytesIO(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode_image(bytes(data)), gradient())


def to_frame(image: np.ndarray, pixel_format: PixelFormat, padding: int) -> tuple[bytes, int]:
    if pixel_format is PixelFormat.BGR8:
        image = image[:, :, ::-1]
    elif pixel_format is PixelFormat.MONO8:
        image = image[:, :, 0]
    elif pixel_format is PixelFormat.MONO16:
        image = image[:, :, 0].astype("<u2") * 257
    rows = [row.tobytes() for row in image]
    return b"".join(row + b"\xee" * padding for row in rows), len(rows[0]) + padding


@pytest.mark.parametrize("padding", [0, 1, 7])
@pytest.mark.parametrize("pixel_format", PixelFormat)
def test_frames_are_read_with_their_stride(pixel_format: PixelFormat, padding: int) -> None:
    image = gradient()
    data, stride = to_frame(image, pixel_format, padding)
    last_row_unpadded = data[: len(data) - padding]
    expected = image if pixel_format in ("RGB8", "BGR8") else np.repeat(image[:, :, :1], 3, axis=2)
    assert np.array_equal(frame_to_rgb(last_row_unpadded, 40, 24, stride, pixel_format), expected)
    if not padding:
        assert np.array_equal(frame_to_rgb(data, 40, 24, 0, pixel_format), expected)


def test_a_frames_digest_ignores_its_padding() -> None:
    tight, _ = to_frame(gradient(), PixelFormat.BGR8, 0)
    padded, stride = to_frame(gradient(), PixelFormat.BGR8, 8)
    expected = hashlib.sha256(b"frame:40x24:PIXEL_FORMAT_BGR8:" + tight).hexdigest()
    assert frame_digest(tight, 40, 24, 0, PixelFormat.BGR8) == expected
    assert frame_digest(padded, 40, 24, stride, PixelFormat.BGR8) == expected
    assert frame_digest(tight, 40, 24, 0, PixelFormat.RGB8) != expected


def test_a_files_digest_is_that_of_its_bytes() -> None:
    assert encoded_digest(b"abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("width", "height", "stride", "num_bytes", "field"),
    [
        (0, 4, 0, 100, "image.frame.width"),
        (4, 0, 0, 100, "image.frame.height"),
        (-1, 4, 0, 100, "image.frame.width"),
        (10, 4, 29, 200, "image.frame.stride_bytes"),
        (10, 4, 30, 119, "image.frame.data"),
        (10, 4, 32, 125, "image.frame.data"),
        (10, 4, 2**32 - 1, 200, "image.frame.data"),
        (10, 4, 0, 0, "image.frame.data"),
    ],
)
def test_a_frame_that_does_not_fit_names_the_field(
    width: int, height: int, stride: int, num_bytes: int, field: str
) -> None:
    for read in (frame_to_rgb, frame_digest):
        with pytest.raises(InvalidInput) as caught:
            read(bytes(num_bytes), width, height, stride, PixelFormat.RGB8)
        assert caught.value.violations[0].field == field
        assert caught.value.reason == "INVALID_FIELD"


@pytest.mark.parametrize("read", [frame_to_rgb, frame_digest])
def test_a_huge_frame_is_refused_without_its_data(read: Callable[..., object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(b"", 2**32 - 1, 2**32 - 1, 0, PixelFormat.MONO8)
    assert caught.value.reason == "IMAGE_TOO_LARGE"
