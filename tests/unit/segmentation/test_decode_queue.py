"""Decoder calls in batches, and the bridge from worker threads."""

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from vplab.errors import Cancelled
from vplab.runtime.device_queue import Priority
from vplab.segmentation.decode_queue import DecodeItem, DecodeQueue, QueueDecoder, Urgency, decode, decode_batch
from vplab.segmentation.ports import Decoded
from vplab.segmentation.values import Target
from vplab.vision.matching import PatchFeatures, TargetPatches
from vplab.vision.preprocessing import FrameTransform
from vplab.vision.prompts import PromptTokens
from vplab.vision.specs import Preprocessing, SegmenterSpec

SPEC = SegmenterSpec(family="t", architecture="t", input_size=64, embedding_shape=(2, 4, 4), low_res_hw=(16, 16))
URGENCY = Urgency(Priority.INTERACTIVE, None)


class CountingSegmenter:
    """Answers each prompt with its image's mean, its first coordinate and its mask's mean; remembers its calls."""

    device = "cpu"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, int]] = []

    def run(
        self,
        image_embedding: NDArray[np.float32],
        image_index: NDArray[np.int64],
        point_coords: NDArray[np.float32],
        point_labels: NDArray[np.float32],
        mask_input: NDArray[np.float32],
        has_mask_input: NDArray[np.float32],
        early_features: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.shapes.append((len(image_embedding), len(image_index), point_labels.shape[1]))
        value = image_embedding[image_index].mean(axis=(1, 2, 3)) + point_coords[:, 0, 0]
        value += has_mask_input * mask_input.mean(axis=(1, 2, 3))
        if early_features is not None:
            value += early_features[image_index].mean(axis=(1, 2, 3))
        return np.broadcast_to(value[:, None, None, None], (len(value), 4, 16, 16)).copy(), np.ones((len(value), 4))


def embedding(value: float) -> NDArray[np.float16]:
    return np.full((2, 4, 4), value, np.float16)


def tokens(x: float, count: int = 2, mask: float | None = None) -> PromptTokens:
    logits = None if mask is None else np.full((16, 16), mask, np.float32)
    return PromptTokens(np.full((count, 2), x, np.float32), np.ones(count, np.float32), logits)


def test_items_are_finished_by_themselves_and_one_that_fails_fails_alone() -> None:
    def fail(_: Decoded) -> None:
        raise ValueError("this one")

    image = embedding(100)
    items = [
        DecodeItem(CountingSegmenter(), SPEC, image, [tokens(1)], lambda decoded: float(decoded[0].max())),
        DecodeItem(CountingSegmenter(), SPEC, image, [tokens(2)], fail),
        DecodeItem(CountingSegmenter(), SPEC, image, [tokens(3)]),
    ]

    first, second, third = decode_batch(items)

    assert first == 101
    assert isinstance(second, ValueError)
    assert third[0].shape == (1, 4, 16, 16)


def test_a_batch_of_several_images_gives_each_item_its_own() -> None:
    segmenter = CountingSegmenter()
    one, two = embedding(100), embedding(200)
    items = [
        DecodeItem(segmenter, SPEC, one, [tokens(1), tokens(2)]),
        DecodeItem(segmenter, SPEC, two, [tokens(3, mask=10)]),
        DecodeItem(segmenter, SPEC, one, [tokens(4)]),
    ]
    results = decode_batch(items)
    assert [logits[:, 0, 0, 0].tolist() for logits, _ in results] == [[101, 102], [213], [104]]
    assert segmenter.shapes == [(2, 4, 2)]


def test_the_early_features_of_a_batch_are_stacked_as_its_images_are() -> None:
    segmenter = CountingSegmenter()
    one, two = embedding(100), embedding(200)
    early = [np.full((5, 4, 4), value, np.float16) for value in (1000, 2000)]
    items = [
        DecodeItem(segmenter, SPEC, image, [tokens(x)], early_features=feature)
        for image, x, feature in ((two, 1, early[1]), (one, 2, early[0]), (two, 3, early[1]))
    ]
    assert [logits[0, 0, 0, 0] for logits, _ in decode_batch(items)] == [2201, 1102, 2203]
    assert segmenter.shapes == [(2, 3, 2)]


def test_only_prompts_of_equally_many_tokens_and_one_segmenter_share_a_key() -> None:
    segmenter = CountingSegmenter()
    keys = [
        DecodeItem(s, SPEC, embedding(0), [tokens(0, count)]).batch_key
        for s, count in ((segmenter, 2), (segmenter, 2), (segmenter, 3), (CountingSegmenter(), 2))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def make_queue() -> DecodeQueue:
    queue = DecodeQueue(decode_batch, name="test", capacity=16, max_batch_size=4, batch_key=lambda i: i.batch_key)
    queue.start()
    return queue


async def test_many_prompts_are_cut_into_calls_of_32() -> None:
    queue, segmenter = make_queue(), CountingSegmenter()
    logits, ious = await decode(queue, segmenter, SPEC, embedding(0), [tokens(n) for n in range(70)], URGENCY)
    await queue.close()
    assert logits[:, 0, 0, 0].tolist() == list(range(70))
    assert ious.shape == (70, 4)
    assert [n for _, n, _ in segmenter.shapes] == [32, 32, 6]


def target() -> Target:
    frame = FrameTransform((64, 64), (64, 64), (64, 64))
    patches = TargetPatches.of([PatchFeatures(np.ones((4, 4, 1), np.float32), frame, 16)])
    return Target("0" * 64, (64, 64), patches, (embedding(7),), (None,))


async def test_a_thread_waits_for_the_queue_and_a_caller_that_left_ends_it() -> None:
    queue, segmenter = make_queue(), CountingSegmenter()
    preprocessing = Preprocessing(resize="longest_side", size=64, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
    decoder = QueueDecoder(queue, SPEC, segmenter, preprocessing, target(), URGENCY, piece=4)
    logits, _ = await asyncio.to_thread(decoder.decode, 0, [tokens(n) for n in range(1, 8)])
    assert logits[:, 0, 0, 0].tolist() == [8, 9, 10, 11, 12, 13, 14]
    assert [n for _, n, _ in segmenter.shapes] == [4, 3]
    assert decoder.transform(0) == FrameTransform((64, 64), (64, 64), (64, 64))
    decoder.cancel()
    with pytest.raises(Cancelled):
        await asyncio.to_thread(decoder.decode, 0, [tokens(1)])
    await queue.close()


async def test_a_call_that_waits_leaves_the_queue_with_its_caller() -> None:
    queue = DecodeQueue(decode_batch, name="idle", capacity=16, batch_key=lambda i: i.batch_key)  # never started
    preprocessing = Preprocessing(resize="longest_side", size=64, mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
    decoder = QueueDecoder(queue, SPEC, CountingSegmenter(), preprocessing, target(), URGENCY)
    thread = asyncio.create_task(asyncio.to_thread(decoder.decode, 0, [tokens(1)]))
    while not queue.depth:
        await asyncio.sleep(0.001)
    decoder.cancel()
    with pytest.raises(Cancelled):
        await thread
    assert queue.depth == 0
