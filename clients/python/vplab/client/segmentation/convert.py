"""The segmentation service's messages to values and back."""

import numpy as np
from google.rpc import status_pb2
from numpy.typing import NDArray

from vplab.api.segmentation.v1 import segmentation_service_pb2 as pb
from vplab.api.vision.v1 import vision_pb2
from vplab.client.models import model_reference, provenance
from vplab.client.segmentation.values import (
    ClassResult,
    Instance,
    PredictedMask,
    Prediction,
    PromptSet,
    PromptSetDraft,
    Segmentation,
    SegmentClass,
    SegmentedFrame,
    SegmentOptions,
    StoredReference,
    Timings,
)
from vplab.client.times import time_of
from vplab.errors import InvalidInput
from vplab.wire.enums import EnumWords
from vplab.wire.images import image_to_proto
from vplab.wire.masks import MAX_PIXELS, mask_from_proto, mask_to_proto
from vplab.wire.prompts import box_from_proto, points_from_proto
from vplab.wire.status import error_from_status
from vplab.wire.tensors import tensor_from_proto

MATCHERS = EnumWords(pb.Matcher)
DROP_POLICIES = EnumWords(pb.DropPolicy)

_SCALARS = (
    "max_points",
    "num_background_points",
    "min_relative_score",
    "presence_threshold",
    "min_mask_score",
    "seed",
    "tile_side",
)


def options_to_proto(options: SegmentOptions | None) -> pb.SegmentOptions | None:
    """Return the message of options, None for none. Raises InvalidInput for a number its field cannot hold."""
    if options is None:
        return None
    message = pb.SegmentOptions(
        matcher=MATCHERS.value(options.matcher, field="options.matcher"),  # type: ignore[arg-type]
        include_instances=options.include_instances,
        include_points=options.include_points,
    )
    for name in _SCALARS:
        value = getattr(options, name)
        if value is not None:
            try:
                setattr(message, name, value)
            except (ValueError, TypeError) as error:
                raise InvalidInput(f"{value!r} does not fit: {error}", field=f"options.{name}") from error
    return message


def options(message: pb.SegmentOptions) -> SegmentOptions:
    """Return the value of an options message."""
    matcher = MATCHERS.word(message.matcher)
    scalars = {name: getattr(message, name) for name in _SCALARS if message.HasField(name)}  # type: ignore[arg-type]
    return SegmentOptions(
        matcher=None if matcher == "unspecified" else matcher,  # type: ignore[arg-type]
        include_instances=message.include_instances,
        include_points=message.include_points,
        **scalars,
    )


def prediction(message: pb.PredictMasksResponse) -> Prediction:
    """Return the value of a PredictMasks answer. Raises InvalidInput for a broken mask or tensor."""
    size_hw = _size_hw(message.image_size)
    return Prediction(
        objects=tuple(
            tuple(_predicted_mask(mask, f"objects[{i}].masks[{j}]", size_hw) for j, mask in enumerate(found.masks))
            for i, found in enumerate(message.objects)
        ),
        image_size_hw=size_hw,
        provenance=provenance(message.provenance),
    )


def segmentation(message: pb.SegmentImageResponse) -> Segmentation:
    """Return the value of a SegmentImage answer. Raises InvalidInput for a broken mask, point or box."""
    size_hw = _size_hw(message.image_size)
    return Segmentation(
        classes=tuple(_class_result(m, f"classes[{index}]", size_hw) for index, m in enumerate(message.classes)),
        image_size_hw=size_hw,
        provenance=provenance(message.provenance),
        timings=Timings(
            embed_s=message.timings.embed.ToNanoseconds() / 1e9,
            match_s=message.timings.match.ToNanoseconds() / 1e9,
            decode_s=message.timings.decode.ToNanoseconds() / 1e9,
            total_s=message.timings.total.ToNanoseconds() / 1e9,
        ),
    )


def segmented_frame(message: pb.SegmentImagesResponse) -> SegmentedFrame:
    """Return the value of one answer of a stream. Raises InvalidInput when it has no outcome."""
    match message.WhichOneof("outcome"):
        case "result":
            return SegmentedFrame(message.frame_id, result=segmentation(message.result))
        case "error":
            error = error_from_status(status_pb2.Status(code=message.error.code, message=message.error.message))
            error.reason = message.error.reason or error.reason
            return SegmentedFrame(message.frame_id, error=error)
        case "dropped":
            return SegmentedFrame(message.frame_id, num_dropped=message.dropped.num_dropped)
    raise InvalidInput("one of result, error and dropped is required", field="outcome")


def draft_to_proto(draft: PromptSetDraft, request_id: str) -> pb.CreatePromptSetRequest:
    """Return the request that makes a prompt set. Raises InvalidInput for an image or mask that cannot be sent."""
    request = pb.CreatePromptSetRequest(
        prompt_set_id=draft.prompt_set_id,
        display_name=draft.display_name,
        segmenter=draft.segmenter,
        feature_encoder=draft.feature_encoder,
        options=options_to_proto(draft.options),
        request_id=request_id,
    )
    for item in draft.classes:
        request.classes.add(class_id=item.class_id, display_name=item.display_name)
    for reference in draft.references:
        message = request.references.add(image=image_to_proto(reference.image))
        for class_id, mask in sorted(reference.masks.items()):
            message.masks.add(class_id=class_id, mask=mask_to_proto(mask))
    return request


def prompt_set(message: pb.PromptSet) -> PromptSet:
    """Return the value of a prompt set message. Raises InvalidInput for a broken mask."""
    return PromptSet(
        model=model_reference(message.model),
        display_name=message.display_name,
        classes=tuple(SegmentClass(c.class_id, c.display_name) for c in message.classes),
        references=tuple(_reference(m, f"references[{index}]") for index, m in enumerate(message.references)),
        segmenter=model_reference(message.segmenter),
        feature_encoder=model_reference(message.feature_encoder),
        options=options(message.options),
        create_time=time_of(message, "create_time"),
    )


def _predicted_mask(message: pb.PredictedMask, field: str, size_hw: tuple[int, int]) -> PredictedMask:
    logits = None
    if message.HasField("low_res_logits"):
        logits = tensor_from_proto(message.low_res_logits, field=f"{field}.low_res_logits").astype(np.float32)
    mask = mask_from_proto(message.mask, field=f"{field}.mask", size_hw=size_hw)
    return PredictedMask(mask, message.predicted_iou, logits)


def _class_result(message: pb.ClassResult, field: str, size_hw: tuple[int, int]) -> ClassResult:
    points_xy, point_labels = points_from_proto(message.points, field=f"{field}.points")
    return ClassResult(
        mask=_mask_or_empty(message, field, size_hw),
        class_id=message.class_id,
        display_name=message.display_name,
        present=message.present,
        presence_score=message.presence_score,
        presence_threshold=message.presence_threshold,
        score=message.score,
        instances=tuple(
            Instance(
                mask=mask_from_proto(m.mask, field=f"{field}.instances[{index}].mask", size_hw=size_hw),
                score=m.score,
                predicted_iou=m.predicted_iou,
                box_xyxy=box_from_proto(m.box, field=f"{field}.instances[{index}].box"),
            )
            for index, m in enumerate(message.instances)
        ),
        points_xy=points_xy,
        point_labels=point_labels,
    )


def _mask_or_empty(message: pb.ClassResult, field: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    if message.HasField("mask"):
        return mask_from_proto(message.mask, field=f"{field}.mask", size_hw=size_hw)
    return np.zeros(size_hw, np.bool_)


def _reference(message: pb.ReferenceInfo, field: str) -> StoredReference:
    size_hw = _size_hw(message.image_size)
    masks = {
        item.class_id: mask_from_proto(item.mask, field=f"{field}.masks[{index}].mask", size_hw=size_hw)
        for index, item in enumerate(message.masks)
    }
    return StoredReference(message.image_digest, size_hw, masks)


def _size_hw(message: vision_pb2.ImageSize) -> tuple[int, int]:
    if not message.width or not message.height:
        raise InvalidInput("is missing or zero", field="image_size")
    if message.width * message.height > MAX_PIXELS:
        raise InvalidInput(f"{message.width}x{message.height} is more than {MAX_PIXELS} pixels", field="image_size")
    return message.height, message.width
