"""Pictures of the accuracy over the number of shots."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vplab.errors import Unimplemented
from vplab.evaluation.summary import IOU

_STEPS = {"box": "-", "1": "--"}
"""What is shown of marked objects, and the line's style."""


@dataclass(frozen=True)
class _Line:
    label: str
    figures: Mapping[str, dict[str, Any]]
    """Number of shots, as text, to mean and std."""
    colour: str
    style: str = "-"


def plot_shots(summary: dict[str, Any], title: str) -> bytes:
    """Return a PNG of the foreground IoU over shots, a line for each method, the spread over seeds as bars.

    Raises Unimplemented without matplotlib.
    """
    lines = [
        _Line(method, {number: figures[IOU] for number, figures in found.items()}, f"C{index}")
        for index, (method, found) in enumerate(summary["shots"].items())
    ]
    return _plot(lines, "foreground IoU, %", title)


def plot_tuned(summary: dict[str, Any], title: str) -> bytes:
    """Return a PNG of the mean IoU of a marked object over shots, by box and by one click, a colour for each method.

    Raises Unimplemented without matplotlib.
    """
    base = summary["clicks"].get("segmenter", {})
    lines = []
    for index, (method, found) in enumerate(summary["tuned"].items()):
        for step, style in _STEPS.items():
            before = {"0": {"mean": base[step][IOU]["mean"], "std": None}} if step in base else {}
            figures = {number: figures[step][IOU] for number, figures in found.items()}
            label = f"{method}, {step if step == 'box' else '1 click'}"
            lines.append(_Line(label, before | figures, f"C{index}", style))
    return _plot(lines, "mean IoU of a marked object, %", title)


def _plot(lines: Sequence[_Line], what: str, title: str) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unimplemented("the plot needs matplotlib: pip install 'vplab[evaluation]'") from error
    numbers = sorted({number for line in lines for number in line.figures}, key=int)
    # Equal steps: on a linear axis 0, 1 and 5 would be one smear beside 40.
    place = {number: index for index, number in enumerate(numbers)}
    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, line in enumerate(lines):
        # Lines of equal height stand side by side, so that no bar hides another.
        shift = (index - (len(lines) - 1) / 2) * min(0.03, 0.6 / len(lines))
        measured = [(place[n] + shift, line.figures[n]) for n in numbers if n in line.figures]
        known = [(x, figures) for x, figures in measured if figures["mean"] is not None]
        axes.errorbar(
            [x for x, _ in known],
            [100 * figures["mean"] for _, figures in known],
            yerr=[100 * (figures["std"] or 0) for _, figures in known],
            label=line.label, color=line.colour, linestyle=line.style, marker="o", markersize=4, capsize=3,
            linewidth=1.5,
        )  # fmt: skip
    axes.set(xlabel="validated images learned from", ylabel=what, title=title, ylim=(0, 100))
    axes.set_xticks(range(len(numbers)), numbers)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
