"""Between the contract's messages and this service's values."""

import hashlib
import math
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from vplab.api.training.v1 import training_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.training.errors import at_file
from vplab.training.values import (
    COLLECTIONS,
    DraftDataset,
    DraftImage,
    DraftMask,
    EncodedImage,
    ExportDraft,
    ExportJob,
    FrameImage,
    Job,
    JobEvent,
    JobKind,
    JobState,
    ModelRef,
    Preview,
    Progress,
    Stage,
    TuningDraft,
    TuningMethod,
    TuningOptions,
)
from vplab.wire import images as wire_images
from vplab.wire.masks import mask_size_from_proto
from vplab.wire.names import parse_artifact_id, parse_job_name, parse_request_id, parse_sha256, parse_version_or_alias

MAX_CLASSES: Final = 255
MAX_IMAGES: Final = 64
MAX_FILE_NAME: Final = 500
MAX_DISPLAY_NAME: Final = 200
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 1000

_METHODS: Final = {pb.TuningMethod.Value(f"TUNING_METHOD_{method.upper()}"): method for method in TuningMethod}
_METHOD_VALUES: Final = {method: value for value, method in _METHODS.items()}
_STATES: Final = {state: pb.JobState.Value(f"JOB_STATE_{state.upper()}") for state in JobState}
_STAGES: Final = {stage: pb.TuningStage.Value(f"TUNING_STAGE_{stage.upper()}") for stage in Stage}
_BOUNDS: Final = {"num_steps": (1, 100_000), "lora_rank": (1, 256), "num_prompt_tokens": (1, 1000)}


def draft(request: pb.CreateTuningJobRequest) -> TuningDraft:
    """Return what a request asks for. Raises InvalidInput, which names the file where the data is at fault."""
    request_id = parse_request_id(request.request_id, required=True)
    adapter_id = parse_artifact_id(request.adapter_id, field="adapter_id")
    if request.promote_alias:
        parse_artifact_id(request.promote_alias, field="promote_alias")
    if request.promote_only_if_better and not request.promote_alias:
        raise InvalidInput("has no meaning without promote_alias", field="promote_only_if_better")
    if request.prompt_set:
        parse_version_or_alias(request.prompt_set, field="prompt_set")
    return TuningDraft(
        adapter_id=adapter_id,
        segmenter=str(parse_version_or_alias(request.segmenter, field="segmenter")) if request.segmenter else "",
        prompt_set=request.prompt_set,
        method=_method(request.method),
        options=_options(request.options),
        promote_alias=request.promote_alias,
        promote_only_if_better=request.promote_only_if_better,
        request_id=str(request_id),
        fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest(),
        source=_source(request),
        segmenter_digest=_digest(request.segmenter_digest, "segmenter_digest"),
        prompt_set_digest=_digest(request.prompt_set_digest, "prompt_set_digest", of=request.prompt_set),
        dataset_digest=_digest(request.dataset_digest, "dataset_digest", of=request.dataset),
    )


def job_id(name: str) -> str:
    """Return the id of a tuning job's name. Raises InvalidInput."""
    return parse_job_name(name, collection=COLLECTIONS[JobKind.TUNING], field="name")


def job(value: Job) -> pb.TuningJob:
    """Return a job."""
    options = {name: number for name, number in vars(value.plan.options).items() if number is not None}
    message = pb.TuningJob(
        name=value.name,
        state=_STATES[value.state],
        stage=_STAGES[value.stage],
        method=_METHOD_VALUES[value.plan.method],
        options=pb.TuningOptions(**options),
        dataset=_model(value.plan.dataset),
        segmenter=_model(value.plan.segmenter),
        metrics=value.metrics,
        message=value.message,
        promotion=value.promotion,
        adapter_id=value.plan.adapter_id,
        promote_alias=value.plan.promote_alias,
        create_time=_timestamp(value.create_time),
    )
    if value.plan.prompt_set is not None:
        message.prompt_set.CopyFrom(_model(value.plan.prompt_set))
    if value.adapter is not None:
        message.adapter.CopyFrom(_model(value.adapter))
    if value.end_time is not None:
        message.end_time.CopyFrom(_timestamp(value.end_time))
    return message


def export_draft(request: pb.CreateExportJobRequest) -> ExportDraft:
    """Return what a request asks for. Raises InvalidInput."""
    bundle_id = parse_artifact_id(request.bundle_id, field="bundle_id")
    parse_version_or_alias(request.prompt_set, field="prompt_set")
    adapter = str(parse_version_or_alias(request.adapter, field="adapter")) if request.adapter else ""
    return ExportDraft(
        bundle_id=bundle_id,
        prompt_set=request.prompt_set,
        adapter=adapter,
        request_id=str(parse_request_id(request.request_id, required=True)),
        fingerprint=hashlib.sha256(b"export:" + request.SerializeToString(deterministic=True)).hexdigest(),
    )


def export_job_id(name: str) -> str:
    """Return the id of an export job's name. Raises InvalidInput."""
    return parse_job_name(name, collection=COLLECTIONS[JobKind.EXPORT], field="name")


def export_job(value: ExportJob) -> pb.ExportJob:
    """Return an export."""
    message = pb.ExportJob(
        name=value.name,
        state=_STATES[value.state],
        message=value.message,
        create_time=_timestamp(value.create_time),
    )
    if value.bundle is not None:
        message.bundle.CopyFrom(_model(value.bundle))
    if value.end_time is not None:
        message.end_time.CopyFrom(_timestamp(value.end_time))
    return message


def event(value: JobEvent) -> pb.WatchTuningJobResponse:
    """Return an event."""
    message = pb.WatchTuningJobResponse(sequence=value.sequence, state=_STATES[value.state])
    match value.event:
        case Progress(step, num_steps, loss, validation_iou):
            message.progress.CopyFrom(pb.TuningProgress(step=step, num_steps=num_steps, loss=loss))
            if validation_iou is not None:
                message.progress.validation_iou = validation_iou
        case Preview(file_name, class_id, (height, width), runs):
            mask = vision_pb2.Mask(height=height, width=width, runs=runs)
            message.preview.CopyFrom(pb.TuningPreview(file_name=file_name, class_id=class_id, mask=mask))
        case Job() as changed:
            message.job.CopyFrom(job(changed))
    return message


def page_size(value: int) -> int:
    """Return how many to list: 0 means the default, too many means the most."""
    return min(value, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def page_position(token: str) -> int | None:
    """Return where a page of jobs starts, None for the beginning. Raises InvalidInput."""
    if not token:
        return None
    if not (token.isascii() and token.isdigit() and len(token) <= 15):
        raise InvalidInput("is no page token of this list", field="page_token")
    return int(token)


def position(sequence: int) -> int:
    """Return an event's number as databases hold it: the largest stand for each other, since no job has so many."""
    return min(sequence, 2**63 - 1)


def _source(request: pb.CreateTuningJobRequest) -> str | DraftDataset:
    match request.WhichOneof("source"):
        case "dataset":
            return str(parse_version_or_alias(request.dataset, field="dataset"))
        case "inline":
            return _inline(request.inline)
    raise InvalidInput("one of dataset and inline is required", field="source")


def _inline(message: pb.InlineDataset) -> DraftDataset:
    if not 1 <= len(message.classes) <= MAX_CLASSES:
        raise InvalidInput(f"{len(message.classes)} classes; 1 to {MAX_CLASSES} are allowed", field="inline.classes")
    if not 1 <= len(message.images) <= MAX_IMAGES:
        raise InvalidInput(f"{len(message.images)} images; 1 to {MAX_IMAGES} are allowed", field="inline.images")
    classes: dict[int, str] = {}
    for index, item in enumerate(message.classes):
        field = f"inline.classes[{index}]"
        if not 1 <= item.class_id <= MAX_CLASSES:
            raise InvalidInput(f"is {item.class_id}; must be 1 to {MAX_CLASSES}", field=f"{field}.class_id")
        if item.class_id in classes:
            raise InvalidInput(f"{item.class_id} is there twice", field=f"{field}.class_id")
        if not 1 <= len(item.display_name) <= MAX_DISPLAY_NAME:
            raise InvalidInput(f"must have 1 to {MAX_DISPLAY_NAME} characters", field=f"{field}.display_name")
        classes[item.class_id] = item.display_name
    images: dict[str, DraftImage] = {}
    for index, validated in enumerate(message.images):
        field = f"inline.images[{index}]"
        name = validated.file_name
        if not 1 <= len(name) <= MAX_FILE_NAME or not PurePosixPath(name).name:
            why = f"must name a file in 1 to {MAX_FILE_NAME} characters"
            raise InvalidInput(why, field=f"{field}.file_name")
        if name in images:
            raise InvalidInput(f"{name!r} is there twice", field=f"{field}.file_name", metadata={"file": name})
        images[name] = DraftImage(name, _image(validated, field), _masks(validated, classes, field))
    return DraftDataset(classes, tuple(images.values()))


def _image(message: pb.ValidatedImage, field: str) -> EncodedImage | FrameImage:
    try:
        content = wire_images.image_from_proto(message.image, field=f"{field}.image")
    except InvalidInput as error:
        raise at_file(error, message.file_name, error.violations[0].field) from error
    match content:
        case wire_images.EncodedImage(data):
            return EncodedImage(data)
        case wire_images.FrameImage() as frame:
            return FrameImage(frame.data, frame.width, frame.height, frame.stride_bytes, frame.pixel_format)
    refusal = InvalidInput("a digest cannot be kept in a data set; send the image itself")
    raise at_file(refusal, message.file_name, f"{field}.image.digest")


def _masks(message: pb.ValidatedImage, classes: dict[int, str], field: str) -> tuple[DraftMask, ...]:
    masks: dict[int, DraftMask] = {}
    for index, item in enumerate(message.masks):
        at = f"{field}.masks[{index}]"
        class_id = item.class_id
        try:
            if class_id not in classes:
                raise InvalidInput(f"class {class_id} is none of the data set's", field=f"{at}.class_id")
            if class_id in masks:
                raise InvalidInput(f"class {class_id} has two masks", field=f"{at}.class_id")
            size_hw = mask_size_from_proto(item.mask, field=f"{at}.mask")
        except InvalidInput as error:
            raise at_file(error, message.file_name, error.violations[0].field) from error
        masks[class_id] = DraftMask(class_id, size_hw, tuple(item.mask.runs), f"{at}.mask")
    return tuple(masks.values())


def _digest(digest: str, field: str, of: str | None = None) -> str:
    """Return a digest, or none. of: the name it is told of; None where a default stands in for one."""
    if digest and of == "":
        raise InvalidInput(f"has no meaning without {field.removesuffix('_digest')}", field=field)
    return parse_sha256(digest, field=field) if digest else ""


def _method(value: int) -> TuningMethod:
    if value == pb.TUNING_METHOD_UNSPECIFIED:
        return TuningMethod.E_PEFT
    if value not in _METHODS:
        raise InvalidInput(f"there is no method {value}", field="method")
    return _METHODS[value]  # type: ignore[index]


def _options(message: pb.TuningOptions) -> TuningOptions:
    said = {field.name: number for field, number in message.ListFields()}
    for name, (low, high) in _BOUNDS.items():
        if name in said and not low <= said[name] <= high:
            raise InvalidInput(f"is {said[name]}; must be {low} to {high:,}", field=f"options.{name}")
    rate = said.get("learning_rate", 1.0)
    if not (0 < rate <= 1.0 and math.isfinite(rate)):
        raise InvalidInput(f"is {rate:g}; must be above 0 and at most 1", field="options.learning_rate")
    return TuningOptions(**said)


def _model(ref: ModelRef) -> vision_pb2.ModelReference:
    return vision_pb2.ModelReference(name=ref.name, digest=ref.digest)


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time.timestamp() * 1e6))
    return stamp
