"""The line that says where a job's time went."""

from vplab.cli.tune_times import stage_times


def test_stages_come_in_their_order_with_their_parts() -> None:
    metrics = {
        "seconds_promote": 0.04,
        "seconds_train": 21.26,
        "seconds_train_all_images": 10.0,
        "seconds_train_proposals": 1.0,
        "cpu_seconds_train": 20.0,
        "seconds_queue": 0.0,
        "validation_iou_after": 0.7,
    }
    assert stage_times(metrics) == "queue 0.0, train 21.3 (proposals 1.0, all images 10.0), promote 0.0"


def test_a_server_that_tells_no_times_leaves_the_line_empty() -> None:
    assert stage_times({"validation_iou_after": 0.7}) == ""
