"""Thousands of broken pictures and frames: each one is decoded or is InvalidInput, and nothing else ever happens."""

import io
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fakes.malformed import mutated_bytes
from fakes.outcomes import value_or_refusal
from vplab.errors import InvalidInput
from vplab.vision.images import (
    ImageLimits,
    PixelFormat,
    decode_image,
    frame_digest,
    frame_to_rgb,
    read_size_hw,
)

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000)
NUM_FILES = 6000
REASONS = {"IMAGE_UNREADABLE", "IMAGE_TOO_LARGE"}


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def good_files() -> list[bytes]:
    """Return small files of every format, in many of its variants."""
    noise = np.random.default_rng(0).integers(0, 2**16, (24, 31), dtype=np.uint16)
    grey = Image.fromarray((noise >> 8).astype(np.uint8))
    colour = Image.merge("RGB", [grey, grey.rotate(180), grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    palette, alpha, one_bit = colour.convert("P"), colour.convert("RGBA"), grey.convert("1")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = [encode(palette, "PNG", transparency=bytes(range(200)))]
    files += [encode(i, "PNG", exif=exif) for i in (colour, grey, Image.fromarray(noise), palette, alpha, one_bit)]
    files += [encode(colour, f, save_all=True, append_images=[grey.convert("RGB")]) for f in ("PNG", "TIFF", "WEBP")]
    files += [encode(i, "BMP") for i in (colour, grey, palette, one_bit, alpha)]
    files += [encode(i, "WEBP", lossless=lossless, exif=exif) for i in (colour, alpha) for lossless in (True, False)]
    for image in (colour, grey, colour.convert("CMYK")):
        files += [encode(image, "JPEG"), encode(image, "JPEG", progressive=True, exif=exif)]
    for image in (colour, grey, Image.fromarray(noise), palette, one_bit):
        files += [encode(image, "TIFF", compression=c) for c in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")]
    return [
        *files,
        encode(colour, "TIFF", compression="jpeg", exif=exif),
        encode(one_bit, "TIFF", compression="group4"),
    ]


def check(data: bytes) -> str:
    """Decode and return what happened; fails for anything but pixels or InvalidInput."""
    outcome = value_or_refusal(lambda: decode_image(data, LIMITS))
    size = value_or_refusal(lambda: read_size_hw(data, LIMITS))
    if isinstance(outcome, InvalidInput):
        assert outcome.reason in REASONS
        assert [v.field for v in outcome.violations] == ["image.encoded"]
        return outcome.reason
    assert outcome.dtype == np.uint8
    assert outcome.shape[2:] == (3,)
    assert size == outcome.shape[:2]
    return "decoded"


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_decoded_or_refused(seed: int) -> None:
    draw, files, outcomes = random.Random(seed), good_files(), Counter[str]()
    for _ in range(NUM_FILES // 4):
        data = draw.choice(files)
        for _ in range(draw.choice((1, 1, 2, 4))):
            data = mutated_bytes(data, draw)
        if draw.random() < 0.3 and data:  # sizes, types and offsets stand in front
            position = draw.randrange(min(len(data), 80))
            data = data[:position] + bytes([draw.choice((0, 1, 127, 128, 255))]) + data[position + 1 :]
        outcomes[check(data)] += 1
    assert {"decoded", "IMAGE_UNREADABLE"} <= set(outcomes)  # the mutations are neither too weak nor too strong


@given(
    st.binary(max_size=500), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"])
)
@settings(max_examples=1500, deadline=None)
def test_random_bytes_behind_a_signature_are_decoded_or_refused(data: bytes, signature: bytes) -> None:
    check(signature + data)


sizes = st.integers(-2, 70) | st.integers(0, 2**32 - 1)


@given(st.binary(max_size=2000), sizes, sizes, sizes, st.sampled_from(PixelFormat))
@settings(max_examples=1500, deadline=None)
def test_any_frame_is_read_or_refused(
    data: bytes, width: int, height: int, stride_bytes: int, pixel_format: PixelFormat
) -> None:
    frame = (data, width, height, stride_bytes, pixel_format, LIMITS)
    pixels = value_or_refusal(lambda: frame_to_rgb(*frame))
    digest = value_or_refusal(lambda: frame_digest(*frame))
    if isinstance(pixels, InvalidInput):
        assert isinstance(digest, InvalidInput)
        assert pixels.violations[0].field.startswith("image.frame")
    else:
        assert pixels.shape == (height, width, 3)
        assert not isinstance(digest, InvalidInput)
