"""A run's figures as tables for people."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from vplab.bench.growth import straight_line
from vplab.bench.names import SECTIONS

Row = Mapping[str, Any]


def tables_of(report: Row) -> list[str]:
    """Return every section of a report as a table in Markdown, with what is to be known about it."""
    makers = {"sweep": _sweep, "arrivals": _arrivals, "beside": _beside, "growth": _growth}
    return ["\n".join(make(report[name])) for name, make in makers.items() if report.get(name)]


def notes_of(report: Row) -> list[str]:
    """Return what a reader must know before believing the figures."""
    rows = list(_rows(report))
    notes = []
    if saturated := sum(row["generator"]["is_saturated"] for row in rows):
        notes.append(f"the load generator was saturated in {saturated} of {len(rows)} steps: see generator in the JSON")
    if late := [row for row in rows if (row["generator"]["lag_p99_s"] or 0) > 0.01]:
        notes.append(f"calls were made more than 10 ms late in {len(late)} open steps; their latency counts that")
    if failed := sum(sum(row["errors"].values()) for row in rows):
        notes.append(f"{failed} calls failed and are in no latency")
    return notes


def ratio_beside(rows: Sequence[Row]) -> float | None:
    """Return the median over the pairs of the busy p95 over the idle p95; None without a whole pair."""
    p95 = {(row["pair"], row["is_busy"]): row["latency_s"]["p95"] for row in rows}
    ratios = [
        busy / p95[pair, False] for (pair, is_busy), busy in p95.items() if is_busy and busy and p95.get((pair, False))
    ]
    return median(ratios) if ratios else None


def _rows(report: Row) -> Iterator[Row]:
    for section in SECTIONS:
        yield from report.get(section, ())


_LATENCY = " per second | p50, ms | p95, ms | p99, ms | failed | server CPU, ms each | generator |"
_RULE = "--:|--:|--:|--:|--:|--:|--:|"


def _cells(row: Row) -> str:
    latency = " | ".join(_ms(row["latency_s"][name]) for name in ("p50", "p95", "p99"))
    failed = ", ".join(f"{number} {code}" for code, number in sorted(row["errors"].items())) or "0"
    generator = f"{row['generator']['busiest_share']:.0%} of {row['generator']['num_processes']}"
    return f"{row['throughput_per_s']:.1f} | {latency} | {failed} | {_ms(row['cpu_s_per_call'])} | {generator} |"


def _sweep(rows: Sequence[Row]) -> list[str]:
    return [
        f"| callers |{_LATENCY}", f"|--:|{_RULE}", *(f"| {row['num_callers']} | {_cells(row)}" for row in rows)
    ]  # fmt: skip


def _arrivals(rows: Sequence[Row]) -> list[str]:
    return [
        f"| calls arriving per second |{_LATENCY}", f"|--:|{_RULE}",
        *(f"| {row['rate_per_s']:g} | {_cells(row)}" for row in rows),
    ]  # fmt: skip


def _beside(rows: Sequence[Row]) -> list[str]:
    lines = [f"| beside the clicks | images per second |{_LATENCY}", f"|---|--:|{_RULE}"]
    for row in rows:
        # A run that was stopped says of its last bulk work only which it was.
        bulk = row.get("bulk", {"kind": "nothing"})
        name = bulk["kind"] if bulk.get("lasted", True) else f"{bulk['kind']} (ended early)"
        images = f"{bulk['images_per_s']:.1f}" if "images_per_s" in bulk else ""
        lines.append(f"| {name} | {images} | {_cells(row)}")
    ratio = ratio_beside(rows)
    if ratio is not None:
        lines += ["", f"p95 beside bulk work over p95 on the idle machine: {ratio:.2f} (median over the pairs)."]
    return lines


def _growth(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| what grows | value | p50, ms | p95, ms | per second | server CPU, ms each |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    axes: dict[str, list[Row]] = {}
    for row in rows:
        latency = row["latency_s"]
        lines.append(
            f"| {row['what']} | {row['value']} | {_ms(latency['p50'])} | {_ms(latency['p95'])} "
            f"| {row['throughput_per_s']:.1f} | {_ms(row['cpu_s_per_call'])} |"
        )
        axes.setdefault(row["what"], []).append(row)
    lines += ["", "| what grows | every call, ms | each more, ms | of what | on a straight line (R2) |",
              "|---|--:|--:|---|--:|"]  # fmt: skip
    for what, found in axes.items():
        known = [row for row in found if row["latency_s"]["p50"] is not None]
        line = straight_line([row["units"] for row in known], [row["latency_s"]["p50"] for row in known])
        r2 = "" if line["r2"] is None else f"{line['r2']:.3f}"
        lines.append(f"| {what} | {_ms(line['fixed_s'])} | {_ms(line['unit_s'])} | {found[0]['unit']} | {r2} |")
    return lines


def _ms(seconds: float | None) -> str:
    # Zero is added so that what rounds to nothing has no sign: the slope of a flat line is as often just below it.
    return "-" if seconds is None else f"{round(1e3 * seconds, 1) + 0.0:.1f}"
