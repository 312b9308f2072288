"""Values in half precision."""

import numpy as np
import pytest

from vplab.vision.half_values import to_half


def test_values_are_rounded_as_numpy_rounds() -> None:
    random = np.random.default_rng(0)
    scales = 10.0 ** np.arange(-9, 5)
    values = (random.normal(size=(14, 7, 500)) * scales[:, None, None]).astype(np.float32)

    found = to_half(values)

    assert found.dtype == np.float16
    assert np.array_equal(found, np.clip(values, -65504, 65504).astype(np.float16))


def test_what_float16_cannot_hold_becomes_its_largest_number() -> None:
    values = np.array([[65504, 65519], [65520, -1e30]], np.float32)

    assert to_half(values).tolist() == [[65504, 65504], [65504, -65504]]


def test_ties_go_to_the_even_neighbour_and_the_smallest_numbers_are_kept() -> None:
    values = np.array([2049, 2051, 2**-24, 2**-25], np.float32)

    assert to_half(values).tolist() == [2048, 2052, 2**-24, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    values = np.zeros((3, 5, 7), np.float32)
    values[1, 2, 3] = wrong

    with pytest.raises(ValueError, match="not finite"):
        to_half(values)
