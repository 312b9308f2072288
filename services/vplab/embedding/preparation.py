"""Digests, decoding and preprocessing, off the event loop and within a bound of memory."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from vplab.embedding import metrics
from vplab.embedding.values import EncodedImage, FrameImage
from vplab.errors import DeadlineExceeded, ResourceExhausted
from vplab.runtime.giving_way import give_way
from vplab.vision.images import (
    ImageLimits,
    ImageRGB,
    decode_image,
    encoded_digest,
    frame_digest,
    frame_to_rgb,
)
from vplab.vision.preprocessing import Preprocessed, preprocess
from vplab.vision.specs import Preprocessing

Value = TypeVar("Value")

_RETRY_AFTER_S = 1.0
_SMALL_BYTES = 128 << 10
"""What is hashed in less time than a thread needs to begin and to be heard of."""


@dataclass(frozen=True)
class PreparedImage:
    """One image as its encoders take it."""

    image_hw: tuple[int, int]
    """Size of the oriented original, in pixels."""
    inputs: dict[str, Preprocessed]
    """By preprocessing digest."""


class ImagePreparation:
    """Two pools of threads for images: one for what is waited for, one that gives way.

    Decoded pixels live only inside a thread's turn, so at most ``num_threads`` images of each pool are in memory as
    pixels; the files and frames that wait are bounded by ``max_waiting_bytes``.
    """

    def __init__(self, limits: ImageLimits, num_threads: int, max_waiting_bytes: int) -> None:
        self.limits = limits
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="image")
        self._background = ThreadPoolExecutor(num_threads, thread_name_prefix="image-batch", initializer=give_way)

    async def digest(self, image: EncodedImage | FrameImage) -> str:
        """Return the image digest. Raises InvalidInput for a frame that does not fit its data."""
        if len(image.data) <= _SMALL_BYTES:
            return _digest(image, self.limits)
        return await self._run(image, lambda: _digest(image, self.limits))

    async def prepare(
        self,
        image: EncodedImage | FrameImage,
        preprocessings: Iterable[Preprocessing],
        deadline: float | None,
        *,
        is_background: bool = False,
    ) -> PreparedImage:
        """Decode an image once and make it an input of each encoder.

        deadline: on ``time.monotonic()``'s clock; work that begins later is not begun. is_background: whether nobody
        waits for it, so that it gives way to everything else.
        Raises InvalidInput for an image that is unreadable or too large, ResourceExhausted when too much waits.
        """

        def work() -> PreparedImage:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before the image was decoded")
            return self.read(image, preprocessings)

        return await self._run(image, work, is_background=is_background)

    def read(self, image: EncodedImage | FrameImage, preprocessings: Iterable[Preprocessing]) -> PreparedImage:
        """Decode an image once and make it an input of each encoder, in the thread that calls.

        Raises InvalidInput for an image that is unreadable or too large.
        """
        began = time.monotonic()
        pixels = _decode(image, self.limits)
        wanted = {preprocessing.digest: preprocessing for preprocessing in preprocessings}
        inputs = {digest: preprocess(pixels, preprocessing) for digest, preprocessing in wanted.items()}
        metrics.PREPARE_SECONDS.observe(time.monotonic() - began)
        return PreparedImage((pixels.shape[0], pixels.shape[1]), inputs)

    @contextmanager
    def waiting(self, image: EncodedImage | FrameImage) -> Iterator[None]:
        """Count a file or frame among those that wait. Raises ResourceExhausted when too much waits."""
        num_bytes = len(image.data)
        if self._waiting_bytes and self._waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise ResourceExhausted("too many images wait to be decoded", retry_after_s=_RETRY_AFTER_S)
        self._waiting_bytes += num_bytes
        try:
            yield
        finally:
            self._waiting_bytes -= num_bytes

    async def finish(self, work: Callable[[], Value], *, is_background: bool) -> Value:
        """Do in a thread what is left once an image is encoded; it waits for nothing, so nothing bounds it."""
        threads = self._background if is_background else self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def close(self) -> None:
        """Drop what waits; what is being worked on ends by itself."""
        for threads in (self._threads, self._background):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self, image: EncodedImage | FrameImage, work: Callable[[], Value], *, is_background: bool = False
    ) -> Value:
        with self.waiting(image):
            return await self.finish(work, is_background=is_background)


def _digest(image: EncodedImage | FrameImage, limits: ImageLimits) -> str:
    if isinstance(image, EncodedImage):
        return encoded_digest(image.data)
    return frame_digest(image.data, image.width, image.height, image.stride_bytes, image.pixel_format, limits)


def _decode(image: EncodedImage | FrameImage, limits: ImageLimits) -> ImageRGB:
    if isinstance(image, EncodedImage):
        return decode_image(image.data, limits)
    return frame_to_rgb(image.data, image.width, image.height, image.stride_bytes, image.pixel_format, limits)
