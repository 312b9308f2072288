"""EmbedImages: many images over one stream, each with its own answer."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from fakes.embedding_server import Serve, Serving, png
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2


def item(item_id: str, data: bytes) -> pb.EmbedImagesRequest:
    request = pb.EmbedImageRequest(image=vision_pb2.Image(encoded=data), encoders=["artifacts/tiny-encoder"])
    return pb.EmbedImagesRequest(item_id=item_id, request=request)


async def test_each_image_is_answered_and_a_bad_one_does_not_end_the_stream(serving: Serving) -> None:
    async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
        for i in range(100):
            yield item(f"image {i}", b"broken" if i % 10 == 3 else png(i % 7))

    answers = {answer.item_id: answer async for answer in serving.stub.EmbedImages(requests())}
    assert len(answers) == 100
    for i in range(100):
        answer = answers[f"image {i}"]
        if i % 10 == 3:
            assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert answer.error.reason == "IMAGE_UNREADABLE"
            assert answer.error.item_id == f"image {i}"
        else:
            assert answer.response.embeddings[0].name.startswith("embeddings/")


@pytest.mark.parametrize("item_id", ["", "x" * 201])
async def test_an_item_without_a_proper_id_ends_the_stream(serving: Serving, item_id: str) -> None:
    async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
        yield item(item_id, png())

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in serving.stub.EmbedImages(requests()):
            pass
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_server_stops_reading_while_answers_are_not_taken(serving: Serving) -> None:
    # Answers with tensors, so that 64 of them fill what HTTP/2 keeps for a slow reader.
    sent = []

    async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
        for i in range(2000):
            request = item(str(i), png())
            request.request.include_tensors = True
            request.request.precision = pb.PRECISION_FLOAT32
            sent.append(i)
            yield request

    call = serving.stub.EmbedImages(requests())
    await call.read()
    before = -1
    while len(sent) != before:
        before = len(sent)
        await asyncio.sleep(0.3)
    assert len(sent) < 1500
    call.cancel()


async def test_a_stream_is_held_up_where_a_call_would_be_refused(serve: Serve) -> None:
    async with serve(max_waiting_bytes=20_000, queue_capacity=2, decode_threads=1) as serving:

        async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
            for i in range(40):
                yield item(str(i), png(i))

        answers = [answer async for answer in serving.stub.EmbedImages(requests())]
    assert len(answers) == 40
    assert not [answer.error.reason for answer in answers if answer.HasField("error")]
