"""Images are prepared once, within a bound of memory, and not for callers who are gone."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from fakes.embedding_server import png
from vplab.embedding import preparation as module
from vplab.embedding.preparation import ImagePreparation
from vplab.embedding.values import EncodedImage, FrameImage
from vplab.errors import DeadlineExceeded, InvalidInput, ResourceExhausted
from vplab.runtime.device_queue import Priority
from vplab.vision.images import ImageLimits, PixelFormat
from vplab.vision.preprocessing import preprocess
from vplab.vision.specs import Preprocessing

SMALL = Preprocessing(resize="longest_side", size=32, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
LARGE = Preprocessing(resize="fixed", size=64, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))


CLICK = (Priority.INTERACTIVE, "somebody")
Prepare = Callable[..., ImagePreparation]


@pytest.fixture
async def prepare() -> AsyncIterator[Prepare]:
    opened = []

    def made(max_waiting_bytes: int = 1 << 20) -> ImagePreparation:
        opened.append(ImagePreparation(ImageLimits(), num_threads=1, max_waiting_bytes=max_waiting_bytes))
        return opened[-1]

    yield made
    for images in opened:
        await images.close()


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


async def test_one_decode_serves_every_encoder(prepare: Prepare) -> None:
    images = prepare()
    frame = FrameImage(bytes(range(60)), width=10, height=6, stride_bytes=10, pixel_format=PixelFormat.MONO8)
    prepared = await images.prepare(frame, [SMALL, LARGE, SMALL], None, *CLICK)
    assert prepared.image_hw == (6, 10)
    pixels = np.repeat(np.arange(60, dtype=np.uint8).reshape(6, 10, 1), 3, axis=2)
    for preprocessing in (SMALL, LARGE):
        expected = preprocess(pixels, preprocessing).tensor
        assert np.array_equal(prepared.inputs[preprocessing.digest].tensor, expected)


async def test_too_many_waiting_bytes_are_refused_and_one_large_image_never(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    data = png()
    images = prepare(max_waiting_bytes=len(data) // 2)
    first = asyncio.create_task(images.prepare(EncodedImage(data), [SMALL], None, *CLICK))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await images.prepare(EncodedImage(data), [SMALL], None, *CLICK)
    assert caught.value.retry_after_s is not None
    gate.opened.set()
    assert (await first).image_hw == (60, 90)
    assert (await images.prepare(EncodedImage(data), [SMALL], None, *CLICK)).image_hw == (60, 90)


async def test_a_flood_of_one_client_does_not_make_another_be_refused_or_wait_for_all_of_it(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    data = png()
    images = prepare(max_waiting_bytes=4 * len(data))
    order: list[str] = []

    async def send(priority: Priority, client: str) -> None:
        await images.prepare(EncodedImage(data), [SMALL], None, priority, client)
        order.append(client)

    flood = [asyncio.create_task(send(Priority.INLINE, "flood")) for _ in range(4)]
    await asyncio.sleep(0.05)
    with pytest.raises(ResourceExhausted):
        await send(Priority.INLINE, "flood")
    others = [asyncio.create_task(send(Priority.INLINE, "line")), asyncio.create_task(send(*CLICK))]
    await asyncio.sleep(0.05)
    gate.opened.set()
    await asyncio.gather(*flood, *others)
    assert order[1] == "somebody", "one image had begun when the click came"
    assert order.index("line") <= 3


async def test_work_whose_deadline_passed_is_not_begun(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    images = prepare()
    with pytest.raises(DeadlineExceeded):
        await images.prepare(EncodedImage(png()), [SMALL], time.monotonic() - 1, *CLICK)
    assert gate.num_begun == 0


async def test_a_caller_who_leaves_takes_the_waiting_work_along(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    images = prepare()
    first = asyncio.create_task(images.prepare(EncodedImage(png()), [SMALL], None, *CLICK))
    second = asyncio.create_task(images.prepare(EncodedImage(png(1)), [SMALL], None, *CLICK))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await first
    assert gate.num_begun == 1


async def test_a_bad_frame_is_refused_when_its_digest_is_taken(prepare: Prepare) -> None:
    images = prepare()
    with pytest.raises(InvalidInput):
        await images.digest(FrameImage(b"123", 10, 10, 10, PixelFormat.MONO8), *CLICK)
