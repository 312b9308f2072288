"""A real job from end to end: nano models, a generated data set, few steps, a worker process of its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fakes.training_site import SEGMENTER, TrainingSite, nano_site, scratches, training_beside
from vplab.client.training.values import TuningJob, TuningOptions, TuningPreview, TuningProgress, TuningRequest
from vplab.runtime.code_version import code_version
from vplab.vision.adapters.spec import adapter_spec_from_json
from vplab.vision.specs import SegmenterSpec, spec_from_json

FEW = TuningOptions(num_steps=2, seed=3)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[TrainingSite]:
    async with nano_site(tmp_path) as site, training_beside(site) as training:
        yield training


@pytest.mark.slow
async def test_validated_masks_become_a_promoted_adapter(running: TrainingSite, tmp_path: Path) -> None:
    request = TuningRequest("scratch-adapter", scratches(), options=FEW, promote_alias="production")
    created = await running.client.training.create_tuning_job(request)
    events = await running.events(created.name)
    job = events[-1].event
    assert isinstance(job, TuningJob)
    assert (job.state, job.message) == ("succeeded", "")
    assert job.adapter is not None
    assert job.adapter.name == "artifacts/scratch-adapter/versions/1"
    await _check_version(running, job, tmp_path)
    _check_events([event.event for event in events])
    promoted = await running.client.registry.get_version("artifacts/scratch-adapter")
    assert promoted.digest == job.adapter.digest


async def _check_version(running: TrainingSite, job: TuningJob, tmp_path: Path) -> None:
    registry = running.client.registry
    assert job.adapter is not None
    version = await registry.get_version(job.adapter.name)
    segmenter = await registry.get_version(SEGMENTER)
    lineage = {link.relation: link.digest for link in version.manifest.lineage}
    encoder = await registry.get_version("artifacts/nano-encoder")
    assert lineage == {
        "segmenter": segmenter.digest,
        "image_encoder": encoder.digest,
        "dataset": job.dataset.digest,
        "feature_encoder": encoder.digest,
    }
    for file in version.manifest.files:
        await registry.download_file(file.sha256, tmp_path / "adapter" / file.path)
    folder = tmp_path / "adapter"
    assert {path.name for path in folder.iterdir()} == {
        "MODEL_CARD.md",
        "adapter.json",
        "adapter.safetensors",
        "decoder.onnx",
        "model.json",
        "parity.json",
    }
    said = json.loads((folder / "adapter.json").read_text())
    assert adapter_spec_from_json(json.dumps(said["adapter"])).method == "e_peft"
    assert said["segmenter"]["digest"] == segmenter.digest
    assert said["software"] == code_version()
    assert (said["training"]["seed"], said["training"]["num_steps"]) == (3, 2)
    report = json.loads((folder / "parity.json").read_text())
    assert report["passed"]
    assert all(len(set(map(tuple, case["image_sizes_hw"]))) > 8 for case in report["cases"])
    assert {case["num_prompts"] for case in report["cases"]} == {20}
    spec = spec_from_json((folder / "model.json").read_bytes())
    assert isinstance(spec, SegmenterSpec)
    # Without a prompt set the other images of the data are the references.
    assert {"validation_iou_before", "validation_iou_after", "validation_proposal_iou_after"} <= set(job.metrics)
    stages = ("queue", "start", "fetch", "embed", "train", "export", "publish", "promote")
    parts = ("train_proposals", "train_folds", "export_graph", "export_parity")
    assert {f"seconds_{stage}" for stage in (*stages, *parts)} <= set(job.metrics)
    assert 0 < sum(job.metrics[f"seconds_{stage}"] for stage in parts[:2]) <= job.metrics["seconds_train"]
    session = onnxruntime.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
    feed = {
        "image_embedding": np.zeros((1, *spec.embedding_shape), np.float32),
        "image_index": np.zeros(1, np.int64),
        "point_coords": np.zeros((1, 2, 2), np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, *spec.low_res_hw), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    logits, _ = session.run(["low_res_logits", "iou_predictions"], feed)
    assert logits.shape == (1, spec.num_planes, *spec.low_res_hw)


def _check_events(events: list[object]) -> None:
    stages = [event.stage for event in events if isinstance(event, TuningJob) and event.state == "running"]
    assert list(dict.fromkeys(stages)) == ["fetch", "embed", "train", "export", "publish", "promote"]
    progress = [event for event in events if isinstance(event, TuningProgress)]
    assert progress[-1].step == progress[-1].num_steps
    assert any(report.validation_iou is not None for report in progress)
    previews = [event for event in events if isinstance(event, TuningPreview)]
    assert previews
    assert previews[0].mask.shape == (128, 160)
    assert previews[0].file_name.startswith("part-")
