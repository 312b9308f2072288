import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.outcomes import value_or_refusal
from vplab.api.segmentation.v1 import segmentation_service_pb2 as segmentation_pb2
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.vision.prompts import ObjectPrompt
from vplab.wire import prompts
from vplab.wire.tensors import tensor_to_proto

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def test_a_prompt_survives_the_wire() -> None:
    prompt = ObjectPrompt(
        points_xy=np.array([[1.5, 2], [3, 4.25]], np.float32),
        point_labels=np.array([1, 0]),
        box_xyxy=np.array([0, 1, 5, 6], np.float32),
        mask=np.eye(7, dtype=bool),
    )
    restored = prompts.object_prompt_from_proto(prompts.object_prompt_to_proto(prompt), field="p")
    for name in ("points_xy", "point_labels", "box_xyxy", "mask"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(prompt, name))
    assert restored.low_res_logits is None


def test_points_without_labels_are_foreground() -> None:
    message = prompts.object_prompt_to_proto(ObjectPrompt(points_xy=np.zeros((2, 2), np.float32)))
    assert [p.label for p in message.points] == [vision_pb2.POINT_LABEL_FOREGROUND] * 2


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6)])
def test_logits_come_with_or_without_a_plane_axis(shape: tuple[int, ...]) -> None:
    logits = np.arange(24, dtype=np.float32)
    message = segmentation_pb2.ObjectPrompt(low_res_logits=tensor_to_proto(logits.reshape(shape)))
    restored = prompts.object_prompt_from_proto(message, field="p").low_res_logits
    assert restored is not None
    np.testing.assert_array_equal(restored, logits.reshape(4, 6))


@given(
    st.lists(st.tuples(FLOATS, FLOATS, st.integers(-1, 4)), max_size=5),
    st.one_of(st.none(), st.tuples(FLOATS, FLOATS, FLOATS, FLOATS)),
)
def test_whatever_a_peer_sends_is_a_prompt_or_invalid_input(
    points: list[tuple[float, float, int]], box: tuple[float, float, float, float] | None
) -> None:
    message = segmentation_pb2.ObjectPrompt()
    for x, y, label in points:
        message.points.add(x=x, y=y, label=label)  # type: ignore[arg-type]
    if box is not None:
        message.box.CopyFrom(vision_pb2.Box(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]))
    prompt = value_or_refusal(lambda: prompts.object_prompt_from_proto(message, field="p[3]"))
    if isinstance(prompt, InvalidInput):
        assert prompt.violations[0].field.startswith("p[3]")
    else:
        assert len(points) == prompt.num_points
        assert prompt.points_xy is None or np.isfinite(prompt.points_xy).all()


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (segmentation_pb2.ObjectPrompt(), "p"),
        (segmentation_pb2.ObjectPrompt(points=[vision_pb2.Point()] * 257), "p.points"),
        (segmentation_pb2.ObjectPrompt(points=[vision_pb2.Point(x=1, y=1)]), "p.points[0].label"),
        (segmentation_pb2.ObjectPrompt(points=[vision_pb2.Point(x=math.nan, label=1)]), "p.points[0].x"),  # type: ignore[arg-type]
        (segmentation_pb2.ObjectPrompt(points=[vision_pb2.Point(y=-1, label=1)]), "p.points[0].y"),  # type: ignore[arg-type]
        (segmentation_pb2.ObjectPrompt(box=vision_pb2.Box(x_max=0, y_max=1)), "p.box.x_min"),
        (segmentation_pb2.ObjectPrompt(box=vision_pb2.Box(x_max=1, y_min=2, y_max=1)), "p.box.y_min"),
        (segmentation_pb2.ObjectPrompt(mask=vision_pb2.Mask()), "p.mask.width"),
        (
            segmentation_pb2.ObjectPrompt(low_res_logits=tensor_to_proto(np.zeros((2, 3, 3), np.float32))),
            "p.low_res_logits.shape",
        ),
        (
            segmentation_pb2.ObjectPrompt(low_res_logits=tensor_to_proto(np.zeros((3, 3), np.float16))),
            "p.low_res_logits",
        ),
    ],
)
def test_a_broken_prompt_is_invalid_input_at_its_field(message: segmentation_pb2.ObjectPrompt, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        prompts.object_prompt_from_proto(message, field="p")
    assert caught.value.violations[0].field == field


def test_a_point_on_the_far_edge_belongs_to_the_image_and_one_beyond_does_not() -> None:
    prompts.points_from_proto([vision_pb2.Point(x=7, y=5, label="POINT_LABEL_FOREGROUND")], field="p", size_hw=(5, 7))
    with pytest.raises(InvalidInput, match=r"0\.\.7") as caught:
        prompts.points_from_proto(
            [vision_pb2.Point(x=7.5, y=5, label="POINT_LABEL_FOREGROUND")], field="p", size_hw=(5, 7)
        )
    assert caught.value.violations[0].field == "p[0].x"


def test_labels_and_shapes_that_mean_nothing_are_not_sent() -> None:
    with pytest.raises(InvalidInput, match="label is 1"):
        prompts.points_to_proto(np.zeros((1, 2)), np.array([2]))
    with pytest.raises(InvalidInput):
        prompts.points_to_proto(np.zeros((2, 3)), np.array([1, 1]))
    with pytest.raises(InvalidInput):
        prompts.box_to_proto([1, 2, 3])
