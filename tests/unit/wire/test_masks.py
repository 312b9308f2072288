import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fakes.outcomes import value_or_refusal
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.wire.masks import mask_from_proto, mask_to_proto


def by_hand(message: vision_pb2.Mask) -> np.ndarray:
    """The five lines that the contract promises are enough."""
    pixels = [bool(index % 2) for index, run in enumerate(message.runs) for _ in range(run)]
    return np.array(pixels).reshape(message.height, message.width)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_a_mask_survives_the_wire_and_any_reader_of_the_contract(mask: np.ndarray) -> None:
    message = mask_to_proto(mask)
    np.testing.assert_array_equal(mask_from_proto(message, field="mask"), mask)
    np.testing.assert_array_equal(by_hand(message), mask)


def test_a_mask_that_starts_with_foreground_has_a_first_run_of_zero() -> None:
    assert list(mask_to_proto(np.array([[True, False]])).runs) == [0, 1, 1]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_whatever_a_peer_sends_is_a_mask_or_invalid_input(width: int, height: int, runs: list[int]) -> None:
    message = vision_pb2.Mask(width=width, height=height, runs=runs)
    mask = value_or_refusal(lambda: mask_from_proto(message, field="m", max_pixels=10_000))
    if isinstance(mask, InvalidInput):
        assert mask.violations[0].field.startswith("m")
    else:
        assert mask.shape == (height, width)


@pytest.mark.parametrize(
    ("width", "height", "runs", "field"),
    [
        (0, 2, [], "m.width"),
        (2, 0, [], "m.height"),
        (2, 2, [], "m.runs"),
        (2, 2, [3], "m.runs"),
        (2, 2, [2**32 - 1, 2**32 - 1], "m.runs"),
        (2, 2, [1, 0, 3], "m.runs[1]"),
        (2**31, 2**31, [5], "m"),
    ],
)
def test_a_broken_mask_is_invalid_input_at_its_field(width: int, height: int, runs: list[int], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mask_from_proto(vision_pb2.Mask(width=width, height=height, runs=runs), field="m")
    assert caught.value.violations[0].field == field


def test_a_mask_of_another_size_than_its_image_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match=r"3x2.*4x2"):
        mask_from_proto(mask_to_proto(np.ones((2, 3), bool)), field="m", size_hw=(2, 4))


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 1)])
def test_an_array_that_is_no_mask_is_not_sent(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput):
        mask_to_proto(np.zeros(shape, bool))
