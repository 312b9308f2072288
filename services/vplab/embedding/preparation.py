"""Digests, decoding and preprocessing, off the event loop and within a bound of memory."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from vplab.embedding import metrics
from vplab.embedding.values import EncodedImage, FrameImage
from vplab.errors import DeadlineExceeded, ResourceExhausted
from vplab.runtime.device_queue import Priority
from vplab.runtime.fair_threads import FairThreads
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

_RETRY_AFTER_S: Final = 1.0
_MAX_WAITING: Final = 1 << 20
"""Far beyond what can happen: bytes bound what waits."""
_SMALL_BYTES: Final = 128 << 10
"""What is hashed in less time than a thread needs to begin and to be heard of."""


@dataclass(frozen=True)
class PreparedImage:
    """One image as its encoders take it."""

    image_hw: tuple[int, int]
    """Size of the oriented original, in pixels."""
    inputs: dict[str, Preprocessed]
    """By preprocessing digest."""


class ImagePreparation:
    """Threads for images, and as many that give way for what nobody waits for.

    Decoded pixels live only inside a thread's turn, so at most ``num_threads`` images of each kind are in memory as
    pixels. ``max_waiting_bytes`` bounds the files and frames that wait, but for one of each client: who sent many must
    not make the server refuse who sends one.
    """

    def __init__(self, limits: ImageLimits, num_threads: int, max_waiting_bytes: int) -> None:
        self.limits = limits
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._num_of_client: Counter[str] = Counter()
        self._threads = FairThreads("images", num_threads, max_waiting=_MAX_WAITING, num_background_threads=num_threads)

    async def digest(self, image: EncodedImage | FrameImage, priority: Priority, client: str) -> str:
        """Return the image digest. Raises InvalidInput for a frame that does not fit its data, ResourceExhausted."""
        if len(image.data) <= _SMALL_BYTES:
            return _digest(image, self.limits)
        return await self._run(image, lambda: _digest(image, self.limits), priority, client)

    async def prepare(
        self,
        image: EncodedImage | FrameImage,
        preprocessings: Iterable[Preprocessing],
        deadline: float | None,
        priority: Priority,
        client: str,
    ) -> PreparedImage:
        """Decode an image once and make it an input of each encoder.

        deadline: on ``time.monotonic()``'s clock; work that begins later is not begun.
        Raises InvalidInput for an image that is unreadable or too large, ResourceExhausted when too much waits.
        """

        def work() -> PreparedImage:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineExceeded("the deadline passed before the image was decoded")
            return self.read(image, preprocessings)

        return await self._run(image, work, priority, client)

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
    def waiting(self, image: EncodedImage | FrameImage, client: str) -> Iterator[None]:
        """Count a file or frame among those that wait. Raises ResourceExhausted when too much waits."""
        num_bytes = len(image.data)
        if self._num_of_client[client] and self._waiting_bytes + num_bytes > self._max_waiting_bytes:
            raise ResourceExhausted("too many images wait to be decoded", retry_after_s=_RETRY_AFTER_S)
        self._waiting_bytes += num_bytes
        self._num_of_client[client] += 1
        try:
            yield
        finally:
            self._waiting_bytes -= num_bytes
            self._num_of_client[client] -= 1
            if not self._num_of_client[client]:
                del self._num_of_client[client]

    async def finish(self, work: Callable[[], Value], priority: Priority, client: str) -> Value:
        """Do in a thread what is left once an image is encoded; it waits for nothing, so nothing bounds it."""
        return await self._threads.run(work, priority, client)

    async def close(self) -> None:
        """Drop what waits; what is being worked on ends by itself."""
        await self._threads.close()

    async def _run(
        self, image: EncodedImage | FrameImage, work: Callable[[], Value], priority: Priority, client: str
    ) -> Value:
        with self.waiting(image, client):
            return await self._threads.run(work, priority, client)


def _digest(image: EncodedImage | FrameImage, limits: ImageLimits) -> str:
    if isinstance(image, EncodedImage):
        return encoded_digest(image.data)
    return frame_digest(image.data, image.width, image.height, image.stride_bytes, image.pixel_format, limits)


def _decode(image: EncodedImage | FrameImage, limits: ImageLimits) -> ImageRGB:
    if isinstance(image, EncodedImage):
        return decode_image(image.data, limits)
    return frame_to_rgb(image.data, image.width, image.height, image.stride_bytes, image.pixel_format, limits)
