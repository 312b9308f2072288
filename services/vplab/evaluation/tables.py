"""Figures as rows of text, for the terminal and as Markdown; in per cent, the best of a column marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vplab.evaluation.run import CLICK_COUNTS
from vplab.evaluation.summary import BOUNDARY_F, IMAGE_IOU, IOU, MEASURES, MIOU

_BASE = "segmenter"
"""The row before tuning."""
HQ_TOKEN = "hq-token"
WITHOUT_EARLY = "hq-token is HQ-SAM without its early feature, which its image encoder does not give"
"""What the name of that row does not say where ``lacks_early_feature``."""


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
    """Return the tables of a ``results.json``: four measures over shots, two over clicks, the paper's of tuned methods.

    Empty ones are left out.
    """
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
            tables.append(_table(title, [_step_title(step) for step in steps], columns, list(clicks), "sem"))
    return tables + paper_tables(summary)


def paper_tables(summary: dict[str, Any]) -> list[Table]:
    """Return tables 1, 2 and 3 of the VP Lab paper as far as they were measured.

    1: sizes and marked objects after tuning on the most images; 2: the same after few; 3: a matcher over shots, with
    what tuning gained over no shot. The first row of 1 and 2 is the segmenter before tuning.
    """
    numbers = sorted({number for found in summary.get("tuned", {}).values() for number in found}, key=int)
    few = [number for number in numbers if int(number) != summary.get("num_all")]
    made = [_tuned_table(summary, numbers[-1])] if numbers else []
    made += [_few_shots_table(summary, few)] if few else []
    made += [_matching_table(summary)] if any("+" in name for name in summary["shots"]) else []
    return made


def _tuned_table(summary: dict[str, Any], number: str) -> Table:
    which = "all images that are not tested" if int(number) == summary.get("num_all") else "the most images measured"
    steps = [str(step) for step in ("box", *CLICK_COUNTS)]
    figures = _table("", steps, [_marked_with(summary, number, step) for step in steps], _tuned_rows(summary), "std")
    sizes = [summary.get("tunings", {}).get(name) for name in _tuned_rows(summary)]
    rows = tuple(
        (name, (Cell(f"{size['num_parameters']:,}"), Cell(f"{size['adapter_bytes'] / 1000:,.0f} kB"), *cells))
        if size
        else (name, (Cell("0" if name == _BASE else "-"), Cell("-"), *cells))
        for (name, cells), size in zip(figures.rows, sizes, strict=True)
    )
    title = f"Table 1: mean IoU of a marked object after tuning on {number} images, {which}{_noted(summary)}"
    return Table(title, ("parameters", "stored", *map(_step_title, steps)), rows)


def _few_shots_table(summary: dict[str, Any], numbers: Sequence[str]) -> Table:
    heads = [(number, step) for number in numbers for step in ("box", "1")]
    columns = [_marked_with(summary, number, step) for number, step in heads]
    titles = [f"{number} shot{'' if number == '1' else 's'}: {_step_title(step)}" for number, step in heads]
    title = f"Table 2: mean IoU of a marked object after few shots{_noted(summary)}"
    return _table(title, titles, columns, _tuned_rows(summary), "std")


def _matching_table(summary: dict[str, Any]) -> Table:
    shots = summary["shots"]
    with_adapter = [name for name in shots if "+" in name]
    matchers = [name for name in dict.fromkeys(name.partition("+")[0] for name in with_adapter) if name in shots]
    names = [*matchers, *with_adapter]
    numbers = sorted({number for name in names for number in shots[name]}, key=int)
    columns = [{name: shots[name].get(number, {}).get(IOU) for name in names} for number in numbers]
    figures = _table("", numbers, columns, names, "std")
    later = [number for number in numbers if number != "0"]
    rows = tuple((name, (*cells, *(_gain(shots[name], number) for number in later))) for name, cells in figures.rows)
    title = "Table 3: foreground IoU of a matcher over shots, and the relative gain over no shot"
    return Table(title, (*numbers, *(f"gain at {number}" for number in later)), rows)


def _gain(figures: dict[str, Any], number: str) -> Cell:
    before, after = (figures.get(n, {}).get(IOU, {}).get("mean") for n in ("0", number))
    if not before or after is None:
        return Cell("-")
    return Cell(f"{100 * (after / before - 1):+.0f}")


def lacks_early_feature(summary: dict[str, Any]) -> bool:
    """Say whether HQ_TOKEN was tuned, and without HQ-SAM's early feature in any of its jobs."""
    jobs = summary["tunings"].get(HQ_TOKEN, {}).get("shots", {}).values() if "tunings" in summary else ()
    return HQ_TOKEN in summary["tuned"] and not (jobs and all(job.get("early_channels") for job in jobs))


def _noted(summary: dict[str, Any]) -> str:
    return f"; {WITHOUT_EARLY}" if lacks_early_feature(summary) else ""


def _tuned_rows(summary: dict[str, Any]) -> list[str]:
    return [*([_BASE] if _BASE in summary["clicks"] else []), *summary["tuned"]]


def _marked_with(summary: dict[str, Any], number: str, step: str) -> dict[str, Any]:
    """Return a column: the segmenter before tuning, then each method."""
    base = summary["clicks"].get(_BASE, {}).get(step, {}).get(IOU)
    columns: dict[str, Any] = {_BASE: base and {"mean": base["mean"], "std": None}}
    return columns | {name: found.get(number, {}).get(step, {}).get(IOU) for name, found in summary["tuned"].items()}


def _step_title(step: str) -> str:
    return step if step == "box" else f"{step} click{'' if step == '1' else 's'}"


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
