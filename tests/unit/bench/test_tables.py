from typing import Any

import pytest

from vplab.bench.growth import straight_line
from vplab.bench.plot import panels_of, plot_report
from vplab.bench.stage_tables import stage_tables
from vplab.bench.tables import notes_of, ratio_beside, tables_of


def row(p95: float | None = 0.1, **more: Any) -> dict[str, Any]:
    return {
        "num_calls": 10, "errors": {}, "throughput_per_s": 5.0, "cpu_s_per_call": None,
        "latency_s": {"p50": 0.05, "p95": p95, "p99": 0.2}, "servers": {},
        "generator": {"num_processes": 1, "busiest_share": 0.1, "is_saturated": False, "lag_p99_s": None},
        **more,
    }  # fmt: skip


def test_the_ratio_beside_bulk_work_is_the_median_over_the_pairs() -> None:
    rows = [
        row(busy * idle, pair=pair, is_busy=is_busy)
        for pair, (idle, ratio) in enumerate([(0.1, 1.5), (0.2, 9.0), (0.4, 2.0)])
        for is_busy, busy in ((False, 1.0), (True, ratio))
    ]
    assert ratio_beside(rows) == pytest.approx(2.0)


def test_half_a_pair_has_no_ratio() -> None:
    assert ratio_beside([row(pair=0, is_busy=False)]) is None
    assert ratio_beside([row(pair=0, is_busy=False), row(None, pair=0, is_busy=True)]) is None
    assert ratio_beside([]) is None


def test_points_on_a_line_give_its_two_numbers() -> None:
    found = straight_line([1, 2, 4, 8], [0.012, 0.014, 0.018, 0.026])
    assert found["fixed_s"] == pytest.approx(0.01)
    assert found["unit_s"] == pytest.approx(0.002)
    assert found["r2"] == pytest.approx(1.0)
    assert straight_line([1], [0.1]) == {"fixed_s": None, "unit_s": None, "r2": None}


def test_every_section_that_was_measured_has_a_table() -> None:
    report = {
        "sweep": [row(num_callers=4, errors={"UNAVAILABLE": 2})],
        "arrivals": [row(rate_per_s=5.0)],
        "beside": [
            row(pair=0, is_busy=False),
            row(pair=0, is_busy=True, bulk={"kind": "stream", "images_per_s": 7.25, "lasted": False}),
        ],
        "growth": [row(what="objects", value=value, units=float(value), unit="object") for value in (1, 2)],
    }
    sweep, arrivals, beside, growth = tables_of(report)
    assert "| 4 | 5.0 | 50.0 | 100.0 | 200.0 | 2 UNAVAILABLE | - | 10% of 1 |" in sweep
    assert "| 5 | 5.0 |" in arrivals
    assert "| stream (ended early) | 7.2 |" in beside
    assert "1.00 (median over the pairs)" in beside
    assert "| objects | 50.0 | 0.0 | object |" in growth
    assert tables_of({"sweep": []}) == []


def test_a_run_that_was_stopped_beside_bulk_work_has_a_table() -> None:
    (table,) = tables_of({"beside": [row(pair=0, is_busy=True, bulk={"kind": "stream"}, is_cut=True)]})
    assert "| stream |  | 5.0 |" in table


def test_every_step_of_every_section_says_where_its_time_went() -> None:
    def servers(**means: float) -> dict[str, Any]:
        mean = {name: {"count": 10, "mean": seconds} for name, seconds in means.items()}
        return {"segmentation": {"mean": {**mean, "batch_size": {"count": 10, "mean": 4.0}}}}

    report = {
        "sweep": [row(num_callers=n, servers=servers(wait_seconds=n / 1e3, run_seconds=0.02)) for n in (1, 4)],
        "beside": [
            row(pair=0, is_busy=False, servers=servers(run_seconds=0.003)),
            row(pair=0, is_busy=True, bulk={"kind": "stream"}, servers=servers(wait_seconds=0.001)),
        ],
        "growth": [
            row(what=what, value=2, servers={}, answers_say_s={"num_answers": 3, "match": 0.05}) for what in ("a", "b")
        ],
        "arrivals": [row(rate_per_s=5.0)],
    }
    sweep, beside, *growth = stage_tables(report)
    assert "| mean ms by callers | stage | 1 | 4 |" in sweep
    assert sweep.index("| segmentation | run_seconds | 20.0 | 20.0 |") < sweep.index("| wait_seconds | 1.0 | 4.0 |")
    assert "batch_size" not in sweep
    assert "| nothing | stream |" in beside
    assert "| segmentation | run_seconds | 3.0 | - |" in beside
    assert [table.splitlines()[0] for table in growth] == [f"| mean ms by {what} | stage | 2 |" for what in "ab"]
    assert all("| answers | match | 50.0 |" in table for table in growth)


def test_every_section_and_everything_that_grew_is_drawn() -> None:
    report = {
        "sweep": [row(num_callers=n) for n in (1, 16)],
        "arrivals": [row(None, rate_per_s=5.0)],
        "beside": [
            row(pair=0, is_busy=False),
            row(pair=0, is_busy=True, bulk={"kind": "stream", "images_per_s": 7.5, "lasted": True}),
        ],
        "growth": [row(what=what, value=n, units=float(n)) for what in ("objects", "images") for n in (1, 32)],
    }
    drawn = panels_of(report)
    assert [panels.across for panels in drawn] == [
        "num callers", "rate per s", "beside the clicks", "objects", "images",
    ]  # fmt: skip
    assert drawn[0].places == [0, 1]
    assert drawn[2].rates == [None, 7.5]
    assert drawn[3].places == [1.0, 32.0]
    assert plot_report(report, "a title").startswith(b"\x89PNG")


def test_a_reader_is_told_what_spoils_the_figures() -> None:
    saturated = {"num_processes": 1, "busiest_share": 0.95, "is_saturated": True, "lag_p99_s": 0.2}
    report = {"sweep": [row(), row(generator=saturated, errors={"UNAVAILABLE": 3})]}
    first, second, third = notes_of(report)
    assert "saturated in 1 of 2" in first
    assert "more than 10 ms late in 1" in second
    assert "3 calls failed" in third
    assert notes_of({"sweep": [row()]}) == []
