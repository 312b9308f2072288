"""The tables of the comparison: what was measured, and whether it is what was promised."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from vplab.bench.tables import ratio_beside
from vplab.bench.tables import tables_of as bench_tables

BARE, OURS = "bare loop", "vplab"
MOST_ADDED_S = 0.003
LEAST_SHARE = {"click": 0.90, "embed": 0.95}
MOST_BESIDE = 2.0
_TITLES = {"click": "Clicks on embedded images", "embed": "Images to embedding, decoding included"}

Row = dict[str, Any]


def tables_of(report: Row) -> str:
    """Return everything as Markdown: the goals, each work's servers, clicks beside bulk work, growing costs."""
    parts = [goals_table(report)]
    works = list(dict.fromkeys(row["work"] for row in report["rows"]))
    parts += [servers_table(report["rows"], work) for work in works]
    parts += bench_tables({"beside": report["beside"], "growth": report["growth"]})
    forms = "; ".join(f"{name}: {form}" for name, form in report["forms"].items())
    if forms:
        parts.append(f"Best of the forms that were tried - {forms}.")
    parts.append(made_by(report))
    return "\n\n".join(part for part in parts if part)


def summary_of(report: Row) -> str:
    """Return the goals and what made the figures, for the project's README."""
    return f"{goals_table(report)}\n\n{made_by(report)}"


def goals_table(report: Row) -> str:
    """Return what was promised, what was found, and whether that is it."""
    rows, goals = report["rows"], list[tuple[str, str, bool]]()
    if added := per_round(rows, "click", added_p50):
        found = statistics.median(added)
        goals.append(
            ("a click alone: at most 3 ms over the bare loop's p50", f"{1e3 * found:.1f} ms", found <= MOST_ADDED_S)
        )
    for work, least in LEAST_SHARE.items():
        if shares := per_round(rows, work, throughput_share):
            found, what = statistics.median(shares), "clicks" if work == "click" else "embedded images"
            goal = f"{what} at saturation: at least {least:.0%} of the bare loop's throughput"
            goals.append((goal, f"{found:.0%}", found >= least))
    servers = list(dict.fromkeys(row["server"] for row in rows))
    for peer in servers if OURS in servers else ():
        if peer not in (BARE, OURS):
            behind = behind_of(rows, peer)
            where = f"behind in {', '.join(behind)}" if behind else "everywhere"
            goals.append((f"ahead of {peer} in throughput and p99 at every concurrency", where, not behind))
    ratio = ratio_beside(report["beside"])
    if ratio is not None:
        goal = "clicks beside a precompute job: p95 at most twice the idle one"
        goals.append((goal, f"{ratio:.2f} times", ratio <= MOST_BESIDE))
    lines = [f"| {goal} | {found_text} | {'yes' if is_met else 'no'} |" for goal, found_text, is_met in goals]
    return "\n".join(["| goal | found | met |", "|---|--:|---|", *lines]) if goals else ""


def servers_table(rows: Sequence[Row], work: str) -> str:
    """Return the medians over the rounds for one kind of call."""
    lines = [
        f"**{_TITLES[work]}**", "",
        "| server | at a time | per second | of the bare loop | p50, ms | p99, ms | CPU, ms each | failed |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        if row["work"] == work:
            form = row["form"] if row["server"] == BARE else ""
            groups.setdefault((row["server"], row["concurrency"], form), []).append(row)
    for (server, concurrency, form), group in groups.items():
        shares = [share for row in group if (share := _share(row, rows)) is not None]
        p50, p99 = (_median(group, lambda row, name=name: row["latency_s"][name]) for name in ("p50", "p99"))
        cells = (
            f"{server}, {form}" if form else server,
            concurrency,
            f"{_median(group, lambda row: row['throughput_per_s']):.1f}",
            f"{statistics.median(shares):.2f}" if shares else "",
            f"{1e3 * p50:.1f}",
            f"{1e3 * p99:.1f}",
            f"{1e3 * _median(group, lambda row: row['cpu_s_per_item']):.1f}",
            sum(sum(row["errors"].values()) for row in group),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def per_round(rows: Sequence[Row], work: str, make: Callable[[Sequence[Row]], float | None]) -> list[float]:
    """Return a figure of each round: a ratio within a round does not suffer from what came between the rounds."""
    rounds: dict[int, list[Row]] = {}
    for row in rows:
        if row["work"] == work:
            rounds.setdefault(row["round"], []).append(row)
    return [value for group in rounds.values() if (value := make(group)) is not None]


def added_p50(rows: Sequence[Row]) -> float | None:
    """Return how much longer a click that comes alone takes than in the bare loop with one thread."""
    ours = [row["latency_s"]["p50"] for row in rows if row["server"] == OURS and row["concurrency"] == 1]
    bare = [row["latency_s"]["p50"] for row in rows if row["server"] == BARE and row["concurrency"] == 1]
    return min(ours) - min(bare) if ours and bare else None


def throughput_share(rows: Sequence[Row]) -> float | None:
    """Return our highest throughput over the bare loop's in its best form."""
    ours = [row["throughput_per_s"] for row in rows if row["server"] == OURS]
    bare = [row["throughput_per_s"] for row in rows if row["server"] == BARE]
    return max(ours) / max(bare) if ours and bare and max(bare) else None


def behind_of(rows: Sequence[Row], peer: str) -> list[str]:
    """Return where a peer answers more calls, or has the lower p99, in the median over the rounds."""
    behind = []
    for work, concurrency in dict.fromkeys((row["work"], row["concurrency"]) for row in rows if row["server"] == peer):
        both = [
            [row for row in rows if (row["server"], row["work"], row["concurrency"]) == (server, work, concurrency)]
            for server in (OURS, peer)
        ]
        if not both[0]:
            continue
        ours, theirs = ([_median(group, lambda row: row["throughput_per_s"]),
                         _median(group, lambda row: row["latency_s"]["p99"])] for group in both)  # fmt: skip
        if not ours[0] > theirs[0]:
            behind.append(f"{work} x{concurrency} throughput")
        if not ours[1] < theirs[1]:
            behind.append(f"{work} x{concurrency} p99")
    return behind


def made_by(report: Row) -> str:
    """Return the machine, the commits and the settings."""
    settings = report["settings"]
    made = "; ".join(sorted({f"{made['machine']}, commit {made['commit']}" for made in report["made"].values()}))
    return (
        f"{made}. Nano models, {settings['images']} images of {settings['side']} pixels, {settings['seconds']:g} s for "
        f"each step, {settings['rounds']} rounds."
    )


def _share(row: Row, rows: Sequence[Row]) -> float | None:
    group = (BARE, row["work"], row["round"])
    bare = [one["throughput_per_s"] for one in rows if (one["server"], one["work"], one["round"]) == group]
    return row["throughput_per_s"] / max(bare) if bare and max(bare) else None


def _median(rows: Sequence[Row], of: Callable[[Row], float | None]) -> float:
    values = [value for row in rows if (value := of(row)) is not None]
    return statistics.median(values) if values else float("nan")
