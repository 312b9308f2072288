"""The training service's messages to values and back."""

from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.client.models import model_reference
from vplab.client.times import time_of
from vplab.client.training.values import (
    ExportJob,
    InlineDataset,
    TuningEvent,
    TuningJob,
    TuningOptions,
    TuningPreview,
    TuningProgress,
    TuningRequest,
)
from vplab.errors import InvalidInput
from vplab.wire.enums import EnumWords
from vplab.wire.images import image_to_proto
from vplab.wire.masks import mask_from_proto, mask_to_proto

METHODS = EnumWords(pb.TuningMethod)
STATES = EnumWords(pb.JobState)
STAGES = EnumWords(pb.TuningStage)

_OPTIONS = ("num_steps", "learning_rate", "lora_rank", "num_prompt_tokens", "seed", "early_features")


def request_to_proto(value: TuningRequest, request_id: str) -> pb.CreateTuningJobRequest:
    """Return the request that starts a job. Raises InvalidInput for data that cannot be sent."""
    request = pb.CreateTuningJobRequest(
        adapter_id=value.adapter_id,
        segmenter=value.segmenter,
        prompt_set=value.prompt_set,
        method=METHODS.value(value.method, field="method"),  # type: ignore[arg-type]
        promote_alias=value.promote_alias,
        promote_only_if_better=value.promote_only_if_better,
        request_id=request_id,
        segmenter_digest=value.segmenter_digest,
        prompt_set_digest=value.prompt_set_digest,
        dataset_digest=value.dataset_digest,
    )
    for name in _OPTIONS:
        option = getattr(value.options, name)
        if option is not None:
            try:
                setattr(request.options, name, option)
            except (ValueError, TypeError) as error:
                raise InvalidInput(f"{option!r} does not fit: {error}", field=f"options.{name}") from error
    if isinstance(value.data, InlineDataset):
        request.inline.CopyFrom(_inline_to_proto(value.data))
    else:
        request.dataset = value.data
    return request


def tuning_job(message: pb.TuningJob) -> TuningJob:
    """Return the value of a job message."""
    options = {name: getattr(message.options, name) for name in _OPTIONS if message.options.HasField(name)}  # type: ignore[arg-type]
    return TuningJob(
        name=message.name,
        state=STATES.word(message.state),
        method=METHODS.word(message.method),
        options=TuningOptions(**options),
        dataset=model_reference(message.dataset),
        segmenter=model_reference(message.segmenter),
        adapter=model_reference(message.adapter) if message.HasField("adapter") else None,
        metrics=dict(message.metrics),
        message=message.message,
        create_time=time_of(message, "create_time"),
        end_time=time_of(message, "end_time"),
        stage=STAGES.word(message.stage),
        promotion=message.promotion,
        adapter_id=message.adapter_id,
        prompt_set=model_reference(message.prompt_set) if message.HasField("prompt_set") else None,
        promote_alias=message.promote_alias,
    )


def tuning_event(message: pb.WatchTuningJobResponse) -> TuningEvent:
    """Return the value of an event. Raises InvalidInput when it says nothing or its mask is broken."""
    event: TuningProgress | TuningPreview | TuningJob
    match message.WhichOneof("event"):
        case "progress":
            progress = message.progress
            iou = progress.validation_iou if progress.HasField("validation_iou") else None
            event = TuningProgress(progress.step, progress.num_steps, progress.loss, iou)
        case "preview":
            preview = message.preview
            mask = mask_from_proto(preview.mask, field="preview.mask")
            event = TuningPreview(mask, preview.file_name, preview.class_id)
        case "job":
            event = tuning_job(message.job)
        case _:
            raise InvalidInput("one of progress, preview and job is required", field="event")
    return TuningEvent(message.sequence, STATES.word(message.state), event)


def export_job(message: pb.ExportJob) -> ExportJob:
    """Return the value of an export job message."""
    return ExportJob(
        name=message.name,
        state=STATES.word(message.state),
        bundle=model_reference(message.bundle) if message.HasField("bundle") else None,
        message=message.message,
        create_time=time_of(message, "create_time"),
        end_time=time_of(message, "end_time"),
    )


def _inline_to_proto(data: InlineDataset) -> pb.InlineDataset:
    message = pb.InlineDataset()
    for item in data.classes:
        message.classes.add(class_id=item.class_id, display_name=item.display_name)
    for image in data.images:
        validated = message.images.add(file_name=image.file_name, image=image_to_proto(image.image))
        for class_id, mask in sorted(image.masks.items()):
            validated.masks.add(class_id=class_id, mask=mask_to_proto(mask))
    return message
