import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fakes.outcomes import value_or_refusal
from vplab.api.vision.v1 import vision_pb2
from vplab.errors import InvalidInput
from vplab.wire.tensors import tensor_from_proto, tensor_to_proto

DTYPES = st.sampled_from([np.float32, np.float16, np.uint8, np.int64])


@given(DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))))
def test_a_tensor_survives_the_wire(array: np.ndarray) -> None:
    restored = tensor_from_proto(tensor_to_proto(array), field="t")
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array)


def test_big_endian_and_strided_arrays_arrive_as_the_same_numbers() -> None:
    array = np.arange(12, dtype=">f4").reshape(3, 4).T
    np.testing.assert_array_equal(tensor_from_proto(tensor_to_proto(array), field="t"), array)


def test_an_element_type_without_a_wire_form_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match="float64") as caught:
        tensor_to_proto(np.zeros(3))
    assert caught.value.violations[0].field == "tensor.dtype"


@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=70),
    st.integers(-(2**31), 2**31 - 1),
    st.binary(max_size=64),
)
def test_whatever_a_peer_sends_is_an_array_or_invalid_input(shape: list[int], dtype: int, data: bytes) -> None:
    message = vision_pb2.Tensor(shape=shape, dtype=dtype, data=data)  # type: ignore[arg-type]
    array = value_or_refusal(lambda: tensor_from_proto(message, field="x.y"))
    if isinstance(array, InvalidInput):
        assert array.violations[0].field.startswith("x.y.")
    else:
        assert list(array.shape) == shape


@pytest.mark.parametrize(
    ("shape", "fits"), [((2, 3), True), ((None, 3), True), ((3, 3), False), ((2, 3, 1), False), ((), False)]
)
def test_a_required_shape_is_checked(shape: tuple[int | None, ...], fits: bool) -> None:
    message = tensor_to_proto(np.zeros((2, 3), np.float32))
    if fits:
        assert tensor_from_proto(message, field="t", shape=shape).shape == (2, 3)
    else:
        with pytest.raises(InvalidInput) as caught:
            tensor_from_proto(message, field="t", shape=shape)
        assert caught.value.violations[0].field == "t.shape"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_on_request(value: float) -> None:
    message = tensor_to_proto(np.array([0, value], np.float32))
    assert len(tensor_from_proto(message, field="t")) == 2
    with pytest.raises(InvalidInput, match="finite"):
        tensor_from_proto(message, field="t", finite=True)
