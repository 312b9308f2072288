"""Adapters over a channel: applied, refused, followed when promoted, and kept within their bound."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fakes import tiny_models
from fakes.segmentation_site import RED, Serving, Site, as_png, scene
from vplab.client import ObjectPrompt, PromptSetDraft, Reference, SegmentClass
from vplab.client.models import Provenance
from vplab.client.registry.values import Version
from vplab.errors import FailedPrecondition, NotFound, VPLabError
from vplab.segmentation import metrics

PICTURE, MASK = scene((60, 50, 20, RED))
PNG = as_png(PICTURE)
CLICK = ObjectPrompt(points_xy=np.array([[60, 50]], np.float32))
ALIAS = "artifacts/tuned"


async def logits(serving: Serving, adapter: str = "") -> tuple[np.ndarray, Provenance]:
    answer = await serving.client.segmentation.predict_masks(PNG, CLICK, adapter=adapter, include_low_res_logits=True)
    found = answer.objects[0][0].low_res_logits
    assert found is not None
    return found, answer.provenance


def digest_of(provenance: Provenance) -> str:
    return "" if provenance.adapter is None else provenance.adapter.digest


@pytest.fixture
async def prompted(serving: Serving) -> Serving:
    draft = PromptSetDraft("spots", [SegmentClass(1, "spot")], [Reference(PNG, {1: MASK})])
    await serving.client.segmentation.create_prompt_set(draft)
    return serving


async def test_prompts_are_decoded_with_the_adapter_and_without_one_as_before(serving: Serving, site: Site) -> None:
    version = await site.publish_adapter("tuned", 2.5)
    base, without = await logits(serving)
    adapted, provenance = await logits(serving, ALIAS)
    np.testing.assert_allclose(adapted, base + 2.5, atol=1e-5)
    assert without.adapter is None
    assert provenance.adapter is not None
    assert (provenance.adapter.name, provenance.adapter.digest) == (version.name, version.digest)
    assert provenance.segmenter == without.segmenter
    np.testing.assert_array_equal((await logits(serving))[0], base)


async def test_images_and_streams_are_segmented_with_the_adapter(prompted: Serving, site: Site) -> None:
    version = await site.publish_adapter("tuned", 1.0)
    segmentation = prompted.client.segmentation
    base = await segmentation.segment_image(PNG, "artifacts/spots")
    adapted = await segmentation.segment_image(PNG, "artifacts/spots", adapter=ALIAS)
    assert adapted.classes[0].mask.sum() > base.classes[0].mask.sum()
    assert digest_of(adapted.provenance) == version.digest
    frames = [(str(n), PNG) for n in range(3)]
    answers = [a async for a in segmentation.segment_images(frames, "artifacts/spots", adapter=version.name)]
    for answer in answers:
        assert answer.result is not None
        np.testing.assert_array_equal(answer.result.classes[0].mask, adapted.classes[0].mask)
        assert digest_of(answer.result.provenance) == version.digest


async def test_an_adapter_of_another_segmenter_is_refused(prompted: Serving, site: Site) -> None:
    own = await prompted.client.registry.get_version("artifacts/tiny-segmenter")
    other = await prompted.client.registry.get_version("artifacts/tiny-encoder")
    await site.publish_adapter("tuned", 1.0, base=other)
    segmentation = prompted.client.segmentation
    for call in (
        segmentation.predict_masks(PNG, CLICK, adapter=ALIAS),
        segmentation.segment_image(PNG, "artifacts/spots", adapter=ALIAS),
        anext(segmentation.segment_images([("a", PNG)], "artifacts/spots", adapter=ALIAS)),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            await call
        assert caught.value.reason == "ADAPTER_BASE_MISMATCH"
        assert (caught.value.metadata["expected"], caught.value.metadata["actual"]) == (other.digest, own.digest)


async def test_what_is_no_adapter_is_refused(serving: Serving) -> None:
    with pytest.raises(FailedPrecondition, match="cannot be served as an adapter: its kind is encoder") as no_adapter:
        await logits(serving, "artifacts/tiny-encoder")
    assert no_adapter.value.reason == "MODEL_UNSUPPORTED"
    with pytest.raises(NotFound):
        await logits(serving, "artifacts/nothing")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "decoder.onnx").unlink(), "its files lack decoder.onnx"),
        (lambda folder: (folder / "model.json").unlink(), "its files lack model.json"),
        (lambda folder: (folder / "decoder.onnx").write_bytes(b"no graph"), "cannot load decoder.onnx"),
        (lambda folder: (folder / "decoder.onnx").write_bytes(tiny_models.encoder_onnx()), "its graph takes"),
        (lambda folder: (folder / "model.json").write_text('{"kind": "segmenter"}'), "not a valid model spec"),
        (lambda folder: tiny_models.write_encoder(folder), "is that of an encoder"),
        (
            lambda folder: (folder / "model.json").write_text(
                tiny_models.SEGMENTER_SPEC.model_copy(update={"embedding_shape": (8, 8, 8)}).model_dump_json()
            ),
            r"its graph takes embeddings of \[8, 8, 8\], its segmenter's \[256, 8, 8\]",
        ),
    ],
)
async def test_files_that_cannot_be_run_are_named(
    prompted: Serving, site: Site, spoil: Callable[[Path], object], why: str
) -> None:
    folder = site.folder / "broken"
    tiny_models.write_adapter(folder, 1.0)
    spoil(folder)
    await site.publish_adapter_files(folder, "tuned")
    with pytest.raises(FailedPrecondition, match=why) as caught:
        await logits(prompted, ALIAS)
    assert caught.value.reason == "MODEL_UNSUPPORTED"
    with pytest.raises(FailedPrecondition, match=why):
        await anext(prompted.client.segmentation.segment_images([("a", PNG)], "artifacts/spots", adapter=ALIAS))


async def test_a_promotion_under_load_changes_the_digest_once_and_fails_nothing(prompted: Serving, site: Site) -> None:
    versions = [await site.publish_adapter("tuned", 0.5)]
    segmentation, is_over = prompted.client.segmentation, asyncio.Event()
    answers: dict[str, list[tuple[str, float]]] = {}
    base = (await logits(prompted))[0]

    async def click(name: str) -> None:
        while not is_over.is_set():
            found, provenance = await logits(prompted, ALIAS)
            answers.setdefault(name, []).append((digest_of(provenance), round(float((found - base).mean()), 3)))

    async def segment(name: str) -> None:
        while not is_over.is_set():
            found = await segmentation.segment_image(PNG, "artifacts/spots", adapter=ALIAS)
            answers.setdefault(name, []).append((digest_of(found.provenance), np.nan))

    callers = [asyncio.create_task(work(f"{work.__name__} {n}")) for n in range(3) for work in (click, segment)]
    try:
        for shift in (1.5, 2.5):
            await until(lambda: all(seen(answers, name, versions[-1]) for name in answers) and len(answers) == 6)
            versions.append(await site.publish_adapter("tuned", shift))
        await until(lambda: all(seen(answers, name, versions[-1]) for name in answers))
    finally:
        is_over.set()
        await asyncio.gather(*callers)  # any failed request fails here
    order = [version.digest for version in versions]
    for name, found in answers.items():
        ranks = [order.index(digest) for digest, _ in found]
        assert ranks == sorted(ranks), f"{name} went back to an older version"
        if name.startswith("click"):
            assert {(digest, shift) for digest, shift in found} == set(zip(order, (0.5, 1.5, 2.5), strict=True))


def seen(answers: dict[str, list[tuple[str, float]]], name: str, version: Version) -> bool:
    return any(digest == version.digest for digest, _ in answers[name])


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the promotion was not followed")


async def test_a_promotion_to_what_cannot_run_leaves_the_old_version_serving(serving: Serving, site: Site) -> None:
    good = await site.publish_adapter("tuned", 1.0)
    await logits(serving, ALIAS)
    refused = metrics.ALIAS_MOVES.labels("refused")._value.get()
    folder = site.folder / "broken"
    tiny_models.write_adapter(folder, 2.0)
    (folder / "decoder.onnx").write_bytes(b"no graph")
    await site.publish_adapter_files(folder, "tuned")
    await until(lambda: metrics.ALIAS_MOVES.labels("refused")._value.get() > refused)
    assert digest_of((await logits(serving, ALIAS))[1]) == good.digest
    repaired = await site.publish_adapter("tuned", 3.0)
    for _ in range(3000):
        if digest_of((await logits(serving, ALIAS))[1]) == repaired.digest:
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the next promotion was not followed")


async def test_a_stream_keeps_the_version_it_began_with(prompted: Serving, site: Site) -> None:
    first = await site.publish_adapter("tuned", 0.5)
    go_on = asyncio.Event()

    async def frames():  # type: ignore[no-untyped-def]
        yield "before", PNG
        await go_on.wait()
        yield "after", PNG

    found = []
    async for answer in prompted.client.segmentation.segment_images(frames(), "artifacts/spots", adapter=ALIAS):
        assert answer.result is not None
        found.append(digest_of(answer.result.provenance))
        if not go_on.is_set():
            second = await site.publish_adapter("tuned", 1.5)
            for _ in range(3000):
                if digest_of((await logits(prompted, ALIAS))[1]) == second.digest:
                    break
                await asyncio.sleep(0.01)
            go_on.set()
    assert found == [first.digest, first.digest]


async def test_adapters_beyond_the_bound_leave_and_come_back(site: Site) -> None:
    graph = len(tiny_models.decoder_onnx())
    async with site.segmentation(adapter_cache_bytes=5 * graph, cache_dir=site.folder / "small") as serving:
        versions = [await site.publish_adapter("tuned", shift, alias="") for shift in (1.0, 2.0, 3.0)]
        base = (await logits(serving))[0]
        for shift, version in zip((1.0, 2.0, 3.0), versions, strict=True):
            np.testing.assert_allclose((await logits(serving, version.name))[0], base + shift, atol=1e-5)
        assert served(serving) == [versions[1].name, versions[2].name]  # each counts 2.2 times its file
        np.testing.assert_allclose((await logits(serving, versions[0].name))[0], base + 1.0, atol=1e-5)
        assert served(serving) == [versions[0].name, versions[2].name]


def served(serving: Serving) -> list[str]:
    return sorted(model.name for model in serving.service.served_models() if model.role == "adapter")


async def test_served_models_name_adapters_with_their_aliases(serving: Serving, site: Site) -> None:
    version = await site.publish_adapter("tuned", 1.0)
    await logits(serving, ALIAS)
    (found,) = (model for model in serving.service.served_models() if model.role == "adapter")
    assert (found.name, found.digest, found.device) == (version.name, version.digest, "cpu")
    assert found.aliases == ("artifacts/tuned/aliases/production",)


async def test_an_adapter_is_served_after_a_restart_without_the_registry(tmp_path: Path) -> None:
    site = Site(tmp_path)
    async with site.registry.running():
        await site.publish_tiny_models()
        version = await site.publish_adapter("tuned", 1.0)
        async with site.embedding(), site.segmentation() as serving:
            before = (await logits(serving, ALIAS))[0]
    async with site.embedding(), site.segmentation(preload=False) as serving:
        try:
            after, provenance = await logits(serving, ALIAS)
        except VPLabError as error:
            pytest.fail(f"{error}")
        np.testing.assert_array_equal(after, before)
        assert digest_of(provenance) == version.digest
