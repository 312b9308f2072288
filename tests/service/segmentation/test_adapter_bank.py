"""Adapters of a segmenter's bank over a channel: many at once, more than there are rows, and promoted under load.

Their versions have no decoder graph of their own, so an answer shows that the bank gave it.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fakes.banked_adapters import (
    adapter,
    expected_logits,
    publish_adapter,
    write_adapter,
    write_banked_sam,
)
from fakes.segmentation_site import RED, Serving, Site, as_png, scene
from fakes.small_sam import ENCODER, SEGMENTER, decoder_onnx, small_site
from vplab.client import ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.client.registry.values import Version
from vplab.errors import FailedPrecondition
from vplab.segmentation import metrics
from vplab.vision.adapters.bank import BankDecoder
from vplab.vision.adapters.spec import EPeftSpec, LoraSpec

pytestmark = pytest.mark.slow  # the bank's graph is made once, in half a minute

PICTURE, MASK = scene((60, 50, 20, RED))
PNG = as_png(PICTURE)
CLICK = ObjectPrompt(points_xy=np.array([[60, 50]], np.float32))
ALIAS = "artifacts/line"
MODELS = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_banked_sam(tmp_path_factory.mktemp("models"))


@pytest.fixture
async def site(tmp_path: Path, models: Path) -> AsyncIterator[Site]:
    async with small_site(tmp_path, models) as running:
        yield running


async def logits(serving: Serving, name: str = "") -> tuple[np.ndarray, str]:
    answer = await serving.client.segmentation.predict_masks(PNG, CLICK, adapter=name, include_low_res_logits=True)
    found = answer.objects[0][0].low_res_logits
    assert found is not None
    return found, "" if answer.provenance.adapter is None else answer.provenance.adapter.digest


@functools.cache
def answer_of(number: int) -> np.ndarray:
    return expected_logits(PICTURE, (60, 50), number)


def is_answer_of(found: np.ndarray, number: int) -> bool:
    expected = answer_of(number)
    return bool(np.abs(found - expected).max() <= 5e-3 * np.abs(expected).max())


def resident(serving: Serving) -> list[str]:
    return sorted(model.name for model in serving.service.served_models() if model.role == "adapter")


async def test_fifty_adapters_at_once_get_each_its_own_answer(site: Site) -> None:
    numbers = range(1, 55)
    versions = [await publish_adapter(site, "many", number, alias="") for number in numbers]
    async with site.segmentation(**MODELS) as serving:
        base, _ = await logits(serving)
        assert is_answer_of(base, 0)
        for _ in range(2):
            found = await asyncio.gather(
                *(logits(serving, version.name) for version in versions), *(logits(serving) for _ in range(6))
            )
            for number, version, (answer, digest) in zip(numbers, versions, found, strict=False):
                assert digest == version.digest
                assert [n for n in numbers if is_answer_of(answer, n)] == [number]
            for answer, digest in found[len(versions) :]:
                assert digest == ""
                np.testing.assert_allclose(answer, base, atol=1e-4)
        assert resident(serving) == sorted(version.name for version in versions)
        assert metrics.BANK_ADAPTERS._value.get() == len(versions)
        assert metrics.BANK_BYTES._value.get() == 2 * len(versions) * adapter(1).num_adapter_parameters


async def test_more_adapters_than_rows_are_served_under_load(site: Site) -> None:
    numbers = range(1, 13)
    versions = {number: await publish_adapter(site, "many", number, alias="") for number in numbers}
    row_bytes = 2 * BankDecoder(adapter(1).base, EPeftSpec()).layout.width
    async with site.segmentation(**MODELS, adapter_bank_bytes=5 * row_bytes) as serving:
        evictions = metrics.BANK_EVICTIONS._value.get()

        async def call(number: int) -> None:
            for _ in range(5):
                assert is_answer_of((await logits(serving, versions[number].name))[0], number)

        await asyncio.gather(*(call(number) for number in numbers))
        assert len(resident(serving)) == 4  # of five rows one is the base
        assert metrics.BANK_EVICTIONS._value.get() >= evictions + len(numbers) - 4


async def test_a_promotion_under_load_changes_the_adapter_once_and_fails_nothing(site: Site) -> None:
    versions = [await publish_adapter(site, "line", number, alias="") for number in (1, 2, 3)]
    numbers = {version.digest: number for number, version in enumerate(versions, start=1)}
    other = await publish_adapter(site, "other", 9)
    answers: dict[str, list[int]] = {}
    is_over = asyncio.Event()
    async with site.segmentation(**MODELS) as serving:

        async def click(caller: str, name: str) -> None:
            while not is_over.is_set():
                found, digest = await logits(serving, name)
                number = numbers.get(digest, 9)
                assert is_answer_of(found, number)
                answers.setdefault(caller, []).append(number)

        def have_all(number: int) -> bool:
            return len(answers) == 4 and all(number in seen or 9 in seen for seen in answers.values())

        await promote(serving, versions[0])
        calls = [asyncio.create_task(click(f"caller {n}", ALIAS)) for n in range(3)]
        calls.append(asyncio.create_task(click("beside", other.name)))
        try:
            for number, version in enumerate(versions, start=1):
                await promote(serving, version)
                await until(lambda number=number: have_all(number))  # type: ignore[misc]
        finally:
            is_over.set()
            await asyncio.gather(*calls)  # any failed request or wrong answer fails here
        assert all(seen == sorted(seen) for seen in answers.values())


async def test_a_promotion_to_what_cannot_run_leaves_the_old_row_serving(site: Site) -> None:
    good = await publish_adapter(site, "line", 1)
    async with site.segmentation(**MODELS) as serving:
        await logits(serving, ALIAS)
        refused = metrics.ALIAS_MOVES.labels("refused")._value.get()
        folder = write_adapter(site.folder / "broken", 2)
        (folder / "adapter.safetensors").write_bytes(b"no tensors")
        await site.publish_adapter_files(folder, "line", base=await base_of(serving))
        await until(lambda: metrics.ALIAS_MOVES.labels("refused")._value.get() > refused)
        found, digest = await logits(serving, ALIAS)
        assert digest == good.digest
        assert is_answer_of(found, 1)


async def test_an_adapter_of_another_kind_is_served_by_its_own_graph(site: Site) -> None:
    async with site.segmentation(**MODELS) as serving:
        folder = write_adapter(site.folder / "rank-4", 1)
        (folder / "adapter.json").write_text(f'{{"adapter": {LoraSpec(rank=4).model_dump_json()}}}')
        (folder / "decoder.onnx").write_bytes(decoder_onnx())
        version = await site.publish_adapter_files(folder, "line", base=await base_of(serving))
        found, digest = await logits(serving, ALIAS)
        assert digest == version.digest
        assert is_answer_of(found, 0)  # the graph it came with is the base's
        assert metrics.ADAPTERS_LOADED._value.get() == 1


async def test_numbers_beyond_half_precision_are_served_by_the_adapters_own_graph(site: Site) -> None:
    async with site.segmentation(**MODELS) as serving:
        folder = write_adapter(site.folder / "large", 1)
        state = load_file(folder / "adapter.safetensors")
        save_file({name: value * np.float32(1e6) for name, value in state.items()}, folder / "adapter.safetensors")
        (folder / "decoder.onnx").write_bytes(decoder_onnx())
        await site.publish_adapter_files(folder, "line", base=await base_of(serving))
        assert is_answer_of((await logits(serving, ALIAS))[0], 0)


async def test_without_memory_for_banks_every_adapter_needs_a_graph(site: Site) -> None:
    await publish_adapter(site, "line", 1)
    async with site.segmentation(**MODELS, adapter_bank_bytes=0) as serving:
        with pytest.raises(FailedPrecondition, match=r"its files lack decoder\.onnx"):
            await logits(serving, ALIAS)


async def test_images_are_segmented_with_an_adapter_of_the_bank(site: Site) -> None:
    version = await publish_adapter(site, "line", 1)
    async with site.segmentation(**MODELS) as serving:
        segmentation = serving.client.segmentation
        await segmentation.create_prompt_set(
            PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(PNG, {1: MASK})])
        )
        base = await segmentation.segment_image(PNG, "artifacts/spots")
        adapted = await segmentation.segment_image(PNG, "artifacts/spots", adapter=ALIAS)
        assert adapted.provenance.adapter is not None
        assert adapted.provenance.adapter.digest == version.digest
        assert adapted.provenance.segmenter == base.provenance.segmenter
        assert (adapted.classes[0].mask != base.classes[0].mask).any()
        assert resident(serving) == [version.name]


async def base_of(serving: Serving) -> Version:
    return await serving.client.registry.get_version(f"artifacts/{SEGMENTER}")


async def promote(serving: Serving, version: Version) -> None:
    await serving.client.registry.set_alias(f"{ALIAS}/aliases/production", version.name, etag="*")


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("what was waited for did not come")
