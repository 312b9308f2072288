"""How urgent each call is at the encoder, and for whom it is made."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fakes.embedding_server import Serving, png
from fakes.fake_models import FakeModelSource
from fakes.queue_record import QueueRecord, Seen
from vplab.api.embedding.v1 import embedding_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.runtime.device_queue import Priority
from vplab.runtime.request import CLIENT_KEY, PRIORITY_KEY

ENCODER = "artifacts/tiny-encoder"


def embed(seed: int) -> pb.EmbedImageRequest:
    return pb.EmbedImageRequest(image=vision_pb2.Image(encoded=png(seed)), encoders=[ENCODER])


@pytest.mark.parametrize(
    ("asked", "single", "streamed"),
    [
        ("", Priority.INTERACTIVE, Priority.INLINE),
        ("interactive", Priority.INTERACTIVE, Priority.INLINE),
        ("inline", Priority.INLINE, Priority.INLINE),
        ("batch", Priority.BATCH, Priority.BATCH),
    ],
)
async def test_a_method_has_a_class_and_a_caller_may_ask_for_a_lower_one(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, asked: str, single: Priority, streamed: Priority
) -> None:
    async def requests() -> AsyncIterator[pb.EmbedImagesRequest]:
        yield pb.EmbedImagesRequest(item_id="a", request=embed(2))

    record = QueueRecord(monkeypatch)
    metadata = ((CLIENT_KEY, "somebody"), *(((PRIORITY_KEY, asked),) if asked else ()))
    await serving.stub.EmbedImage(embed(1), metadata=metadata)
    (of_single,) = record.take("encoder")
    async for answer in serving.stub.EmbedImages(requests(), metadata=metadata):
        assert answer.HasField("response")
    (of_stream,) = record.take("encoder")
    assert (of_single.priority, of_stream.priority) == (single, streamed)
    assert of_single.client == of_stream.client
    assert of_single.client.endswith(" for somebody")


async def test_a_job_is_of_the_class_that_nobody_waits_for_and_a_client_of_its_own(
    serving: Serving, source: FakeModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = QueueRecord(monkeypatch)
    names = []
    for number in range(2):
        images = pb.BlobImages(sha256=[source.add_image(png(2 * number + i)) for i in range(2)])
        request = pb.PrecomputeEmbeddingsRequest(blobs=images, encoders=[ENCODER])
        names.append((await serving.stub.PrecomputeEmbeddings(request)).job.name)
    seen: list[Seen] = []
    async with asyncio.timeout(60):
        while len(seen) < 4:
            await asyncio.sleep(0.01)
            seen += record.take("encoder")
    assert {s.priority for s in seen} == {Priority.BATCH}
    assert sorted(s.client for s in seen) == sorted(2 * names)
