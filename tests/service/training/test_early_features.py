"""Jobs of the method hq_token: with the early feature where the image encoder gives one, and what they say of it."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fakes.small_sam import EARLY, EARLY_ENCODER_SPEC, ENCODER, ENCODER_SPEC, SEGMENTER, small_site, write_small_sam
from fakes.training_site import TrainingSite, scratches, training_beside
from vplab.client.training.values import TuningJob, TuningOptions, TuningRequest
from vplab.errors import InvalidInput
from vplab.vision.specs import EncoderSpec

NAMES = {"default_segmenter": f"artifacts/{SEGMENTER}", "default_feature_encoder": f"artifacts/{ENCODER}"}
DATA = scratches(size_hw=(90, 120))


@pytest.fixture
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TrainingSite]:
    """Run a small SAM with the encoder that ``beside`` says."""
    models = write_small_sam(tmp_path / "models", request.param)
    async with small_site(tmp_path, models) as site, training_beside(site, **NAMES) as training:
        yield training


def beside(spec: EncoderSpec) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("running", [spec], indirect=True, ids=[spec.architecture])


async def tuned(running: TrainingSite, request: TuningRequest) -> TuningJob:
    job = await running.ended((await running.client.training.create_tuning_job(request)).name)
    assert (job.state, job.message) == ("succeeded", "")
    return job


async def version_files(running: TrainingSite, job: TuningJob, folder: Path) -> Path:
    assert job.adapter is not None
    version = await running.client.registry.get_version(job.adapter.name)
    for file in version.manifest.files:
        await running.client.registry.download_file(file.sha256, folder / file.path)
    return folder


@pytest.mark.slow
@beside(EARLY_ENCODER_SPEC)
async def test_a_job_fuses_the_early_feature_and_its_result_says_so(running: TrainingSite, tmp_path: Path) -> None:
    options = TuningOptions(num_steps=4, seed=3)
    job = await tuned(running, TuningRequest("sharp", DATA, method="hq_token", options=options))
    assert job.options.early_features is True
    assert job.metrics["early_channels"] == EARLY
    folder = await version_files(running, job, tmp_path / "adapter")
    said = json.loads((folder / "adapter.json").read_text())
    assert said["adapter"]["early_channels"] == EARLY
    assert f"with an early feature of {EARLY} channels" in (folder / "MODEL_CARD.md").read_text()
    report = json.loads((folder / "parity.json").read_text())
    assert report["passed"]
    assert {case["num_prompts"] for case in report["cases"]} == {20}
    session = onnxruntime.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes["early_features"] == ["num_images", EARLY, 8, 8]

    told = TuningRequest("plain", DATA, method="hq_token", options=TuningOptions(num_steps=2, early_features=False))
    plain = await tuned(running, told)
    assert plain.options.early_features is False
    assert "early_channels" not in plain.metrics

    # What an alias serves is measured with its early feature, whatever the new one is.
    few = TuningOptions(num_steps=2)
    first = TuningRequest("both", DATA, method="hq_token", options=few, promote_alias="production")
    await tuned(running, first)
    second = replace(first, method="ia3", promote_only_if_better=True)
    job = await tuned(running, second)
    assert np.isfinite(job.metrics["validation_iou_promoted"])


@pytest.mark.slow
@beside(ENCODER_SPEC)
async def test_where_there_is_none_a_job_trains_without_and_says_so(running: TrainingSite, tmp_path: Path) -> None:
    job = await tuned(running, TuningRequest("sharp", DATA, method="hq_token", options=TuningOptions(num_steps=2)))
    assert job.options.early_features is False
    assert "early_channels" not in job.metrics
    folder = await version_files(running, job, tmp_path / "adapter")
    assert json.loads((folder / "adapter.json").read_text())["adapter"]["early_channels"] is None
    assert "hq_token without an early feature" in (folder / "MODEL_CARD.md").read_text()


@beside(ENCODER_SPEC)
async def test_what_does_not_fit_is_refused_at_creation_and_the_field_named(running: TrainingSite) -> None:
    training = running.client.training
    for method, asked in (("hq_token", True), ("lora", True), ("e_peft", False)):
        request = TuningRequest("sharp", DATA, method=method, options=TuningOptions(early_features=asked))  # type: ignore[arg-type]
        with pytest.raises(InvalidInput) as refused:
            await training.create_tuning_job(request)
        assert [violation.field for violation in refused.value.violations] == ["options.early_features"]
    assert [job async for job in training.list_tuning_jobs()] == []
