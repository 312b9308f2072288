"""Real jobs on a small SAM: what is equal between them, and what happens to those that are in the way."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fakes.segmentation_site import as_png
from fakes.small_sam import ENCODER, SEGMENTER, small_site, write_small_sam
from fakes.training_site import TrainingSite, scratches, training_beside
from vplab.client.datasets import Dataset, DatasetItem, publish_dataset
from vplab.client.registry.values import Lineage, Manifest
from vplab.client.segmentation.values import SegmentClass
from vplab.client.training.values import (
    InlineDataset,
    TuningOptions,
    TuningProgress,
    TuningRequest,
    ValidatedImage,
)
from vplab.errors import FailedPrecondition, InvalidInput

OPTIONS = TuningOptions(num_steps=20, seed=3)


@pytest.fixture(scope="module")
def small_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_sam(tmp_path_factory.mktemp("small-sam"))


@pytest.fixture
async def running(small_sam: Path, tmp_path: Path) -> AsyncIterator[TrainingSite]:
    async with (
        small_site(tmp_path, small_sam) as site,
        training_beside(
            site, default_segmenter=f"artifacts/{SEGMENTER}", default_feature_encoder=f"artifacts/{ENCODER}"
        ) as training,
    ):
        yield training


@pytest.mark.slow
async def test_equal_jobs_give_equal_files_whatever_happens_to_their_workers(running: TrainingSite) -> None:
    training = running.client.training
    request = TuningRequest("scratches", scratches(size_hw=(90, 120)), options=OPTIONS)
    first = await running.ended((await training.create_tuning_job(request)).name)
    assert (first.state, first.message) == ("succeeded", "")
    assert first.adapter is not None
    files = await running.files(first.adapter.name)

    name = (await training.create_tuning_job(request)).name
    kills = iter([3, 28])
    next_kill, num_killed = next(kills), 0
    async for event in training.watch_tuning_job(name):
        if isinstance(event.event, TuningProgress) and event.event.step >= next_kill and running.executor.pids:
            os.kill(running.executor.pids[0], signal.SIGKILL)
            next_kill, num_killed = next(kills, 10**6), num_killed + 1
    killed = await training.get_tuning_job(name)
    assert (killed.state, num_killed) == ("succeeded", 2)
    assert killed.adapter is not None
    assert await running.files(killed.adapter.name) == files
    assert killed.metrics["validation_iou_after"] == first.metrics["validation_iou_after"]
    versions = [v.name async for v in running.client.registry.list_versions("artifacts/scratches")]
    assert len(versions) == 2

    other = dataclasses.replace(request, options=dataclasses.replace(OPTIONS, seed=4))
    differs = await running.ended((await training.create_tuning_job(other)).name)
    assert differs.adapter is not None
    assert (await running.files(differs.adapter.name))["adapter.safetensors"] != files["adapter.safetensors"]

    cancelled = (await training.create_tuning_job(request)).name
    async for event in training.watch_tuning_job(cancelled):
        if isinstance(event.event, TuningProgress):
            await training.cancel_tuning_job(cancelled)
            break
    assert (await training.get_tuning_job(cancelled)).state == "cancelled"
    async with asyncio.timeout(120):
        while running.executor.pids:
            await asyncio.sleep(0.02)
    versions = [v.name async for v in running.client.registry.list_versions("artifacts/scratches")]
    assert len(versions) == 3


async def test_a_data_set_that_cannot_be_tuned_on_is_refused_with_its_file(running: TrainingSite) -> None:
    training, registry = running.client.training, running.client.registry
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    mask = np.eye(40, 60, dtype=np.bool_)
    good = DatasetItem("good.png", as_png(picture), (40, 60), {1: mask})
    dataset = await publish_dataset(running.client, "parts", Dataset((SegmentClass(1, "one"),), (good,)))
    assert (await training.create_tuning_job(TuningRequest("one", dataset.name))).dataset == dataset
    version = await registry.get_version(dataset.name)
    half = good.image[: len(good.image) // 2]
    truncated = await registry.upload_bytes(half, as_path="images/000000.png", media_type="image/png")
    other_size = await registry.upload_bytes(as_png(picture[:30]), as_path="images/000000.png", media_type="image/png")
    for broken, expected in ((truncated, "good.png"), (other_size, "good.png: is 60 x 30, not 60 x 40")):
        files = tuple(broken if file.path == broken.path else file for file in version.manifest.files)
        manifest = Manifest(files, spec=version.manifest.spec, description=broken.sha256)
        found = await registry.publish_version("artifacts/parts", manifest)
        with pytest.raises(InvalidInput) as refused:
            await training.create_tuning_job(TuningRequest("one", found.name))
        assert refused.value.violations[0].field == "dataset"
        assert expected in refused.value.message
    with pytest.raises(InvalidInput) as refused:
        await training.create_tuning_job(TuningRequest("one", f"artifacts/{SEGMENTER}"))
    assert "is a segmenter, not a dataset" in refused.value.message
    with pytest.raises(FailedPrecondition) as unsupported:
        await training.create_tuning_job(TuningRequest("one", dataset.name, segmenter="artifacts/small-encoder"))
    assert unsupported.value.reason == "MODEL_UNSUPPORTED"
    with pytest.raises(FailedPrecondition):
        await training.create_tuning_job(TuningRequest("parts", dataset.name))


NOISE = np.random.default_rng(1).bytes(10 << 20)
PICTURE = as_png(np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8))
OTHER = as_png(np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8))


@pytest.mark.parametrize(
    ("image", "masks", "field", "why"),
    [
        (NOISE, {1: np.ones((40, 60), np.bool_)}, "inline.images[1].image", "bad.png: "),
        (OTHER, {1: np.ones((60, 40), np.bool_)}, "inline.images[1].masks[0].mask", "bad.png: mask is 40x60"),
        (OTHER, {7: np.ones((40, 60), np.bool_)}, "inline.images[1].masks[0].class_id", "bad.png: class 7 is none"),
        (PICTURE, {1: np.ones((40, 60), np.bool_)}, "inline.images[1]", "bad.png: is the same file as good.png"),
    ],
)
async def test_wrong_data_in_a_request_is_refused_with_its_field_and_file(
    running: TrainingSite, image: bytes, masks: dict[int, np.ndarray], field: str, why: str
) -> None:
    good = ValidatedImage("good.png", PICTURE, {1: np.eye(40, 60, dtype=np.bool_)})
    data = InlineDataset([SegmentClass(1, "one")], [good, ValidatedImage("bad.png", image, masks)])
    with pytest.raises(InvalidInput) as refused:
        await running.client.training.create_tuning_job(TuningRequest("one", data))
    assert [violation.field for violation in refused.value.violations] == [field]
    assert why in f"{refused.value.message}; {refused.value.violations[0].description}"
    assert [job async for job in running.client.training.list_tuning_jobs()] == []


async def test_an_empty_set_and_an_adapter_of_another_base_are_refused(running: TrainingSite) -> None:
    training, registry = running.client.training, running.client.registry
    for masks in ({}, {1: np.zeros((40, 60), np.bool_)}):
        nothing = InlineDataset([SegmentClass(1, "one")], [ValidatedImage("a.png", PICTURE, masks)])
        with pytest.raises(InvalidInput, match="nothing to learn from") as refused:
            await training.create_tuning_job(TuningRequest("one", nothing))
        assert refused.value.violations[0].field == "inline.images"
    with pytest.raises(InvalidInput) as no_images:
        await training.create_tuning_job(TuningRequest("one", InlineDataset([SegmentClass(1, "one")], [])))
    assert [violation.field for violation in no_images.value.violations] == ["inline.images"]
    encoder = await registry.get_version(f"artifacts/{ENCODER}")
    file = await registry.upload_bytes(b"{}", as_path="adapter.json", media_type="application/json")
    await registry.create_artifact("foreign", "adapter")
    manifest = Manifest((file,), (Lineage("segmenter", encoder.name, encoder.digest),))
    await registry.publish_version("artifacts/foreign", manifest)
    good = InlineDataset(
        [SegmentClass(1, "one")], [ValidatedImage("a.png", PICTURE, {1: np.eye(40, 60, dtype=np.bool_)})]
    )
    with pytest.raises(FailedPrecondition, match="artifacts/foreign was made for segmenter") as other_base:
        await training.create_tuning_job(TuningRequest("foreign", good, promote_alias="production"))
    assert other_base.value.reason == "ADAPTER_BASE_MISMATCH"
    assert other_base.value.metadata["adapter"] == "artifacts/foreign"
    assert other_base.value.metadata["field"] == "adapter_id"


async def test_a_segmenter_in_half_precision_is_refused_at_creation(
    running: TrainingSite, small_sam: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    shutil.copytree(small_sam / SEGMENTER, folder)
    spec = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(spec | {"precision": "float16"}))
    encoder = await running.client.registry.get_version(f"artifacts/{ENCODER}")
    await running.site.publish_model(folder, "half-segmenter", image_encoder=encoder)
    request = TuningRequest("one", scratches(1), segmenter="artifacts/half-segmenter")
    with pytest.raises(FailedPrecondition, match=r"segmenter: .* computes in float16") as refused:
        await running.client.training.create_tuning_job(request)
    assert (refused.value.reason, refused.value.metadata["field"]) == ("MODEL_UNSUPPORTED", "segmenter")
    assert [job async for job in running.client.training.list_tuning_jobs()] == []


@pytest.mark.slow
async def test_a_prompt_sets_matcher_is_trained_on_too(running: TrainingSite) -> None:
    registry, training = running.client.registry, running.client.training
    segmenter, encoder = [await registry.get_version(f"artifacts/{name}") for name in (SEGMENTER, ENCODER)]
    index = b'{"options": {"matcher": "prototype"}}'
    file = await registry.upload_bytes(index, as_path="prompt_set.json", media_type="application/json")
    await registry.create_artifact("prompts", "prompt_set")
    lineage = (
        Lineage("segmenter", segmenter.name, segmenter.digest),
        Lineage("feature_encoder", encoder.name, encoder.digest),
    )
    prompts = await registry.publish_version("artifacts/prompts", Manifest((file,), lineage))
    data = scratches(size_hw=(90, 120))
    request = TuningRequest(
        "matched", data, prompt_set="artifacts/prompts", method="lora", options=TuningOptions(num_steps=4)
    )
    job = await running.ended((await training.create_tuning_job(request)).name)
    assert (job.state, job.message) == ("succeeded", "")
    assert job.adapter is not None
    assert "validation_proposal_iou_after" in job.metrics
    version = await registry.get_version(job.adapter.name)
    assert version.manifest.made_from("prompt_set") == Lineage("prompt_set", prompts.name, prompts.digest)

    other = Lineage("segmenter", encoder.name, encoder.digest)
    await registry.publish_version("artifacts/prompts", Manifest((file,), (other, lineage[1])))
    with pytest.raises(FailedPrecondition) as refused:
        await training.create_tuning_job(request)
    assert (refused.value.reason, refused.value.metadata["field"]) == ("ADAPTER_BASE_MISMATCH", "prompt_set")


@pytest.mark.slow
async def test_a_warm_worker_has_exported_the_graph_that_its_first_job_needs(running: TrainingSite) -> None:
    graphs = running.site.folder / "training" / "graphs"
    await running.executor.warm_up(f"artifacts/{SEGMENTER}")
    (exported,) = graphs.iterdir()
    made = exported.stat().st_mtime_ns
    request = TuningRequest("warm", scratches(size_hw=(90, 120)), options=TuningOptions(num_steps=1))
    job = await running.ended((await running.client.training.create_tuning_job(request)).name)
    assert (job.state, job.metrics["parity_passed"]) == ("succeeded", 1)
    assert [(path.name, path.stat().st_mtime_ns) for path in graphs.iterdir()] == [(exported.name, made)]


@pytest.mark.slow
async def test_a_new_adapter_is_compared_with_the_one_that_is_served(running: TrainingSite) -> None:
    registry, training = running.client.registry, running.client.training
    request = TuningRequest(
        "better",
        scratches(size_hw=(90, 120)),
        method="lora",
        options=TuningOptions(num_steps=2),
        promote_alias="production",
        promote_only_if_better=True,
    )
    first = await running.ended((await training.create_tuning_job(request)).name)
    assert first.adapter is not None
    assert "validation_iou_promoted" not in first.metrics
    assert "the segmenter's without an adapter" in first.promotion
    if not first.promotion.startswith("moved"):
        await registry.set_alias("artifacts/better/aliases/production", first.adapter.name)

    second = await running.ended((await training.create_tuning_job(request)).name)
    assert second.adapter is not None
    version = await registry.get_version(second.adapter.name)
    assert version.manifest.made_from("compared_with") == Lineage(
        "compared_with", first.adapter.name, first.adapter.digest
    )
    own, served = (second.metrics[f"validation_iou_{which}"] for which in ("after", "promoted"))
    assert version.manifest.metrics["validation_iou_promoted"] == served
    # The images that folds left out are among those that the first adapter was tuned on.
    known = second.metrics["validation_images_known_to_promoted"]
    assert known >= 1
    told = f"is {own:.4f}, that of {first.adapter.name} {served:.4f}, which was tuned on {known:g} of the validation"
    assert told in second.promotion
    assert second.promotion.startswith("moved" if own >= served else "not promoted")
    named = (await registry.get_version("artifacts/better")).name
    assert named == (second.adapter.name if own >= served else first.adapter.name)

    shifted = dataclasses.replace(request, options=TuningOptions(num_steps=2, seed=1), promote_only_if_better=False)
    third = await running.ended((await training.create_tuning_job(shifted)).name)
    assert third.adapter is not None
    assert third.promotion == f"moved artifacts/better/aliases/production to {third.adapter.name}"
