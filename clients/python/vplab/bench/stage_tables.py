"""Where the time of every step's calls went, by the servers' own series and by what their answers say."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vplab.bench.names import SECTIONS

Row = Mapping[str, Any]
_MAX_STAGES = 12
_NAMES = {"sweep": "callers", "arrivals": "calls arriving per second", "beside": "beside the clicks"}


def stage_tables(report: Row) -> list[str]:
    """Return a table for each section, and for each thing that grew: a row for each stage, a column for each step."""
    found = []
    for section in SECTIONS:
        groups: dict[str, list[Row]] = {}
        for row in report.get(section, ()):
            groups.setdefault(row.get("what", _NAMES.get(section, section)), []).append(row)
        found += [table for what, rows in groups.items() if (table := _table(section, what, rows))]
    return found


def _table(section: str, what: str, rows: Sequence[Row]) -> str:
    steps = [_means(row) for row in rows]
    spent: dict[tuple[str, str], float] = {}
    for step in steps:
        for stage, (count, mean) in step.items():
            spent[stage] = spent.get(stage, 0.0) + count * mean
    chosen = sorted(spent, key=spent.__getitem__, reverse=True)[:_MAX_STAGES]
    if not chosen:
        return ""
    columns = " | ".join(_step(section, row) for row in rows)
    lines = [f"| mean ms by {what} | stage | {columns} |", f"|---|---|{'--:|' * len(rows)}"]
    for service, name in chosen:
        cells = (f"{1e3 * step[service, name][1]:.1f}" if (service, name) in step else "-" for step in steps)
        lines.append(f"| {service} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _means(row: Row) -> dict[tuple[str, str], tuple[float, float]]:
    """Return how often each stage was seen in a step, and its mean in seconds."""
    return dict([*_of_servers(row), *_of_answers(row)])


def _of_servers(row: Row) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    for service, gained in row["servers"].items():
        for name, found in gained["mean"].items():
            if "_seconds" in name:
                yield (service, name), (found["count"], found["mean"])


def _of_answers(row: Row) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    said = row.get("answers_say_s", {})
    for name, mean in said.items():
        if name != "num_answers":
            yield ("answers", name), (said["num_answers"], mean)


def _step(section: str, row: Row) -> str:
    if section == "beside":
        return row["bulk"]["kind"] if row["is_busy"] else "nothing"
    return f"{row[{'sweep': 'num_callers', 'arrivals': 'rate_per_s', 'growth': 'value'}[section]]:g}"
