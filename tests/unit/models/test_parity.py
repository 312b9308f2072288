"""When a comparison counts as passed, and what it says when it does not."""

import numpy as np
import pytest

from vplab.errors import FailedPrecondition
from vplab.training.models.parity import ParityCase, ParityReport, make_report, mask_ious, max_abs_difference


def case(**changes: object) -> ParityCase:
    values: dict[str, object] = {
        "name": "box",
        "image_sizes_hw": ((4, 5),),
        "quantity": "low_res_logits",
        "max_abs_difference": 1e-5,
        "max_abs_tolerance": 1e-3,
        "mask_iou": 1.0,
        "max_iou_prediction_difference": 0.0,
    }
    return ParityCase.model_validate(values | changes)


def report_of(*cases: ParityCase) -> ParityReport:
    return make_report("the reference", ["onnx"], ["CPUExecutionProvider"], cases)


def test_a_report_passes_when_every_case_does() -> None:
    report = report_of(case(), case(max_abs_difference=5e-4, mask_iou=0.9995))
    assert report.passed
    report.require_passed("anything")
    assert report.metrics == {"parity_passed": 1.0, "parity_max_abs_difference": 5e-4, "parity_mask_iou": 0.9995}
    assert report.versions.keys() == {"onnx", "onnxruntime"}


@pytest.mark.parametrize(
    "changes",
    [
        {"max_abs_difference": 2e-3},
        {"max_abs_difference": float("nan")},
        {"max_abs_difference": float("inf")},
        {"mask_iou": 0.998},
        {"mask_iou": float("nan")},
        {"max_iou_prediction_difference": 0.1},
    ],
)
def test_one_case_out_of_tolerance_refuses_the_whole(changes: dict[str, object]) -> None:
    report = report_of(case(), case(name="point", **changes))
    assert not report.passed
    with pytest.raises(FailedPrecondition, match="sam-encoder does not match the reference: point: low_res_logits"):
        report.require_passed("sam-encoder")


def test_a_case_may_have_limits_of_its_own() -> None:
    half = {"mask_iou": 0.992, "mask_iou_tolerance": 0.99, "max_iou_prediction_difference": 0.04}
    half |= {"max_abs_difference": 0.3, "max_abs_tolerance": 1.0, "iou_prediction_tolerance": 0.05}
    assert case(**half).passed
    assert not case(**half | {"mask_iou": 0.989}).passed
    assert not case(**half | {"max_iou_prediction_difference": 0.06}).passed


def test_nothing_compared_is_not_a_pass() -> None:
    assert not report_of().passed


def test_a_report_survives_its_json() -> None:
    report = report_of(case())
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def test_masks_are_compared_together_and_the_worst_is_told() -> None:
    expected = np.full((2, 10, 10), -1.0, np.float32)
    expected[0], expected[1, 0, :2] = 1.0, 1.0
    actual = expected.copy()
    actual[1, 0, 0] = -1.0
    together, worst = mask_ious(actual, expected)
    assert together == pytest.approx(101 / 102)
    assert worst == 0.5


def test_two_empty_masks_agree_and_other_shapes_never_do() -> None:
    nothing = np.full((1, 3, 3), -1.0, np.float32)
    assert mask_ious(nothing, nothing) == (1.0, 1.0)
    assert mask_ious(nothing, nothing[:, :2]) == (0.0, 0.0)
    assert max_abs_difference(nothing, nothing[:, :2]) == float("inf")
    assert max_abs_difference(nothing, nothing) == 0.0
