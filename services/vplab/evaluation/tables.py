"""Figures as rows of text, for the terminal and as Markdown; in per cent, the best of a column marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vplab.evaluation.run import CLICK_COUNTS
from vplab.evaluation.summary import BOUNDARY_F, IMAGE_IOU, IOU, MEASURES, MIOU


@dataclass(frozen=True)
class Cell:
    """One figure."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A titled grid."""

    title: str
    columns: tuple[str, ...]
    """Of the figures; the first column is the method."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def to_markdown(self) -> str:
        """Return the table, the best in bold."""
        lines = [
            f"**{self.title}**",
            "",
            f"| method | {' | '.join(self.columns)} |",
            f"|---|{'--:|' * len(self.columns)}",
        ]
        for name, cells in self.rows:
            shown = [f"**{cell.text}**" if cell.is_best else cell.text for cell in cells]
            lines.append(f"| {name} | {' | '.join(shown)} |")
        return "\n".join(lines)


def tables_of(summary: dict[str, Any]) -> list[Table]:
    """Return the tables of a ``results.json``: four measures over shots, two over clicks; empty ones are left out."""
    shots, clicks = summary["shots"], summary["clicks"]
    titles = {IOU: "Foreground IoU over shots", IMAGE_IOU: "Mean IoU of an image over shots",
              MIOU: "mIoU with background over shots", BOUNDARY_F: "Boundary F over shots"}  # fmt: skip
    numbers = sorted({number for figures in shots.values() for number in figures}, key=int)
    tables = []
    for measure in MEASURES if shots else ():
        columns = [
            {name: figures.get(number, {}).get(measure) for name, figures in shots.items()} for number in numbers
        ]
        tables.append(_table(titles[measure], numbers, columns, list(shots), "std"))
    for measure, title in ((IOU, "Mean IoU of a marked object"), (BOUNDARY_F, "Boundary F of a marked object")):
        if clicks:
            steps = ["box", *map(str, CLICK_COUNTS)]
            columns = [{name: found.get(step, {}).get(measure) for name, found in clicks.items()} for step in steps]
            heads = ["box", *(f"{count} click{'s' if count > 1 else ''}" for count in CLICK_COUNTS)]
            tables.append(_table(title, heads, columns, list(clicks), "sem"))
    return tables


def _table(
    title: str, heads: Sequence[str], columns: Sequence[dict[str, Any]], methods: Sequence[str], spread: str
) -> Table:
    best = [
        max((f["mean"] for f in column.values() if f and f["mean"] is not None), default=None) for column in columns
    ]
    rows = [
        (name, tuple(_cell(column[name], top, spread) for column, top in zip(columns, best, strict=True)))
        for name in methods
    ]
    return Table(title, tuple(heads), tuple(rows))


def _cell(figures: dict[str, Any] | None, best: float | None, spread: str) -> Cell:
    if not figures or figures["mean"] is None:
        return Cell("-")
    width = "" if figures[spread] is None else f" ± {100 * figures[spread]:.1f}"
    return Cell(f"{100 * figures['mean']:.1f}{width}", figures["mean"] == best)
