"""Between the contract's messages and this service's values."""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from google.protobuf.duration_pb2 import Duration

from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput, VPLabError
from vplab.runtime.server_info import software
from vplab.segmentation.errors import out_of_bounds
from vplab.segmentation.streams import DropPolicy
from vplab.segmentation.values import (
    ClassFinding,
    DraftReference,
    EncodedImage,
    FrameImage,
    ImageInput,
    KnownImage,
    MatcherName,
    ModelRef,
    Options,
    PredictedMask,
    Prediction,
    PromptSet,
    PromptSetDraft,
    Provenance,
    Segmentation,
    SegmentClass,
    StoredMask,
)
from vplab.vision.pipeline.segment import Instance
from vplab.vision.prompts import ObjectPrompt
from vplab.wire import images as wire_images
from vplab.wire.masks import mask_from_proto
from vplab.wire.masks import mask_to_proto as wire_mask
from vplab.wire.names import parse_artifact_id, parse_artifact_name, parse_request_id, parse_version_or_alias
from vplab.wire.prompts import box_to_proto, object_prompt_from_proto, points_to_proto
from vplab.wire.status import KIND_TO_CODE
from vplab.wire.tensors import tensor_to_proto

MAX_PROMPTS: Final = 256
MAX_CLASSES: Final = 255
MAX_REFERENCES: Final = 64
MAX_NAME: Final = 200
DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT = 4, 64
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 1000

_MATCHERS: Final = {
    pb.MATCHER_UNSPECIFIED: None,
    pb.MATCHER_SOFTMATCH: MatcherName.SOFTMATCH,
    pb.MATCHER_PROTOTYPE: MatcherName.PROTOTYPE,
    pb.MATCHER_GRAPH: MatcherName.GRAPH,
}
_MATCHER_VALUES: Final = {name: value for value, name in _MATCHERS.items()}
_POLICIES: Final = {
    pb.DROP_POLICY_WAIT: DropPolicy.WAIT,
    pb.DROP_POLICY_OLDEST: DropPolicy.OLDEST,
    pb.DROP_POLICY_NEWEST: DropPolicy.NEWEST,
}
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "max_points": (1, 128),
    "num_background_points": (0, 16),
    "min_relative_score": (0, 1),
    "presence_threshold": (-1, 1),
    "min_mask_score": (0, 1),
    "seed": (0, 2**64 - 1),
    "tile_side": (0, 16384),
}
_MIN_TILE_SIDE: Final = 64
_CODES: Final = {kind.__name__: int(code.value[0]) for kind, code in KIND_TO_CODE.items()}  # type: ignore[index]


def image(message: vision_pb2.Image, *, field: str) -> ImageInput:
    """Return a picture, not decoded. Raises InvalidInput."""
    match wire_images.image_from_proto(message, field=field):
        case wire_images.EncodedImage(data):
            return EncodedImage(data)
        case wire_images.FrameImage() as frame:
            return FrameImage(frame.data, frame.width, frame.height, frame.stride_bytes, frame.pixel_format)
        case wire_images.DigestImage(digest):
            return KnownImage(digest)


def model_name(name: str, *, field: str) -> str:
    """Return a full version or alias name, empty for an empty one: an artifact's own name becomes its production
    alias. Raises InvalidInput."""
    return str(parse_version_or_alias(name, field=field)) if name else ""


def prompt_set_name(name: str, *, field: str) -> str:
    """Return a name as it stands: an artifact's own name means its newest version. Raises InvalidInput."""
    parse_version_or_alias(name, field=field)
    return name


def prompts(messages: Sequence[pb.ObjectPrompt]) -> list[ObjectPrompt]:
    """Return the prompts of a PredictMasks request. Raises InvalidInput."""
    if not 1 <= len(messages) <= MAX_PROMPTS:
        raise InvalidInput(f"{len(messages)} prompts; must be 1 to {MAX_PROMPTS}", field="prompts")
    return [object_prompt_from_proto(message, field=f"prompts[{index}]") for index, message in enumerate(messages)]


def options(message: pb.SegmentOptions, *, field: str) -> Options:
    """Return options. Raises InvalidInput for a number outside of its bounds or an unknown matcher."""
    if message.matcher not in _MATCHERS:
        raise InvalidInput("is unknown", field=f"{field}.matcher")
    said: dict[str, float] = {}
    for name, (low, high) in _BOUNDS.items():
        if not message.HasField(name):  # type: ignore[arg-type]
            continue
        value = getattr(message, name)
        if not low <= value <= high:
            raise out_of_bounds(f"{field}.{name}", low, high)
        said[name] = value
    if 0 < said.get("tile_side", 0) < _MIN_TILE_SIDE:
        raise InvalidInput(f"must be 0 or at least {_MIN_TILE_SIDE}", field=f"{field}.tile_side")
    return Options(
        matcher=_MATCHERS[message.matcher],
        include_instances=message.include_instances,
        include_points=message.include_points,
        **said,  # type: ignore[arg-type]
    )


def draft(request: pb.CreatePromptSetRequest) -> PromptSetDraft:
    """Return what a prompt set is to be made from. Raises InvalidInput."""
    request_id = parse_request_id(request.request_id)
    classes = _classes(request.classes)
    known = {item.class_id for item in classes}
    if not 1 <= len(request.references) <= MAX_REFERENCES:
        message = f"{len(request.references)} references; must be 1 to {MAX_REFERENCES}"
        raise InvalidInput(message, field="references")
    references = tuple(
        _reference(reference, known, f"references[{index}]") for index, reference in enumerate(request.references)
    )
    missing = known - {class_id for reference in references for class_id in reference.masks}
    if missing:
        raise InvalidInput(f"class {min(missing)} has no mask on any reference", field="references")
    if len(request.display_name) > MAX_NAME:
        raise InvalidInput(f"must be at most {MAX_NAME} characters", field="display_name")
    return PromptSetDraft(
        prompt_set_id=parse_artifact_id(request.prompt_set_id, field="prompt_set_id"),
        display_name=request.display_name,
        classes=classes,
        references=references,
        segmenter=model_name(request.segmenter, field="segmenter"),
        feature_encoder=model_name(request.feature_encoder, field="feature_encoder"),
        options=options(request.options, field="options"),
        request_id="" if request_id is None else str(request_id),
        request_digest=_digest(request),
    )


def drop_policy(value: int, *, field: str) -> DropPolicy:
    """Return a drop policy. Raises InvalidInput for none."""
    policy = _POLICIES.get(value)  # type: ignore[call-overload]
    if policy is None:
        raise InvalidInput("is required: wait, oldest or newest", field=field)
    return policy  # type: ignore[no-any-return]


def max_in_flight(value: int, *, field: str) -> int:
    """Return how many frames a stream may hold. Raises InvalidInput."""
    if value > MAX_IN_FLIGHT:
        raise out_of_bounds(field, 1, MAX_IN_FLIGHT)
    return value or DEFAULT_IN_FLIGHT


def page_size(value: int) -> int:
    """Return how many to list."""
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page_position(token: str) -> str:
    """Return the name after which a page starts. Raises InvalidInput for a token that no page gave."""
    return str(parse_artifact_name(token, field="page_token")) if token else ""


def prediction_response(prediction: Prediction, *, includes_logits: bool) -> pb.PredictMasksResponse:
    """Return the answer to PredictMasks."""
    response = pb.PredictMasksResponse(
        image_size=wire_images.image_size_to_proto(prediction.image_hw), provenance=_provenance(prediction.provenance)
    )
    # Filled in place: a message that another is made of is copied, with all runs of a mask.
    for masks in prediction.objects:
        messages = response.objects.add().masks
        for mask in masks:
            _fill_predicted_mask(messages.add(), mask, includes_logits)
    return response


def segment_response(found: Segmentation) -> pb.SegmentImageResponse:
    """Return the answer to SegmentImage."""
    timings = found.timings
    return pb.SegmentImageResponse(
        classes=[_class_result(finding, found) for finding in found.classes],
        image_size=wire_images.image_size_to_proto(found.image_hw),
        provenance=_provenance(found.provenance),
        timings=pb.Timings(
            embed=_duration(timings.embed_s),
            match=_duration(timings.match_s),
            decode=_duration(timings.decode_s),
            total=_duration(timings.total_s),
        ),
    )


def prompt_set(value: PromptSet) -> pb.PromptSet:
    """Return the message of a prompt set."""
    content = value.content
    message = pb.PromptSet(
        model=_model(value.model),
        display_name=content.display_name,
        classes=[pb.SegmentClass(class_id=c.class_id, display_name=c.display_name) for c in content.classes],
        references=[
            pb.ReferenceInfo(
                image_digest=reference.image_digest,
                image_size=wire_images.image_size_to_proto(reference.image_hw),
                masks=[
                    pb.ReferenceMask(class_id=class_id, mask=_mask(mask)) for class_id, mask in reference.masks.items()
                ],
            )
            for reference in content.references
        ],
        segmenter=_model(value.segmenter),
        feature_encoder=_model(value.feature_encoder),
        options=_options(content.options),
    )
    if value.create_time is not None:
        message.create_time.FromDatetime(value.create_time)
    return message


def frame_error(frame_id: str, error: VPLabError) -> pb.SegmentImagesResponse:
    """Return the answer to a frame at fault."""
    code = next(_CODES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CODES)
    return pb.SegmentImagesResponse(
        frame_id=frame_id, error=pb.FrameError(code=code, reason=error.reason, message=error.message)
    )


def _classes(messages: Sequence[pb.SegmentClass]) -> tuple[SegmentClass, ...]:
    if not 1 <= len(messages) <= MAX_CLASSES:
        raise InvalidInput(f"{len(messages)} classes; must be 1 to {MAX_CLASSES}", field="classes")
    seen: set[int] = set()
    for index, message in enumerate(messages):
        if not 1 <= message.class_id <= MAX_CLASSES:
            raise out_of_bounds(f"classes[{index}].class_id", 1, MAX_CLASSES)
        if message.class_id in seen:
            raise InvalidInput(f"{message.class_id} is there twice", field=f"classes[{index}].class_id")
        if not 1 <= len(message.display_name) <= MAX_NAME:
            raise InvalidInput(f"must be 1 to {MAX_NAME} characters", field=f"classes[{index}].display_name")
        seen.add(message.class_id)
    return tuple(SegmentClass(m.class_id, m.display_name) for m in messages)


def _reference(message: pb.ReferenceImage, known: set[int], field: str) -> DraftReference:
    picture = image(message.image, field=f"{field}.image")
    if isinstance(picture, KnownImage):
        raise InvalidInput("must be the picture itself, not a digest", field=f"{field}.image.digest")
    if not message.masks:
        raise InvalidInput("at least one mask is required", field=f"{field}.masks")
    masks: dict[int, StoredMask] = {}
    for index, item in enumerate(message.masks):
        where = f"{field}.masks[{index}]"
        if item.class_id not in known:
            raise InvalidInput(f"{item.class_id} is none of the classes", field=f"{where}.class_id")
        if item.class_id in masks:
            raise InvalidInput(f"{item.class_id} is there twice", field=f"{where}.class_id")
        pixels = mask_from_proto(item.mask, field=f"{where}.mask")
        if not pixels.any():
            raise InvalidInput("has no pixel", field=f"{where}.mask")
        masks[item.class_id] = StoredMask(pixels.shape, np.array(item.mask.runs, np.uint32))
    return DraftReference(picture, masks)


def _digest(request: pb.CreatePromptSetRequest) -> str:
    content = pb.CreatePromptSetRequest()
    content.CopyFrom(request)
    content.ClearField("request_id")
    return hashlib.sha256(content.SerializeToString(deterministic=True)).hexdigest()


def _class_result(finding: ClassFinding, segmentation: Segmentation) -> pb.ClassResult:
    found, options = finding.found, segmentation.options
    match = found.match
    message = pb.ClassResult(
        class_id=finding.segment_class.class_id,
        display_name=finding.segment_class.display_name,
        present=found.is_present,
        presence_score=match.presence_score,
        presence_threshold=match.presence_threshold,
        mask=_mask(finding.mask),
        score=max((i.score for i in found.instances), default=0.0),
    )
    if options.include_instances:
        message.instances.extend(_instance(i, segmentation.image_hw) for i in found.instances)
    if options.include_points:
        labels = np.ones(len(match.points_xy), np.int64)
        points = np.clip(match.points_xy, 0, np.array(segmentation.image_hw[::-1], np.float32))
        message.points.extend(points_to_proto(points, labels))
    return message


def _instance(instance: Instance, image_hw: tuple[int, int]) -> pb.Instance:
    canvas = np.zeros(image_hw, np.bool_)
    instance.placed.paint(canvas)
    return pb.Instance(
        mask=wire_mask(canvas),
        score=instance.score,
        predicted_iou=instance.predicted_iou,
        box=box_to_proto(instance.box_xyxy),
    )


def _fill_predicted_mask(message: pb.PredictedMask, mask: PredictedMask, includes_logits: bool) -> None:
    message.predicted_iou = mask.predicted_iou
    _fill_mask(message.mask, mask.mask)
    if includes_logits:
        message.low_res_logits.CopyFrom(tensor_to_proto(mask.low_res_logits))


def _options(options: Options) -> pb.SegmentOptions:
    message = pb.SegmentOptions(
        matcher=_MATCHER_VALUES[options.matcher],  # type: ignore[arg-type]
        include_instances=options.include_instances,
        include_points=options.include_points,
    )
    for name in _BOUNDS:
        value = getattr(options, name)
        if value is not None:
            setattr(message, name, value)
    return message


def _mask(mask: StoredMask) -> vision_pb2.Mask:
    message = vision_pb2.Mask()
    _fill_mask(message, mask)
    return message


def _fill_mask(message: vision_pb2.Mask, mask: StoredMask) -> None:
    message.height, message.width = mask.size_hw
    message.runs.extend(mask.runs.tolist())


def _model(model: ModelRef) -> vision_pb2.ModelReference:
    return vision_pb2.ModelReference(name=model.name, digest=model.digest)


def _provenance(provenance: Provenance) -> vision_pb2.Provenance:
    def part(model: ModelRef | None) -> vision_pb2.ModelReference | None:
        return None if model is None else _model(model)

    return vision_pb2.Provenance(
        segmenter=_model(provenance.segmenter),
        image_encoder=_model(provenance.image_encoder),
        feature_encoder=part(provenance.feature_encoder),
        adapter=part(provenance.adapter),
        prompt_set=part(provenance.prompt_set),
        image_digest=provenance.image_digest,
        software=software(),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(max(seconds, 0.0) * 1e9))
    return duration
