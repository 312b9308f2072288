"""Export jobs over a real channel and database, and their bundles from a small SAM."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from fakes.line_site import line_site
from fakes.small_sam import ENCODER, SEGMENTER
from fakes.training_parts import PROMPT_SET, Parts, fake_training
from fakes.training_site import TrainingSite
from vplab.client import AsyncClient, ClientOptions
from vplab.client.training.values import ExportJob
from vplab.errors import AlreadyExists, DataLoss, FailedPrecondition, InvalidInput, NotFound, Unavailable


async def ended(client: AsyncClient, name: str) -> ExportJob:
    """Ask until an export has ended."""
    async with asyncio.timeout(120):
        while not (job := await client.training.get_export_job(name)).is_done:
            await asyncio.sleep(0.02)
        return job


async def test_an_export_runs_to_a_published_bundle(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        created = await client.training.create_export_job("line-a", PROMPT_SET.name)
        assert (created.state, created.bundle) == ("queued", None)
        job = await ended(client, created.name)
        assert (job.state, job.message) == ("succeeded", "")
        assert job.bundle is not None
        assert job.bundle.name == "artifacts/line-a/versions/1"
        assert parts.bundles.made == [job.name]


async def test_a_repeated_request_returns_the_first_export(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        request_id = str(uuid.uuid4())
        create = client.training.create_export_job
        first = await create("line-a", PROMPT_SET.name, request_id=request_id)
        await ended(client, first.name)
        assert (await create("line-a", PROMPT_SET.name, request_id=request_id)).name == first.name
        with pytest.raises(AlreadyExists) as refused:
            await create("line-b", PROMPT_SET.name, request_id=request_id)
        assert refused.value.reason == "REQUEST_ID_REUSED"
        assert len(parts.bundles.made) == 1


async def test_exports_are_not_among_the_tuning_jobs(tmp_path: Path) -> None:
    async with fake_training(tmp_path) as (client, parts):
        job = await ended(client, (await client.training.create_export_job("line-a", PROMPT_SET.name)).name)
        assert [found async for found in client.training.list_tuning_jobs()] == []
        with pytest.raises(NotFound):
            await client.training.get_tuning_job(job.name.replace("exportJobs", "tuningJobs"))
        with pytest.raises(InvalidInput) as refused:
            await client.training.get_export_job(job.name.replace("exportJobs", "tuningJobs"))
        assert refused.value.violations[0].field == "name"
        with pytest.raises(NotFound):
            await client.training.get_export_job("exportJobs/none")
        assert parts.executor.starts == []


async def test_an_export_waits_for_a_registry_that_is_away_and_fails_for_damaged_files(tmp_path: Path) -> None:
    async def away_at_first(attempt: int) -> None:
        if attempt == 1:
            raise Unavailable("the registry is away")
        if attempt == 3:
            raise DataLoss("a file is damaged")

    parts = Parts()
    parts.bundles.before_end = away_at_first
    async with fake_training(tmp_path, parts) as (client, _):
        first = await ended(client, (await client.training.create_export_job("line-a", PROMPT_SET.name)).name)
        assert (first.state, parts.bundles.made) == ("succeeded", [first.name] * 2)
        second = await ended(client, (await client.training.create_export_job("line-a", PROMPT_SET.name)).name)
        assert (second.state, second.message, second.bundle) == ("failed", "a file is damaged", None)


async def test_an_export_whose_server_stopped_ends_once_at_the_next(tmp_path: Path) -> None:
    parts, reached = Parts(), asyncio.Event()

    async def for_ever(attempt: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    parts.bundles.before_end = for_ever
    async with fake_training(tmp_path, parts) as (client, _):
        name = (await client.training.create_export_job("line-a", PROMPT_SET.name)).name
        await asyncio.wait_for(reached.wait(), 20)
    async with fake_training(tmp_path) as (client, again):
        assert (await ended(client, name)).state == "succeeded"
        assert again.bundles.made == [name]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[TrainingSite]:
    async with line_site(tmp_path) as training:
        yield training


async def test_a_bundle_is_complete_and_equal_exports_are_equal_files(running: TrainingSite, tmp_path: Path) -> None:
    client = running.client
    jobs = [
        await ended(client, (await client.training.create_export_job("line-a", "artifacts/patches")).name)
        for _ in range(2)
    ]
    assert [(job.state, job.message) for job in jobs] == [("succeeded", "")] * 2
    assert jobs[0].bundle is not None
    assert jobs[1].bundle is not None
    files = await running.files(jobs[0].bundle.name)
    assert await running.files(jobs[1].bundle.name) == files
    assert {"bundle.json", "README.md", "segment.py", "matcher.onnx", "decoder/decoder.onnx"} <= set(files)
    version = await client.registry.get_version(jobs[0].bundle.name)
    assert version.kind == "bundle"
    relations = {link.relation for link in version.manifest.lineage}
    assert relations == {"prompt_set", "segmenter", "image_encoder", "feature_encoder"}
    said = json.loads(await client.registry.read_blob(files["bundle.json"], max_bytes=1 << 20))
    assert said["files"] == {path: digest for path, digest in files.items() if path != "bundle.json"}
    assert [(c["class_id"], c["display_name"]) for c in said["classes"]] == [(7, "patch")]
    await client.registry.download_file(files["references/rows.npy"], tmp_path / "rows.npy")
    rows = np.load(tmp_path / "rows.npy")
    assert (rows.ndim, rows.shape[0], rows.shape[2]) == (3, 1, 24)
    assert said["embedding_precision"] == "float16"
    not_reported = dict.fromkeys(("image_encoder", "feature_encoder", "segmenter"), "not reported")
    assert said["parity"] == not_reported | {"matcher": "passed"}
    parity = json.loads(await client.registry.read_blob(files["parity/matcher.json"], max_bytes=1 << 20))
    assert parity["passed"]
    assert len(parity["cases"]) > 20


async def test_what_cannot_be_exported_is_refused_with_its_field(running: TrainingSite) -> None:
    create = running.client.training.create_export_job
    with pytest.raises(InvalidInput) as refused:
        await create("Line A", "artifacts/patches")
    assert refused.value.violations[0].field == "bundle_id"
    for field, arguments in (
        ("prompt_set", {"prompt_set": "artifacts/none"}),
        ("adapter", {"prompt_set": "artifacts/patches", "adapter": "artifacts/none/versions/1"}),
    ):
        with pytest.raises(NotFound) as missing:
            await create("line-a", **arguments)
        assert (missing.value.reason, missing.value.metadata["field"]) == ("RESOURCE_NOT_FOUND", field)
        assert missing.value.message.startswith(f"{field}: ")
    with pytest.raises(FailedPrecondition) as other:
        await create("line-a", f"artifacts/{SEGMENTER}/versions/1")
    assert (other.value.reason, other.value.metadata["field"]) == ("MODEL_UNSUPPORTED", "prompt_set")
    with pytest.raises(FailedPrecondition, match="holds segmenter versions") as taken:
        await create(SEGMENTER, "artifacts/patches")
    assert taken.value.metadata["field"] == "bundle_id"


async def test_an_adapter_of_another_segmenter_is_refused(running: TrainingSite, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "model.json").write_text("{}")
    async with AsyncClient(registry=running.site.registry_address, options=ClientOptions()) as client:
        other = await client.registry.get_version(f"artifacts/{ENCODER}")
    adapter = await running.site.publish_adapter_files(folder, "scratches", base=other)
    with pytest.raises(FailedPrecondition) as refused:
        await running.client.training.create_export_job("line-a", "artifacts/patches", adapter=adapter.name)
    assert refused.value.reason == "ADAPTER_BASE_MISMATCH"
    assert (refused.value.metadata["field"], refused.value.metadata["adapter"]) == ("adapter", adapter.name)
