"""What a request is refused for before anybody is asked: a refusal names its field, and the file if there is one."""

import dataclasses
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.errors import InvalidInput
from vplab.training import convert
from vplab.training.values import (
    DraftDataset,
    Job,
    JobEvent,
    JobKind,
    JobState,
    ModelRef,
    Preview,
    Progress,
    Stage,
    TuningMethod,
    TuningOptions,
    TuningPlan,
)

PNG = b"\x89PNG"


def request(**changes: object) -> pb.CreateTuningJobRequest:
    """Return a request that is right but for ``changes``."""
    message = pb.CreateTuningJobRequest(
        inline={
            "classes": [{"class_id": 1, "display_name": "one"}, {"class_id": 7, "display_name": "seven"}],
            "images": [
                {
                    "file_name": name,
                    "image": {"encoded": PNG},
                    "masks": [{"class_id": 7, "mask": {"width": 4, "height": 2, "runs": [3, 5]}}],
                }
                for name in ("a.png", "b.png")
            ],
        },
        adapter_id="scratches",
        request_id=str(uuid.uuid4()),
    )
    for name, value in changes.items():
        if isinstance(value, dict):
            getattr(message, name).CopyFrom(type(getattr(message, name))(**value))
        else:
            setattr(message, name, value)
    return message


def test_a_request_becomes_a_draft_with_the_ensemble_as_its_method() -> None:
    draft = convert.draft(request(segmenter="artifacts/sam", prompt_set="artifacts/prompts"))
    assert isinstance(draft.source, DraftDataset)
    assert [image.file_name for image in draft.source.images] == ["a.png", "b.png"]
    assert draft.source.images[0].masks[0].runs == (3, 5)
    assert draft.segmenter == "artifacts/sam/aliases/production"
    assert draft.prompt_set == "artifacts/prompts", "an artifact's own name means its newest version"
    assert draft.method is TuningMethod.E_PEFT
    assert draft.options == TuningOptions()


def test_the_fingerprint_is_of_everything_that_was_asked() -> None:
    first = request()
    same = pb.CreateTuningJobRequest.FromString(first.SerializeToString())
    assert convert.draft(first).fingerprint == convert.draft(same).fingerprint
    same.inline.images[1].masks[0].mask.runs[:] = [4, 4]
    assert convert.draft(first).fingerprint != convert.draft(same).fingerprint


def _image(**changes: object) -> Callable[[pb.CreateTuningJobRequest], None]:
    def change(message: pb.CreateTuningJobRequest) -> None:
        for name, value in changes.items():
            setattr(message.inline.images[1], name, value)

    return change


def _digest(message: pb.CreateTuningJobRequest) -> None:
    message.inline.images[1].image.digest = "0" * 64


def _no_image(message: pb.CreateTuningJobRequest) -> None:
    message.inline.images[1].ClearField("image")


def _mask_class(class_id: int) -> Callable[[pb.CreateTuningJobRequest], None]:
    def change(message: pb.CreateTuningJobRequest) -> None:
        message.inline.images[1].masks.add(class_id=class_id, mask={"width": 4, "height": 2, "runs": [8]})

    return change


def _empty_mask(message: pb.CreateTuningJobRequest) -> None:
    message.inline.images[1].masks[0].mask.width = 0


def _classes(*ids: int) -> Callable[[pb.CreateTuningJobRequest], None]:
    def change(message: pb.CreateTuningJobRequest) -> None:
        del message.inline.classes[:]
        for class_id in ids:
            message.inline.classes.add(class_id=class_id, display_name="x")

    return change


@pytest.mark.parametrize(
    ("change", "field", "file"),
    [
        (_image(file_name="a.png"), "inline.images[1].file_name", "a.png"),
        (_image(file_name=""), "inline.images[1].file_name", None),
        (_image(file_name="."), "inline.images[1].file_name", None),
        (_image(file_name="x" * 501), "inline.images[1].file_name", None),
        (_digest, "inline.images[1].image.digest", "b.png"),
        (_no_image, "inline.images[1].image.content", "b.png"),
        (_mask_class(2), "inline.images[1].masks[1].class_id", "b.png"),
        (_mask_class(7), "inline.images[1].masks[1].class_id", "b.png"),
        (_empty_mask, "inline.images[1].masks[0].mask.width", "b.png"),
        (_classes(), "inline.classes", None),
        (_classes(1, 1), "inline.classes[1].class_id", None),
        (_classes(0), "inline.classes[0].class_id", None),
        (_classes(256), "inline.classes[0].class_id", None),
        (lambda m: m.inline.ClearField("images"), "inline.images", None),
    ],
)
def test_wrong_data_is_refused_with_field_and_file(
    change: Callable[[pb.CreateTuningJobRequest], None], field: str, file: str | None
) -> None:
    message = request()
    change(message)
    with pytest.raises(InvalidInput) as refused:
        convert.draft(message)
    assert [violation.field for violation in refused.value.violations] == [field]
    if file is not None:
        assert file in refused.value.message
        assert refused.value.metadata["file"] == file


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"adapter_id": "No"}, "adapter_id"),
        ({"adapter_id": ""}, "adapter_id"),
        ({"segmenter": "sam"}, "segmenter"),
        ({"prompt_set": "prompts"}, "prompt_set"),
        ({"dataset": "data"}, "dataset"),
        ({"promote_alias": "Production"}, "promote_alias"),
        ({"promote_only_if_better": True}, "promote_only_if_better"),
        ({"method": 99}, "method"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "one"}, "request_id"),
        ({"options": {"num_steps": 0}}, "options.num_steps"),
        ({"options": {"num_steps": 100_001}}, "options.num_steps"),
        ({"options": {"learning_rate": 0.0}}, "options.learning_rate"),
        ({"options": {"learning_rate": float("nan")}}, "options.learning_rate"),
        ({"options": {"learning_rate": float("inf")}}, "options.learning_rate"),
        ({"options": {"lora_rank": 257}}, "options.lora_rank"),
        ({"segmenter_digest": "5" * 63}, "segmenter_digest"),
        ({"prompt_set_digest": "5" * 64}, "prompt_set_digest"),
        ({"dataset_digest": "5" * 64}, "dataset_digest"),
        ({"options": {"num_prompt_tokens": 0}}, "options.num_prompt_tokens"),
    ],
)
def test_wrong_fields_are_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        convert.draft(request(**changes))
    assert [violation.field for violation in refused.value.violations] == [field]


def test_a_request_without_data_is_refused() -> None:
    message = request()
    message.ClearField("inline")
    with pytest.raises(InvalidInput) as refused:
        convert.draft(message)
    assert refused.value.violations[0].field == "source"


def test_a_job_and_its_events_become_messages() -> None:
    model = ModelRef("artifacts/a/versions/1", "0" * 64)
    plan = TuningPlan("scratches", model, model, None, TuningMethod.LORA, TuningOptions(10, 0.1, 8, None, 0))
    now = datetime(2026, 11, 23, tzinfo=UTC)
    job = Job("1", JobKind.TUNING, JobState.RUNNING, Stage.EMBED, plan, None, {}, "", "", now, None)
    message = convert.job(job)
    assert (message.adapter_id, message.promote_alias, message.HasField("prompt_set")) == ("scratches", "", False)
    plan = dataclasses.replace(plan, prompt_set=model, promote_alias="production")
    message = convert.job(job := dataclasses.replace(job, plan=plan))
    assert (message.promote_alias, message.prompt_set.name) == ("production", model.name)
    assert (message.name, message.state, message.stage) == (
        "tuningJobs/1",
        pb.JOB_STATE_RUNNING,
        pb.TUNING_STAGE_EMBED,
    )
    assert message.method == pb.TUNING_METHOD_LORA
    assert not message.options.HasField("num_prompt_tokens")
    assert message.options.HasField("seed")
    assert not message.HasField("adapter")
    assert not message.HasField("end_time")
    progress = convert.event(JobEvent(4, JobState.RUNNING, Progress(2, 10, 0.5)))
    assert (progress.sequence, progress.progress.step, progress.progress.HasField("validation_iou")) == (4, 2, False)
    preview = convert.event(JobEvent(5, JobState.RUNNING, Preview("a.png", 7, (2, 4), (3, 5))))
    assert (preview.preview.mask.width, list(preview.preview.mask.runs)) == (4, [3, 5])
    assert convert.event(JobEvent(6, JobState.RUNNING, job)).job == message


def test_every_method_state_and_stage_has_its_word_in_the_contract() -> None:
    assert len(TuningMethod) == len(pb.TuningMethod.keys()) - 1
    assert len(JobState) == len(pb.JobState.keys()) - 1
    assert len(Stage) == len(pb.TuningStage.keys()) - 1
