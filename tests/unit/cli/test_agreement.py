import numpy as np
import pytest

from vplab.cli.agreement import compare, figures


def test_miou_is_the_mean_over_images_that_hold_the_class() -> None:
    truth = np.array([[1, 1, 0, 0]], np.uint8)
    half = np.array([[1, 0, 0, 0]], np.uint8)
    nothing = np.zeros((1, 4), np.uint8)
    (result,) = compare([(truth, truth), (half, truth), (half, nothing), (nothing, truth)], [1])
    assert result.miou == pytest.approx((1 + 0.5 + 0) / 3)
    assert result.pooled_iou == pytest.approx((2 + 1 + 0 + 0) / (2 + 2 + 1 + 2))
    assert (result.num_images, result.num_with_class) == (4, 3)
    assert (result.num_missed, result.num_false_alarms) == (1, 1)


def test_classes_are_told_apart_and_an_absent_one_has_no_miou() -> None:
    truth = np.array([[1, 2]], np.uint8)
    swapped = np.array([[2, 1]], np.uint8)
    results = compare([(swapped, truth)], [1, 2, 3])
    assert [result.miou for result in results] == [0.0, 0.0, None]
    assert figures(results)["miou"] == 0.0
    assert figures(compare([], [1]))["miou"] is None
