"""Decoder calls through the device's queue, and the bridge that lets a worker thread wait for one."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vplab.errors import Cancelled, Unavailable
from vplab.runtime.device_queue import DeviceQueue, Priority
from vplab.segmentation.adapter_bank import BankedAdapter
from vplab.segmentation.ports import Decoded, LoadedSegmenter
from vplab.segmentation.values import Target
from vplab.vision.colour_evidence import TileColours
from vplab.vision.pipeline.decoding import CHUNK
from vplab.vision.preprocessing import FrameTransform, frame_transform
from vplab.vision.prompts import PromptTokens
from vplab.vision.specs import Preprocessing, SegmenterSpec

# A loop that has stopped never settles what was scheduled last; the thread must not wait for it for ever.
_LOOK_AGAIN_S = 1.0

CPU_PIECE = 8
"""Prompts of one image that a CPU decodes at a time: a click waits for those that have begun, and they take as long as
that many clicks. A GPU takes CHUNK in little more time than one."""

Decoder = LoadedSegmenter | BankedAdapter
"""What decodes for a call: a graph, or a row of a bank."""


@dataclass(frozen=True, eq=False)
class DecodeItem:
    """Up to CHUNK prompts of one image, all of equally many tokens."""

    decoder: Decoder
    spec: SegmenterSpec
    embedding: NDArray[Any]
    """(C, h, w) of the image, float32 or float16."""
    tokens: Sequence[PromptTokens]
    finish: Callable[[Decoded], Any] | None = None
    """Makes of the answer what is wanted, in the device's thread; None leaves it as it is."""
    early_features: NDArray[Any] | None = None
    """(E, h, w) of the image, for a decoder that takes them."""

    @property
    def batch_key(self) -> tuple[int, int]:
        """Items that may share a run: of one graph, and of equally many tokens, because padding tokens would take part
        in the decoder's attention.

        All adapters of a bank share its graph. A call without one has the plain graph, which takes a fifth less time
        than the bank's row of zeros; joining a batch would not make up for that.
        """
        graph = self.decoder.bank if isinstance(self.decoder, BankedAdapter) else self.decoder
        return id(graph), len(self.tokens[0].labels)


@dataclass(frozen=True)
class Urgency:
    """Who waits, and until when on ``time.monotonic()``'s clock."""

    priority: Priority
    deadline: float | None
    client: str = ""
    """On whose behalf; clients share the device evenly."""


DecodeQueue = DeviceQueue[DecodeItem, Any]


def decode_batch(items: Sequence[DecodeItem]) -> Sequence[Any]:
    """Run items of one batch key as one batch over images and prompts; runs on the device's thread."""
    spec = items[0].spec
    images: dict[int, int] = {}
    shown: list[DecodeItem] = []
    for item in items:
        if id(item.embedding) not in images:
            images[id(item.embedding)] = len(images)
            shown.append(item)
    early = [item.early_features for item in shown if item.early_features is not None]
    index = np.concatenate([np.full(len(item.tokens), images[id(item.embedding)], np.int64) for item in items])
    tokens = [token for item in items for token in item.tokens]
    masks = np.zeros((len(tokens), 1, *spec.low_res_hw), np.float32)
    for row, token in zip(masks, tokens, strict=True):
        if token.mask_logits is not None:
            row[0] = token.mask_logits
    logits, ious = _run(
        items,
        _stacked([item.embedding for item in shown]),
        index,
        np.stack([token.coords for token in tokens]),
        np.stack([token.labels for token in tokens]),
        masks,
        np.array([token.mask_logits is not None for token in tokens], np.float32),
        *([_stacked(early)] if early else []),
    )
    ends = np.cumsum([len(item.tokens) for item in items])
    return [
        _finished(item, (logits[end - len(item.tokens) : end], ious[end - len(item.tokens) : end]))
        for item, end in zip(items, ends.tolist(), strict=True)
    ]


def _finished(item: DecodeItem, decoded: Decoded) -> Any:
    if item.finish is None:
        return decoded
    try:
        return item.finish(decoded)
    except Exception as error:  # the queue raises it for this item alone
        return error


def _stacked(embeddings: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return (B, C, h, w) without a copy of a single one that is float32 already."""
    if len(embeddings) == 1:
        return np.asarray(embeddings[0][None], np.float32)
    return np.stack(embeddings, dtype=np.float32, casting="same_kind")


def _run(items: Sequence[DecodeItem], *values: NDArray[Any]) -> Decoded:
    first = items[0].decoder
    if not isinstance(first, BankedAdapter):
        return first.run(*values)
    decoders = [(item.decoder, len(item.tokens)) for item in items]
    places = [d.place for d, count in decoders if isinstance(d, BankedAdapter) for _ in range(count)]
    return first.bank.run(places, *values)


async def submit(queue: DecodeQueue, item: DecodeItem, urgency: Urgency) -> Any:
    """Decode one item. Raises as DeviceQueue.submit, and what its ``finish`` raises."""
    return await queue.submit(item, priority=urgency.priority, deadline=urgency.deadline, client=urgency.client)


async def decode(
    queue: DecodeQueue,
    decoder: Decoder,
    spec: SegmenterSpec,
    embedding: NDArray[Any],
    tokens: Sequence[PromptTokens],
    urgency: Urgency,
    piece: int = CHUNK,
    early_features: NDArray[Any] | None = None,
) -> Decoded:
    """Decode prompts of equally many tokens, ``piece`` of them in one item. Raises as DeviceQueue.submit."""
    items = [
        DecodeItem(decoder, spec, embedding, tokens[start : start + piece], early_features=early_features)
        for start in range(0, len(tokens), piece)
    ]
    parts: list[Decoded] = [await submit(queue, item, urgency) for item in items]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


class QueueDecoder:
    """Implements ``PromptDecoder`` for the pipeline, which runs in a worker thread: each call waits in the queue."""

    def __init__(
        self,
        queue: DecodeQueue,
        spec: SegmenterSpec,
        decoder: Decoder,
        preprocessing: Preprocessing,
        target: Target,
        urgency: Urgency,
        *,
        piece: int = CHUNK,
    ) -> None:
        """piece: prompts of one item of the queue."""
        self._piece = piece
        self._queue = queue
        self.spec = spec
        self._decoder = decoder
        self._preprocessing = preprocessing
        self._target = target
        self._urgency = urgency
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._waiting: Future[Decoded] | None = None
        transforms = [self.transform(tile) for tile in range(len(target.patches.tiles))]
        self._colours = TileColours(target.colours, transforms, spec)

    def transform(self, tile: int) -> FrameTransform:
        return frame_transform(self._target.patches.tiles[tile].area.size_hw, self._preprocessing)

    def sharpen(self, tile: int, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._colours.sharpen(tile, logits)

    def decode(self, tile: int, tokens: Sequence[PromptTokens]) -> Decoded:
        embedding, early = self._target.embeddings[tile], self._target.early(tile)
        call = decode(self._queue, self._decoder, self.spec, embedding, tokens, self._urgency, self._piece, early)
        with self._lock:
            if self._is_cancelled or self._loop.is_closed():
                call.close()
                raise Cancelled("the caller went away")
            self._waiting = asyncio.run_coroutine_threadsafe(call, self._loop)
        while True:
            try:
                return self._waiting.result(_LOOK_AGAIN_S)
            except CancelledError:
                raise Cancelled("the caller went away") from None
            except TimeoutError:
                if self._waiting.done():
                    raise  # the decoder's own
                if self._loop.is_closed():
                    raise Unavailable("the service is closing") from None

    def cancel(self) -> None:
        """Take the call that waits out of the queue, and refuse further ones, so that the thread ends."""
        with self._lock:
            self._is_cancelled = True
            if self._waiting is not None:
                self._waiting.cancel()
