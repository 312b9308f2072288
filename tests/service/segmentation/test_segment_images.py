"""Streams of frames over a channel."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from fakes.segmentation_site import RED, Serving, as_png, iou, scene
from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.segmentation.v1 import segmentation_service_pb2_grpc as pb_grpc
from vplab.api.vision.v1 import vision_pb2
from vplab.client import PromptSetDraft, Reference, SegmentClass
from vplab.errors import InvalidInput, NotFound
from vplab.segmentation import metrics

REFERENCE, MASK = scene((40, 48, 20, RED))
NAME = "artifacts/spots"


@pytest.fixture
async def streaming(serving: Serving) -> Serving:
    draft = PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(as_png(REFERENCE), {1: MASK})])
    await serving.client.segmentation.create_prompt_set(draft)
    return serving


def spot(number: int) -> tuple[np.ndarray, np.ndarray]:
    return scene((30 + 10 * number, 50, 20, RED), seed=number)


async def test_every_frame_is_answered_in_order_with_what_a_single_call_gives(streaming: Serving) -> None:
    frames = [(f"frame-{n}", as_png(spot(n)[0])) for n in range(6)]
    answers = [a async for a in streaming.client.segmentation.segment_images(frames, NAME, max_in_flight=3)]
    assert [a.frame_id for a in answers] == [name for name, _ in frames]
    for number, answer in enumerate(answers):
        assert answer.result is not None
        assert iou(answer.result.classes[0].mask, spot(number)[1]) > 0.5
    single = await streaming.client.segmentation.segment_image(frames[2][1], NAME)
    assert answers[2].result is not None
    np.testing.assert_array_equal(answers[2].result.classes[0].mask, single.classes[0].mask)


async def test_a_frame_at_fault_gets_an_error_and_the_stream_goes_on(streaming: Serving) -> None:
    frames = [("good", as_png(spot(0)[0])), ("bad", b"no image"), ("", as_png(spot(1)[0])), ("last", spot(2)[0])]
    answers = [a async for a in streaming.client.segmentation.segment_images(frames, NAME)]
    assert [a.frame_id for a in answers] == ["good", "bad", "", "last"]
    assert isinstance(answers[1].error, InvalidInput)
    assert answers[1].error.reason == "IMAGE_UNREADABLE"
    assert answers[2].error is not None
    assert answers[2].error.reason == "INVALID_FIELD"
    assert answers[0].result is not None
    assert answers[3].result is not None


async def test_an_unknown_prompt_set_ends_the_stream(streaming: Serving) -> None:
    with pytest.raises(NotFound):
        async for _ in streaming.client.segmentation.segment_images([("a", REFERENCE)], "artifacts/nothing"):
            pass


def config(**changes: object) -> pb.SegmentImagesRequest:
    values: dict[str, object] = {"prompt_set": NAME, "drop_policy": pb.DROP_POLICY_WAIT}
    return pb.SegmentImagesRequest(config=pb.SegmentImagesConfig(**(values | changes)))  # type: ignore[arg-type]


def frame(name: str) -> pb.SegmentImagesRequest:
    image = vision_pb2.Image(encoded=as_png(REFERENCE))
    return pb.SegmentImagesRequest(frame=pb.Frame(frame_id=name, image=image))


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "config"),
        ([frame("a")], "config"),
        ([pb.SegmentImagesRequest()], "config"),
        ([config(), config()], "part"),
        ([config(drop_policy=0)], "config.drop_policy"),
        ([config(drop_policy=9)], "config.drop_policy"),
        ([config(max_in_flight=65)], "config.max_in_flight"),
        ([config(prompt_set="")], "config.prompt_set"),
        ([config(options=pb.SegmentOptions(num_background_points=17))], "config.options.num_background_points"),
    ],
)
async def test_a_stream_that_breaks_the_rules_is_refused(
    streaming: Serving, messages: list[pb.SegmentImagesRequest], field: str
) -> None:
    async def send() -> AsyncIterator[pb.SegmentImagesRequest]:
        for message in messages:
            yield message

    async with grpc.aio.insecure_channel(streaming.address) as channel:
        call = pb_grpc.SegmentationServiceStub(channel).SegmentImages(send())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    assert field.encode() in details


@pytest.mark.parametrize("policy", [pb.DROP_POLICY_OLDEST, pb.DROP_POLICY_NEWEST])
async def test_a_fast_sender_loses_frames_and_hears_of_each(streaming: Serving, policy: int) -> None:
    count = 60

    async def send() -> AsyncIterator[pb.SegmentImagesRequest]:
        yield config(drop_policy=policy, max_in_flight=2)
        for number in range(count):
            yield frame(f"frame-{number}")

    async with grpc.aio.insecure_channel(streaming.address) as channel:
        answers = [a async for a in pb_grpc.SegmentationServiceStub(channel).SegmentImages(send())]
    assert [a.frame_id for a in answers] == [f"frame-{n}" for n in range(count)]
    dropped = [a.dropped.num_dropped for a in answers if a.WhichOneof("outcome") == "dropped"]
    assert sorted(dropped) == list(range(1, len(dropped) + 1))
    assert 0 < len(dropped) < count
    assert all(a.WhichOneof("outcome") in ("dropped", "result") for a in answers)


async def test_one_slow_taker_never_grows_what_the_server_holds(streaming: Serving) -> None:
    large = vision_pb2.Image(encoded=as_png(REFERENCE) + bytes(200_000))

    async def send() -> AsyncIterator[pb.SegmentImagesRequest]:
        yield config(max_in_flight=3)
        for number in range(10_000):
            yield pb.SegmentImagesRequest(frame=pb.Frame(frame_id=str(number), image=large))

    async with grpc.aio.insecure_channel(streaming.address) as channel:
        call = pb_grpc.SegmentationServiceStub(channel).SegmentImages(send())
        held = []
        for _ in range(5):
            await call.read()
            for _ in range(20):
                await asyncio.sleep(0.01)
                held.append(metrics.FRAMES_HELD._value.get())
        call.cancel()
    assert 1 <= max(held) <= 3
    for _ in range(500):
        if metrics.FRAMES_HELD._value.get() == 0:
            break
        await asyncio.sleep(0.01)
    assert metrics.FRAMES_HELD._value.get() == 0
