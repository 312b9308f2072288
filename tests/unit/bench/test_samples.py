import numpy as np
import pytest

from vplab.bench.samples import OK, Samples, figures, percentile


def samples(latency_s: list[float], codes: list[str] | None = None, **more: object) -> Samples:
    ends = np.cumsum(latency_s)
    values: dict[str, object] = {"window_s": 10.0, "cpu_s": 1.0, **more}
    return Samples(np.array(latency_s), ends, tuple(codes or [OK] * len(latency_s)), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("percent", "expected"), [(50, 5.0), (95, 10.0), (99, 10.0), (90, 9.0), (100, 10.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 11.0))
    assert percentile(values, percent) == expected


def test_a_percentile_of_many_is_the_nearest_rank() -> None:
    values = np.arange(1.0, 1001.0)
    assert [percentile(values, percent) for percent in (50, 95, 99, 99.9)] == [500, 950, 990, 999]


def test_nothing_measured_has_no_percentile() -> None:
    assert percentile(np.zeros(0), 99) is None
    found = figures([samples([])])
    assert found["latency_s"] == {"p50": None, "p95": None, "p99": None, "mean": None, "max": None}
    assert found["throughput_per_s"] == 0


def test_failures_are_counted_by_code_and_are_in_no_latency() -> None:
    found = figures([samples([1.0, 50.0, 2.0], [OK, "UNAVAILABLE", OK], window_s=100.0)])
    assert found["errors"] == {"UNAVAILABLE": 1}
    assert found["num_calls"] == 3
    assert found["latency_s"]["max"] == 2.0
    assert found["throughput_per_s"] == pytest.approx(2 / 100)


def test_a_call_that_the_window_cuts_off_is_throughput_by_its_share() -> None:
    found = figures([samples([4.0, 4.0, 4.0], window_s=10.0)])
    assert found["num_ok"] == 3
    assert found["throughput_per_s"] == pytest.approx(0.25)


def test_a_call_under_way_when_the_window_begins_is_throughput_but_has_no_latency() -> None:
    under_way = Samples(np.array([8.0, 5.0, 5.0]), np.array([4.0, 9.0, 14.0]), (OK, "UNAVAILABLE", OK), 10.0, 1.0)
    found = figures([under_way])
    assert found["num_calls"] == 2
    assert found["latency_s"]["max"] == 5.0
    assert found["errors"] == {"UNAVAILABLE": 1}
    assert found["throughput_per_s"] == pytest.approx((0.5 + 0.2) / 10)


def test_in_an_open_loop_what_ends_in_the_window_is_throughput() -> None:
    """Calls pile up before a server that cannot keep up; their shares would say that it could."""
    latency_s, end_s = np.array([2.0, 9.0, 18.0]), np.array([1.0, 9.5, 19.0])
    found = figures([Samples(latency_s, end_s, (OK,) * 3, 10.0, 1.0, is_open=True)])
    assert found["num_calls"] == 2
    assert found["throughput_per_s"] == pytest.approx(0.2)


def test_processes_are_taken_together() -> None:
    found = figures([samples([1.0, 1.0], cpu_s=2.0), samples([3.0], cpu_s=9.0)])
    assert found["num_calls"] == 3
    assert found["latency_s"]["max"] == 3.0
    assert found["throughput_per_s"] == pytest.approx(0.3)
    assert found["generator"] == {
        "num_processes": 2, "cpu_s": 11.0, "busiest_share": 0.9, "is_saturated": True, "lag_p99_s": None
    }  # fmt: skip
