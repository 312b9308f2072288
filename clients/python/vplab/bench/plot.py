"""The picture of a run: throughput and latency over what was varied."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vplab.bench.growth import straight_line
from vplab.errors import Unimplemented

Row = Mapping[str, Any]
_LATENCIES = ("p50", "p95", "p99")


@dataclass(frozen=True)
class Panels:
    """Two panels side by side: what was done in a second, and how long each call took."""

    title: str
    across: str
    """What the horizontal axes are."""
    ticks: Sequence[str]
    places: Sequence[float]
    """Of the steps on the horizontal axes."""
    rates: Sequence[float | None]
    rate_name: str
    rows: Sequence[Row]
    has_line: bool = False
    """Whether the cost should be a straight line over the places; the one that comes nearest to p50 is drawn."""


def panels_of(report: Row) -> list[Panels]:
    """Return what is drawn of a report."""
    found = []
    for section, key in (("sweep", "num_callers"), ("arrivals", "rate_per_s")):
        if rows := report.get(section):
            # Equal distances: on a linear axis 1, 2 and 4 would be one smear beside 32.
            ticks = [f"{row[key]:g}" for row in rows]
            found.append(_of_calls(section, key.replace("_", " "), ticks, list(range(len(rows))), rows))
    if rows := report.get("beside"):
        ticks = [f"{row['bulk']['kind'] if row['is_busy'] else 'nothing'}\npair {row['pair'] + 1}" for row in rows]
        images = [row["bulk"].get("images_per_s") if row["is_busy"] else None for row in rows]
        found.append(
            Panels(
                "beside",
                "beside the clicks",
                ticks,
                list(range(len(rows))),
                images,
                "images of the bulk work per second",
                rows,
            )
        )
    axes: dict[str, list[Row]] = {}
    for row in report.get("growth", ()):
        axes.setdefault(row["what"], []).append(row)
    for what, rows in axes.items():
        ticks, places = [f"{row['value']:g}" for row in rows], [row["units"] for row in rows]
        found.append(_of_calls("growth", what, ticks, places, rows, has_line=True))
    return found


def plot_report(report: Row, title: str) -> bytes:
    """Return a PNG with two panels for each section and each thing that grew.

    Raises Unimplemented without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unimplemented("the plot needs matplotlib: pip install 'vplab[evaluation]'") from error
    drawn = panels_of(report)
    figure = Figure(figsize=(9, 3.6 * len(drawn)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for panels, (left, right) in zip(drawn, figure.subplots(len(drawn), 2, squeeze=False), strict=True):
        _draw_rates(left, panels)
        _draw_latencies(right, panels)
        for panel in (left, right):
            panel.set_xlabel(panels.across)
            panel.set_xticks(panels.places, panels.ticks)
            panel.grid(alpha=0.3)
    figure.suptitle(title)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _of_calls(
    title: str, across: str, ticks: list[str], places: list[Any], rows: Sequence[Row], *, has_line: bool = False
) -> Panels:
    rates = [row["throughput_per_s"] for row in rows]
    return Panels(title, across, ticks, places, rates, "answers per second", rows, has_line)


def _draw_rates(panel: Any, panels: Panels) -> None:
    known = [(x, rate) for x, rate in zip(panels.places, panels.rates, strict=True) if rate is not None]
    panel.plot([x for x, _ in known], [rate for _, rate in known], marker="o", color="C0")
    panel.set(ylabel=panels.rate_name, ylim=(0, None), title=panels.title)


def _draw_latencies(panel: Any, panels: Panels) -> None:
    for index, percent in enumerate(_LATENCIES):
        known = [
            (x, 1e3 * row["latency_s"][percent])
            for x, row in zip(panels.places, panels.rows, strict=True)
            if row["latency_s"][percent] is not None
        ]
        x, y = [place for place, _ in known], [ms for _, ms in known]
        panel.plot(x, y, marker="o", color=f"C{index}", label=percent)
        line = straight_line(x, y) if panels.has_line and percent == "p50" else {"unit_s": None}
        if (slope := line["unit_s"]) is not None:
            start = line["fixed_s"] or 0.0
            panel.plot(x, [start + slope * place for place in x], "k--", linewidth=1, label="straight line")
    panel.set(ylabel="latency, ms", ylim=(0, None))
    panel.legend(fontsize=8)
