"""Images are prepared once, within a bound of memory, and not for callers who are gone."""

import asyncio
import threading
import time

import numpy as np
import pytest

from fakes.embedding_server import png
from vplab.embedding import preparation as module
from vplab.embedding.preparation import ImagePreparation
from vplab.embedding.values import EncodedImage, FrameImage
from vplab.errors import DeadlineExceeded, InvalidInput, ResourceExhausted
from vplab.vision.images import ImageLimits, PixelFormat
from vplab.vision.preprocessing import preprocess
from vplab.vision.specs import Preprocessing

SMALL = Preprocessing(resize="longest_side", size=32, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
LARGE = Preprocessing(resize="fixed", size=64, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))


class Gate:
    """Holds decoding up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.num_begun = 0
        decode = module.decode_image

        def wait_and_decode(data: bytes, limits: ImageLimits) -> np.ndarray:
            self.num_begun += 1
            assert self.opened.wait(10)
            return decode(data, limits)

        monkeypatch.setattr(module, "decode_image", wait_and_decode)


async def test_one_decode_serves_every_encoder() -> None:
    images = ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=1 << 20)
    frame = FrameImage(bytes(range(60)), width=10, height=6, stride_bytes=10, pixel_format=PixelFormat.MONO8)
    prepared = await images.prepare(frame, [SMALL, LARGE, SMALL], None)
    assert prepared.image_hw == (6, 10)
    pixels = np.repeat(np.arange(60, dtype=np.uint8).reshape(6, 10, 1), 3, axis=2)
    for preprocessing in (SMALL, LARGE):
        expected = preprocess(pixels, preprocessing).tensor
        assert np.array_equal(prepared.inputs[preprocessing.digest].tensor, expected)


async def test_too_many_waiting_bytes_are_refused_and_one_large_image_never(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    data = png()
    images = ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=len(data) // 2)
    first = asyncio.create_task(images.prepare(EncodedImage(data), [SMALL], None))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await images.prepare(EncodedImage(data), [SMALL], None)
    assert caught.value.retry_after_s is not None
    gate.opened.set()
    assert (await first).image_hw == (60, 90)
    assert (await images.prepare(EncodedImage(data), [SMALL], None)).image_hw == (60, 90)


async def test_work_whose_deadline_passed_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    images = ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=1 << 20)
    with pytest.raises(DeadlineExceeded):
        await images.prepare(EncodedImage(png()), [SMALL], time.monotonic() - 1)
    assert gate.num_begun == 0


async def test_a_caller_who_leaves_takes_the_waiting_work_along(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    images = ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=1 << 20)
    first = asyncio.create_task(images.prepare(EncodedImage(png()), [SMALL], None))
    second = asyncio.create_task(images.prepare(EncodedImage(png(1)), [SMALL], None))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    images.close()
    assert gate.num_begun == 1


async def test_a_bad_frame_is_refused_when_its_digest_is_taken() -> None:
    images = ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=1 << 20)
    with pytest.raises(InvalidInput):
        await images.digest(FrameImage(b"123", 10, 10, 10, PixelFormat.MONO8))
