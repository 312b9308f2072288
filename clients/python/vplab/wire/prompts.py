"""Prompts as messages: clicks, boxes and earlier masks, in pixels of the oriented original image, x then y."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb2
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.vision.prompts import MAX_POINTS, ObjectPrompt
from vplab.wire.masks import mask_from_proto, mask_to_proto
from vplab.wire.tensors import tensor_from_proto, tensor_to_proto

_FOREGROUND, _BACKGROUND = vision_pb2.POINT_LABEL_FOREGROUND, vision_pb2.POINT_LABEL_BACKGROUND


def object_prompt_to_proto(prompt: ObjectPrompt) -> segmentation_pb2.ObjectPrompt:
    """Encode one object's prompt. Raises InvalidInput where points, labels or box have another shape."""
    message = segmentation_pb2.ObjectPrompt()
    if prompt.points_xy is not None and len(prompt.points_xy):
        labels = np.ones(len(prompt.points_xy), np.int64) if prompt.point_labels is None else prompt.point_labels
        message.points.extend(points_to_proto(prompt.points_xy, labels))
    if prompt.box_xyxy is not None:
        message.box.CopyFrom(box_to_proto(prompt.box_xyxy))
    if prompt.low_res_logits is not None:
        message.low_res_logits.CopyFrom(tensor_to_proto(np.asarray(prompt.low_res_logits, np.float32)))
    elif prompt.mask is not None:
        message.mask.CopyFrom(mask_to_proto(prompt.mask))
    return message


def object_prompt_from_proto(message: segmentation_pb2.ObjectPrompt, *, field: str) -> ObjectPrompt:
    """Decode one object's prompt; how it fits image and segmenter is ``ObjectPrompt.check``'s business.

    Raises InvalidInput when nothing is said about the object, there are too many points, or a part is malformed.
    """
    mask_input = message.WhichOneof("mask_input")
    if not message.points and not message.HasField("box") and mask_input is None:
        raise InvalidInput("points, a box or a mask input is required", field=field)
    if len(message.points) > MAX_POINTS:
        raise InvalidInput(f"{len(message.points)} points; at most {MAX_POINTS}", field=f"{field}.points")
    points, labels = points_from_proto(message.points, field=f"{field}.points")
    logits = None
    if mask_input == "low_res_logits":
        where = f"{field}.low_res_logits"
        logits = tensor_from_proto(message.low_res_logits, field=where, finite=True)
        if logits.dtype != np.float32 or logits.ndim not in (2, 3) or logits.size == 0:
            raise InvalidInput("expected float32 of shape (h, w) or (1, h, w)", field=where)
        if logits.ndim == 3 and logits.shape[0] != 1:
            raise InvalidInput(f"shape is {list(logits.shape)}; expected (h, w) or (1, h, w)", field=f"{where}.shape")
        logits = logits.reshape(logits.shape[-2:])
    return ObjectPrompt(
        points_xy=points if len(points) else None,
        point_labels=labels if len(points) else None,
        box_xyxy=box_from_proto(message.box, field=f"{field}.box") if message.HasField("box") else None,
        low_res_logits=logits,
        mask=mask_from_proto(message.mask, field=f"{field}.mask") if mask_input == "mask" else None,
    )


def points_to_proto(points_xy: NDArray[np.floating], labels: NDArray[np.integer]) -> list[vision_pb2.Point]:
    """Encode clicks (N, 2) with labels (N,), 1 foreground and 0 background.

    Raises InvalidInput where shapes or labels are something else.
    """
    points, kinds = np.asarray(points_xy, dtype=np.float32), np.asarray(labels)
    if points.size == 0 and kinds.size == 0:
        return []
    if points.ndim != 2 or points.shape[1] != 2 or kinds.shape != points.shape[:1]:
        raise InvalidInput(f"points {points.shape} and labels {kinds.shape} are not (N, 2) and (N,)", field="points")
    for index, kind in enumerate(kinds.tolist()):
        if kind not in (0, 1):
            raise InvalidInput("a label is 1 for foreground or 0 for background", field=f"points[{index}].label")
    return [
        vision_pb2.Point(x=x, y=y, label=_FOREGROUND if kind else _BACKGROUND)
        for (x, y), kind in zip(points.tolist(), kinds.tolist(), strict=True)
    ]


def points_from_proto(
    messages: Sequence[vision_pb2.Point], *, field: str, size_hw: tuple[int, int] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Decode clicks to (N, 2) float32 and labels (N,) int64, 1 foreground and 0 background.

    Raises InvalidInput for a label that is unspecified, or coordinates that are not finite, negative, or beyond
    ``size_hw`` when that is given.
    """
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        if message.label not in (_FOREGROUND, _BACKGROUND):
            raise InvalidInput("is unspecified or unknown", field=f"{where}.label")
        check_xy(message.x, message.y, field=where, size_hw=size_hw)
    points = np.array([(m.x, m.y) for m in messages], dtype=np.float32).reshape(-1, 2)
    labels = np.array([m.label == _FOREGROUND for m in messages], dtype=np.int64)
    return points, labels


def box_to_proto(box_xyxy: NDArray[np.floating] | Sequence[float]) -> vision_pb2.Box:
    """Encode a box (x_min, y_min, x_max, y_max). Raises InvalidInput where there are not four numbers."""
    box = np.asarray(box_xyxy, dtype=np.float32)
    if box.shape != (4,):
        raise InvalidInput(f"shape is {list(box.shape)}; expected 4 numbers", field="box")
    x_min, y_min, x_max, y_max = box.tolist()
    return vision_pb2.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


def box_from_proto(
    message: vision_pb2.Box, *, field: str, size_hw: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Decode a box to (4,) float32: x_min, y_min, x_max, y_max.

    Raises InvalidInput for edges that are not finite, negative, not in order, or beyond ``size_hw`` when that is given.
    """
    check_xy(message.x_min, message.y_min, field=field, size_hw=size_hw, names=("x_min", "y_min"))
    check_xy(message.x_max, message.y_max, field=field, size_hw=size_hw, names=("x_max", "y_max"))
    for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
        if getattr(message, low) >= getattr(message, high):
            raise InvalidInput(f"must be less than {high}", field=f"{field}.{low}")
    return np.array([message.x_min, message.y_min, message.x_max, message.y_max], dtype=np.float32)


def check_xy(
    x: float, y: float, *, field: str, size_hw: tuple[int, int] | None, names: tuple[str, str] = ("x", "y")
) -> None:
    """Check one position against the image. Raises InvalidInput naming the coordinate."""
    limits = (math.inf, math.inf) if size_hw is None else (size_hw[1], size_hw[0])
    for name, value, limit in zip(names, (x, y), limits, strict=True):
        if not math.isfinite(value):
            raise InvalidInput("is not a finite number", field=f"{field}.{name}")
        if not 0 <= value <= limit:
            extent = "at least 0" if math.isinf(limit) else f"in 0..{limit}"
            raise InvalidInput(f"{value:g} lies outside the image; must be {extent}", field=f"{field}.{name}")
