"""Malformed requests get documented answers, and the service goes on."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import numpy as np
from google.protobuf.message import Message

from fakes.documented_reasons import documented_reasons
from fakes.malformed import requests
from fakes.segmentation_site import RED, Serving, as_png, scene
from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.client import ObjectPrompt
from vplab.client.first_status import FirstStatus
from vplab.wire.masks import mask_to_proto
from vplab.wire.status import error_from_call

PREFIX = "/vplab.api.segmentation.v1.SegmentationService/"
NUM_REQUESTS = 200
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}
METHODS: dict[str, type[Message]] = {
    name: getattr(pb, f"{name}Request")
    for name in (
        "PredictMasks",
        "CreatePromptSet",
        "GetPromptSet",
        "ListPromptSets",
        "SegmentImage",
        "SegmentImages",
    )
}
PICTURE, MASK = scene((20, 20, 8, RED), size_hw=(40, 48))
IMAGE = vision_pb2.Image(encoded=as_png(PICTURE))


def nearly_right() -> dict[str, list[Message]]:
    point = vision_pb2.Point(x=5, y=6, label=vision_pb2.POINT_LABEL_FOREGROUND)
    box = vision_pb2.Box(x_min=1, y_min=2, x_max=30, y_max=31)
    logits = vision_pb2.Tensor(shape=[32, 32], dtype=vision_pb2.DATA_TYPE_FLOAT32, data=bytes(4096))
    prompts = [
        pb.ObjectPrompt(points=[point], box=box),
        pb.ObjectPrompt(points=[point], low_res_logits=logits),
        pb.ObjectPrompt(mask=mask_to_proto(MASK)),
    ]
    reference = pb.ReferenceImage(image=IMAGE, masks=[pb.ReferenceMask(class_id=1, mask=mask_to_proto(MASK))])
    options = pb.SegmentOptions(matcher=pb.MATCHER_GRAPH, max_points=5, seed=1, tile_side=64, include_instances=True)
    config = pb.SegmentImagesConfig(prompt_set="artifacts/fuzzed", drop_policy=pb.DROP_POLICY_WAIT, options=options)
    return {
        "PredictMasks": [pb.PredictMasksRequest(image=IMAGE, prompts=[prompt]) for prompt in prompts],
        "CreatePromptSet": [
            pb.CreatePromptSetRequest(
                prompt_set_id="fuzzed",
                classes=[pb.SegmentClass(class_id=1, display_name="one")],
                references=[reference],
                options=options,
            )
        ],
        "GetPromptSet": [pb.GetPromptSetRequest(name="artifacts/fuzzed")],
        "SegmentImage": [pb.SegmentImageRequest(image=IMAGE, prompt_set="artifacts/fuzzed", options=options)],
        "SegmentImages": [
            pb.SegmentImagesRequest(config=config),
            pb.SegmentImagesRequest(frame=pb.Frame(frame_id="a", image=IMAGE)),
        ],
    }


async def refusal(channel: grpc.aio.Channel, name: str, data: list[bytes]) -> tuple[grpc.StatusCode, str, str] | None:
    """Send raw bytes and return code, reason and message of the refusal, None for an answer."""

    async def each() -> AsyncIterator[bytes]:
        for message in data:
            yield message

    told = None
    try:
        if name == "SegmentImages":
            call = channel.stream_stream(PREFIX + name)(each(), timeout=60)
            told = FirstStatus(call)
            async for _ in call:
                pass
        else:
            await channel.unary_unary(PREFIX + name)(data[0], timeout=60)
    except grpc.aio.AioRpcError as replaced:
        error = told.error if told and told.error else replaced
        ours = error_from_call(error.code(), error.details(), tuple(error.trailing_metadata()))
        return error.code(), ours.reason, ours.message
    return None


async def test_every_malformed_request_gets_a_documented_answer(serving: Serving) -> None:
    draw, documented, valid = random.Random(5), documented_reasons(), nearly_right()
    faults, num_refused, num_answered = [], 0, 0
    async with grpc.aio.insecure_channel(serving.address) as channel:
        assert await refusal(channel, "CreatePromptSet", [valid["CreatePromptSet"][0].SerializeToString()]) is None
        config, frame = (message.SerializeToString() for message in valid["SegmentImages"])
        for name, request_type in METHODS.items():
            source = requests(request_type, valid.get(name, []), draw)
            for number in range(NUM_REQUESTS):
                data = [next(source)]
                if name == "SegmentImages":
                    data = [config, *data, frame] if number % 2 else [*data, frame]
                refused = await refusal(channel, name, data)
                num_refused += refused is not None
                num_answered += refused is None
                if refused and (refused[0] in NEVER or refused[1] not in documented[PREFIX + name]):
                    faults.append((name, refused, data[0][:100]))
    assert not faults, f"{len(faults)} undocumented answers: {faults[:5]}"
    assert num_refused > NUM_REQUESTS
    assert num_answered > NUM_REQUESTS / 4


async def test_callers_who_hang_up_leave_nothing_behind(serving: Serving) -> None:
    predict = serving.client.segmentation.predict_masks
    prompt = ObjectPrompt(points_xy=np.array([[5, 5]], np.float32), point_labels=np.array([1]))
    for number in range(100):
        call = asyncio.create_task(predict(PICTURE, [prompt] * 40))
        await asyncio.sleep(0.0005 * (number % 9))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    answer = await predict(PICTURE, prompt)
    assert len(answer.objects) == 1
