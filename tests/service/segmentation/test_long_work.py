"""Work that takes long holds up nobody who is more urgent."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.segmentation_site import RED, Serving, as_png, scene, tiny_site
from vplab.client import AsyncClient, ClientOptions, ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.client.options import Priority
from vplab.client.segmentation.values import Segmentation
from vplab.runtime.giving_way import gives_way
from vplab.segmentation import composition, core
from vplab.segmentation.decode_queue import CPU_PIECE, DecodeItem

REFERENCE, MASK = scene((40, 48, 20, RED))
NAME = "artifacts/spots"


@pytest.fixture
async def taught(tmp_path: Path) -> AsyncIterator[Serving]:
    async with tiny_site(tmp_path, worker_threads=1) as (_, serving):
        draft = PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(as_png(REFERENCE), {1: MASK})])
        await serving.client.segmentation.create_prompt_set(draft)
        yield serving


class Gate:
    """Holds threads that match until it is opened; all of them, or those that say so of themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: Callable[[], bool] = lambda: True) -> None:
        self.opened = threading.Event()
        self.num_held = 0
        match = core.segment_class

        def held(*arguments: Any) -> Any:
            if holds():
                self.num_held += 1
                assert self.opened.wait(60)
            return match(*arguments)

        monkeypatch.setattr(core, "segment_class", held)

    async def wait_held(self, count: int) -> None:
        async with asyncio.timeout(50):
            while self.num_held < count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def segmenting(
    serving: Serving, gate: Gate, count: int, priority: Priority | None = None
) -> AsyncIterator[list[asyncio.Task[Segmentation]]]:
    async with AsyncClient(segmentation=serving.address, options=ClientOptions(priority=priority)) as client:
        images = [as_png(scene((60, 50, 20, RED), seed=n)[0]) for n in range(count)]
        calls = [asyncio.create_task(client.segmentation.segment_image(image, NAME)) for image in images]
        try:
            yield calls
        finally:
            gate.opened.set()
            await asyncio.gather(*calls)


async def test_a_click_is_answered_while_matching_holds_all_its_threads(
    taught: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    async with segmenting(taught, gate, 3) as lines, segmenting(taught, gate, 3, "batch") as folder:
        await gate.wait_held(2)
        image, mask = scene((70, 40, 20, RED), seed=9)
        # A first click on a new file, and a mask as a prompt, both need a thread.
        answer = await taught.client.segmentation.predict_masks(as_png(image), ObjectPrompt(mask=mask))
        assert len(answer.objects) == 1
        assert not any(call.done() for call in (*lines, *folder))


async def test_a_click_is_answered_while_the_decoder_works_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, num_held, decode_batch = threading.Event(), 0, composition.decode_batch

    def held(items: Sequence[DecodeItem]) -> Any:
        nonlocal num_held
        if gives_way():
            num_held += 1
            assert len(items[0].tokens) <= CPU_PIECE
            assert opened.wait(60)
        return decode_batch(items)

    monkeypatch.setattr(composition, "decode_batch", held)
    async with tiny_site(tmp_path) as (_, serving):
        draft = PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(as_png(REFERENCE), {1: MASK})])
        await serving.client.segmentation.create_prompt_set(draft)
        image = as_png(scene((70, 40, 20, RED), seed=9)[0])
        async with AsyncClient(segmentation=serving.address, options=ClientOptions(priority="batch")) as folder:
            call = asyncio.create_task(folder.segmentation.segment_image(image, NAME))
            try:
                async with asyncio.timeout(50):
                    while not num_held:
                        await asyncio.sleep(0.01)
                prompt = ObjectPrompt(points_xy=np.array([[70, 40]], np.float32), point_labels=np.array([1]))
                assert len((await serving.client.segmentation.predict_masks(image, prompt)).objects) == 1
                assert not call.done()
            finally:
                opened.set()
                await call


async def test_a_line_is_answered_while_a_folder_holds_all_its_threads(
    taught: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, holds=gives_way)
    async with segmenting(taught, gate, 3, "batch") as folder:
        await gate.wait_held(1)
        image = as_png(scene((70, 40, 20, RED), seed=9)[0])
        assert (await taught.client.segmentation.segment_image(image, NAME)).classes
        assert not any(call.done() for call in folder)
