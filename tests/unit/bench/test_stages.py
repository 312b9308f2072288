import pytest

from vplab.bench.stages import gained, read_series
from vplab.errors import Unavailable

BEFORE = {
    ("vplab_queue_run_seconds_sum", (("queue", "decoder"),)): 1.0,
    ("vplab_queue_run_seconds_count", (("queue", "decoder"),)): 10.0,
    ("idle_seconds_sum", ()): 5.0,
    ("idle_seconds_count", ()): 5.0,
    ("process_cpu_seconds_total", ()): 100.0,
    ("vplab_queue_refused_total", (("cause", "full"),)): 1.0,
}
AFTER = {
    **BEFORE,
    ("vplab_queue_run_seconds_sum", (("queue", "decoder"),)): 2.0,
    ("vplab_queue_run_seconds_count", (("queue", "decoder"),)): 14.0,
    ("process_cpu_seconds_total", ()): 103.5,
    ("vplab_queue_refused_total", (("cause", "full"),)): 4.0,
    ("fresh_seconds_sum", ()): 0.5,
    ("fresh_seconds_count", ()): 1.0,
}


def test_what_a_server_gained_is_a_mean_for_each_histogram_that_was_observed() -> None:
    found = gained(BEFORE, AFTER)
    assert found["mean"] == {
        "vplab_queue_run_seconds(decoder)": {"count": 4, "mean": 0.25},
        "fresh_seconds": {"count": 1, "mean": 0.5},
    }
    assert found["count"] == {"vplab_queue_refused(full)": 3}
    assert found["cpu_s"] == 3.5


def test_a_page_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="cannot read"):
        read_series("http://127.0.0.1:9/metrics")
