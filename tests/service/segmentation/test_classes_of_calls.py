"""How urgent each call is, and for whom it is made, at the decoder and at the encoder behind the next service."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from fakes.queue_record import QueueRecord
from fakes.segmentation_site import RED, Serving, as_png, scene
from vplab.client import AsyncClient, ClientOptions, ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.runtime.device_queue import Priority

REFERENCE, MASK = scene((40, 48, 20, RED))
NAME = "artifacts/spots"
CLICK = ObjectPrompt(points_xy=np.array([[40, 48]], np.float32), point_labels=np.array([1]))
Call = Callable[[AsyncClient, bytes], Awaitable[object]]


@pytest.fixture
async def taught(serving: Serving) -> Serving:
    draft = PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(as_png(REFERENCE), {1: MASK})])
    await serving.client.segmentation.create_prompt_set(draft)
    return serving


@asynccontextmanager
async def calling(serving: Serving, **options: object) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(segmentation=serving.address, options=ClientOptions(**options)) as client:  # type: ignore[arg-type]
        yield client


async def click(client: AsyncClient, image: bytes) -> object:
    return await client.segmentation.predict_masks(image, CLICK)


async def one(client: AsyncClient, image: bytes) -> object:
    return await client.segmentation.segment_image(image, NAME)


async def stream(client: AsyncClient, image: bytes) -> object:
    return [answer async for answer in client.segmentation.segment_images([("a", image)], NAME)]


@pytest.mark.parametrize(
    ("call", "asked", "expected"),
    [
        (click, None, Priority.INTERACTIVE),
        (one, None, Priority.INLINE),
        (stream, None, Priority.INLINE),
        (click, "inline", Priority.INLINE),
        (click, "batch", Priority.BATCH),
        (one, "batch", Priority.BATCH),
        (stream, "batch", Priority.BATCH),
        # Nobody becomes more urgent than the method, and what is no class changes nothing.
        (one, "interactive", Priority.INLINE),
        (stream, "interactive", Priority.INLINE),
        (click, "urgent", Priority.INTERACTIVE),
    ],
)
async def test_a_call_is_of_one_class_and_client_at_both_services(
    taught: Serving, monkeypatch: pytest.MonkeyPatch, call: Call, asked: str | None, expected: Priority
) -> None:
    record = QueueRecord(monkeypatch)
    async with calling(taught, priority=asked) as client:
        await call(client, as_png(scene((60, 50, 20, RED), seed=3)[0]))
    seen = record.take("encoder", "decoder")
    decoded, encoded = ([s for s in seen if s.queue == queue] for queue in ("decoder", "encoder"))
    assert decoded
    assert encoded
    assert {s.priority for s in seen} == {expected}
    (client_of_decoder,) = {s.client for s in decoded}
    assert client_of_decoder
    assert {s.client.rpartition(" for ")[2] for s in encoded} == {client_of_decoder}
