"""Malformed requests get documented answers, and the service goes on."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
from google.protobuf.message import Message

from fakes.documented_reasons import documented_reasons
from fakes.embedding_server import Serving, png
from fakes.malformed import mutated_bytes, requests
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.client.first_status import FirstStatus
from vplab.wire.status import error_from_call

PREFIX = "/vplab.api.embedding.v1.EmbeddingService/"
ENCODERS = ["artifacts/tiny-encoder"]
NUM_REQUESTS = 300
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
METHODS: dict[str, type[Message]] = {
    name: getattr(pb, f"{name}Request")
    for name in (
        "ListEncoders",
        "EmbedImage",
        "EmbedImages",
        "GetEmbedding",
        "PrecomputeEmbeddings",
        "GetPrecomputeJob",
        "ListPrecomputeJobs",
        "CancelPrecomputeJob",
    )
}


def nearly_right() -> dict[str, list[Message]]:
    frame = vision_pb2.RawFrame(width=9, height=5, pixel_format=vision_pb2.PIXEL_FORMAT_MONO16, data=bytes(90))
    images = [vision_pb2.Image(encoded=png()), vision_pb2.Image(frame=frame), vision_pb2.Image(digest="0" * 64)]
    embed: list[Message] = [pb.EmbedImageRequest(image=i, encoders=ENCODERS, include_tensors=True) for i in images]
    return {
        "EmbedImage": embed,
        "EmbedImages": [pb.EmbedImagesRequest(item_id="one", request=request) for request in embed],
        "PrecomputeEmbeddings": [
            pb.PrecomputeEmbeddingsRequest(blobs=pb.BlobImages(sha256=["0" * 64]), encoders=ENCODERS),
            pb.PrecomputeEmbeddingsRequest(dataset="artifacts/parts", encoders=ENCODERS),
        ],
    }


async def refusal(channel: grpc.aio.Channel, name: str, data: bytes) -> tuple[grpc.StatusCode, str, str] | None:
    """Send raw bytes and return code, reason and message of the refusal, None for an answer."""

    async def once() -> AsyncIterator[bytes]:
        yield data

    told = None
    try:
        if name == "EmbedImages":
            call = channel.stream_stream(PREFIX + name)(once(), timeout=60)
            told = FirstStatus(call)
            async for _ in call:
                pass
        elif name == "GetEmbedding":
            async for _ in channel.unary_stream(PREFIX + name)(data, timeout=60):
                pass
        else:
            await channel.unary_unary(PREFIX + name)(data, timeout=60)
    except grpc.aio.AioRpcError as replaced:
        error = told.error if told and told.error else replaced
        ours = error_from_call(error.code(), error.details(), tuple(error.trailing_metadata()))
        return error.code(), ours.reason, ours.message
    return None


async def test_every_malformed_request_gets_a_documented_answer(serving: Serving) -> None:
    draw, documented, valid = random.Random(5), documented_reasons(), nearly_right()
    faults, num_refused = [], 0
    async with grpc.aio.insecure_channel(serving.address) as channel:
        for name, request_type in METHODS.items():
            source = requests(request_type, valid.get(name, []), draw)
            for _ in range(NUM_REQUESTS):
                data = next(source)
                refused = await refusal(channel, name, data)
                num_refused += refused is not None
                if refused and (refused[0] in NEVER or refused[1] not in documented[PREFIX + name]):
                    faults.append((name, refused, data[:100]))
    assert not faults, f"{len(faults)} undocumented answers: {faults[:5]}"
    assert num_refused > NUM_REQUESTS


async def test_every_broken_image_of_a_stream_is_an_invalid_item(serving: Serving) -> None:
    draw = random.Random(6)

    async def broken() -> AsyncIterator[pb.EmbedImagesRequest]:
        for i in range(1500):
            data = mutated_bytes(mutated_bytes(png(i % 5), draw), draw)
            request = pb.EmbedImageRequest(image=vision_pb2.Image(encoded=data), encoders=ENCODERS)
            yield pb.EmbedImagesRequest(item_id=str(i), request=request)

    reasons = {answer.error.reason async for answer in serving.stub.EmbedImages(broken())}
    assert {"IMAGE_UNREADABLE"} <= reasons <= {"", "IMAGE_UNREADABLE", "IMAGE_TOO_LARGE"}


async def test_callers_who_hang_up_leave_nothing_behind(serving: Serving) -> None:
    request = pb.EmbedImageRequest(image=vision_pb2.Image(encoded=png()), encoders=ENCODERS)
    for i in range(100):
        call = serving.stub.EmbedImage(request)
        await asyncio.sleep(0.0005 * (i % 7))
        call.cancel()
    answer = await serving.stub.EmbedImage(request)
    assert len(answer.embeddings) == 1
