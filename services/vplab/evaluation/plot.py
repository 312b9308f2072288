"""A picture of the accuracy over the number of shots."""

import io
from typing import Any

from vplab.errors import Unimplemented
from vplab.evaluation.summary import IOU


def plot_shots(summary: dict[str, Any], title: str) -> bytes:
    """Return a PNG of the foreground IoU over shots, a line for each method, the spread over seeds as bars.

    Raises Unimplemented without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unimplemented("the plot needs matplotlib: pip install 'vplab[evaluation]'") from error
    shots = summary["shots"]
    numbers = sorted({number for figures in shots.values() for number in figures}, key=int)
    # Equal steps: on a linear axis 0, 1 and 5 would be one smear beside 40.
    place = {number: index for index, number in enumerate(numbers)}
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (method, found) in enumerate(shots.items()):
        # Lines of equal height stand side by side, so that no bar hides another.
        shift = (index - (len(shots) - 1) / 2) * 0.03
        measured = [(place[number] + shift, found[number][IOU]) for number in numbers if number in found]
        known = [(x, figures) for x, figures in measured if figures["mean"] is not None]
        axes.errorbar(
            [x for x, _ in known],
            [100 * figures["mean"] for _, figures in known],
            yerr=[100 * (figures["std"] or 0) for _, figures in known],
            label=method, marker="o", markersize=4, capsize=3, linewidth=1.5,
        )  # fmt: skip
    axes.set(xlabel="validated images learned from", ylabel="foreground IoU, %", title=title, ylim=(0, 100))
    axes.set_xticks(range(len(numbers)), numbers)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
