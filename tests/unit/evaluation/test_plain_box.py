"""The box as its own answer."""

import numpy as np
import pytest

from vplab.errors import InvalidInput
from vplab.evaluation.comparators.plain_box import PlainBox

NO_POINTS, NO_LABELS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


def test_the_answer_is_the_filled_box():
    session = PlainBox().open(np.zeros((6, 8, 3), np.uint8), "a")
    found = session.predict(NO_POINTS, NO_LABELS, np.array([2, 1, 5, 4], np.float32), None)
    wanted = np.zeros((6, 8), bool)
    wanted[1:4, 2:5] = True
    np.testing.assert_array_equal(found, wanted)


def test_without_a_box_it_is_invalid_input():
    with pytest.raises(InvalidInput, match="boxes only"):
        PlainBox().open(np.zeros((6, 8, 3), np.uint8), "a").predict(NO_POINTS, NO_LABELS, None, None)
