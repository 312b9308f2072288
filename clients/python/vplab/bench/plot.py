"""The picture of a run: throughput and latency over what was varied."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from vplab.errors import Unimplemented

_LATENCIES = ("p50", "p95", "p99")


def plot_rows(sections: Mapping[str, Sequence[Mapping[str, Any]]], key_of: Mapping[str, str], title: str) -> bytes:
    """Return a PNG with a row of two panels for each section: answers per second, and latencies.

    key_of: for each section, which entry of its rows is the horizontal axis. Raises Unimplemented without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unimplemented("the plot needs matplotlib: pip install 'vplab[evaluation]'") from error
    figure = Figure(figsize=(9, 3.6 * len(sections)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sections), 2, squeeze=False)
    for (name, rows), (left, right) in zip(sections.items(), panels, strict=True):
        key = key_of[name]
        values = [row[key] for row in rows]
        # Equal steps: on a linear axis 1, 2 and 4 would be one smear beside 32.
        places = range(len(values))
        left.plot(places, [row["throughput_per_s"] for row in rows], marker="o", color="C0")
        left.set(xlabel=key.replace("_", " "), ylabel="answers per second", ylim=(0, None), title=name)
        for index, percent in enumerate(_LATENCIES):
            known = [
                (x, row["latency_s"][percent]) for x, row in enumerate(rows) if row["latency_s"][percent] is not None
            ]
            right.plot(
                [x for x, _ in known], [1e3 * seconds for _, seconds in known],
                marker="o", color=f"C{index}", label=percent,
            )  # fmt: skip
        right.set(xlabel=key.replace("_", " "), ylabel="latency, ms", ylim=(0, None))
        right.legend(fontsize=8)
        for panel in (left, right):
            panel.set_xticks(places, [f"{value:g}" for value in values])
            panel.grid(alpha=0.3)
    figure.suptitle(title)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
