import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fakes.outcomes import value_or_refusal
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.wire import images
from vplab.wire.images import DigestImage, EncodedImage, FrameImage, image_from_proto, image_to_proto

UINT32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("pixels", "pixel_format", "stride_bytes"),
    [
        (np.zeros((2, 5), np.uint8), "MONO8", 5),
        (np.zeros((2, 5), np.uint16), "MONO16", 10),
        (np.zeros((2, 5, 3), np.uint8), "RGB8", 15),
    ],
)
def test_pixels_become_a_raw_frame(pixels: np.ndarray, pixel_format: str, stride_bytes: int) -> None:
    content = image_from_proto(image_to_proto(pixels))
    assert content == FrameImage(pixels.tobytes(), 5, 2, stride_bytes, pixel_format)  # type: ignore[arg-type]


def test_big_endian_grey_is_sent_little_endian() -> None:
    content = image_from_proto(image_to_proto(np.array([[1, 256]], ">u2")))
    assert isinstance(content, FrameImage)
    assert content.data == bytes([1, 0, 0, 1])


def test_a_view_of_every_second_column_is_sent_as_it_looks() -> None:
    content = image_from_proto(image_to_proto(np.arange(8, dtype=np.uint8).reshape(2, 4)[:, ::2]))
    assert isinstance(content, FrameImage)
    assert content.data == bytes([0, 2, 4, 6])


def test_pixels_too_many_for_a_message_become_a_lossless_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FRAME_BYTES", 10)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    content = image_from_proto(image_to_proto(pixels))
    assert isinstance(content, EncodedImage)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content.data))), pixels)


def test_a_path_and_its_bytes_are_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "image.bin"
    path.write_bytes(b"file")
    for source in (path, str(path), b"file", EncodedImage(b"file")):
        assert image_from_proto(image_to_proto(source)) == EncodedImage(b"file")


def test_a_path_that_cannot_be_read_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="absent"):
        image_to_proto(tmp_path / "absent.png")


def test_a_digest_is_sent_as_a_digest() -> None:
    assert image_from_proto(image_to_proto(DigestImage("0" * 64))) == DigestImage("0" * 64)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2)), np.zeros((0, 2), np.uint8), np.zeros((2, 2, 3), np.uint16)],
)
def test_pixels_of_another_kind_are_invalid_input(pixels: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="expected"):
        image_to_proto(pixels)


@pytest.mark.parametrize("source", [3, None, [1, 2]])
def test_what_is_no_image_at_all_is_invalid_input(source: object) -> None:
    with pytest.raises(InvalidInput):
        image_to_proto(source)  # type: ignore[arg-type]


@given(UINT32, UINT32, UINT32, st.integers(-1, 9), st.binary(max_size=40))
def test_whatever_frame_a_peer_sends_is_checked(w: int, h: int, stride: int, pixel_format: int, data: bytes) -> None:
    frame = vision_pb2.RawFrame(width=w, height=h, stride_bytes=stride, pixel_format=pixel_format, data=data)  # type: ignore[arg-type]
    content = value_or_refusal(lambda: image_from_proto(vision_pb2.Image(frame=frame), field="i"))
    if isinstance(content, InvalidInput):
        assert content.violations[0].field.startswith("i.frame.")
    else:
        assert isinstance(content, FrameImage)
        assert content.stride_bytes * (content.height - 1) + content.width <= len(content.data)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (vision_pb2.Image(), "i.content"),
        (vision_pb2.Image(encoded=b""), "i.encoded"),
        (vision_pb2.Image(digest="ABC"), "i.digest"),
        (vision_pb2.Image(frame=vision_pb2.RawFrame()), "i.frame.pixel_format"),
        (vision_pb2.Image(frame=vision_pb2.RawFrame(pixel_format="PIXEL_FORMAT_RGB8")), "i.frame.width"),
        (
            vision_pb2.Image(
                frame=vision_pb2.RawFrame(pixel_format="PIXEL_FORMAT_RGB8", width=2, height=1, stride_bytes=5)
            ),
            "i.frame.stride_bytes",
        ),
        (
            vision_pb2.Image(
                frame=vision_pb2.RawFrame(pixel_format="PIXEL_FORMAT_RGB8", width=2, height=2, data=bytes(11))
            ),
            "i.frame.data",
        ),
    ],
)
def test_a_broken_image_is_invalid_input_at_its_field(message: vision_pb2.Image, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        image_from_proto(message, field="i")
    assert caught.value.violations[0].field == field


def test_the_last_row_of_a_frame_needs_no_padding() -> None:
    frame = vision_pb2.RawFrame(
        pixel_format="PIXEL_FORMAT_MONO8", width=2, height=2, stride_bytes=4, data=bytes([1, 2, 0, 0, 3, 4])
    )
    assert isinstance(image_from_proto(vision_pb2.Image(frame=frame)), FrameImage)
