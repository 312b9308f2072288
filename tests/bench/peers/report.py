"""The tables of the comparison: what was measured, and whether it is what was promised."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from vplab.bench.tables import ratio_beside
from vplab.bench.tables import tables_of as bench_tables

BARE, OURS = "bare loop", "vplab"
OURS_WITHOUT_DISK = "vplab-without-disk"
MOST_ADDED_S = 0.003
LEAST_SHARE = {"click": 0.90, "embed": 0.95}
MOST_BESIDE = 2.0
CHANCE = 0.05
"""Of two equal servers one is called ahead in so many of all comparisons at most."""
_PARTS = {"servers": "The servers", "beside": "Clicks beside a precompute job", "growth": "How costs grow"}
_TITLES = {"click": "Clicks on embedded images", "embed": "Images to embedding, decoding included"}

Row = dict[str, Any]


def tables_of(report: Row) -> str:
    """Return as Markdown the goals, each work's servers, and clicks beside bulk work."""
    parts = [goals_table(report)]
    works = list(dict.fromkeys(row["work"] for row in report["rows"]))
    parts += [servers_table(report["rows"], work) for work in works]
    parts.append(standings_table(report["rows"]))
    parts += bench_tables({"beside": report["beside"], "growth": []})
    parts.append(made_by(report, ("servers", "beside")))
    return "\n\n".join(part for part in parts if part)


def growth_of(report: Row) -> str:
    """Return how the cost of a call grows; empty where it was not measured."""
    if not report["growth"]:
        return ""
    parts = bench_tables({"beside": [], "growth": report["growth"]})
    return "\n\n".join([*parts, made_by(report, ("growth",))])


def summary_of(report: Row) -> str:
    """Return the goals and what made the figures, for the project's README."""
    return f"{goals_table(report)}\n\n{made_by(report, ('servers', 'beside'))}"


def goals_table(report: Row) -> str:
    """Return what was promised, what was found, and whether that is it."""
    rows, goals = report["rows"], list[tuple[str, str, bool]]()
    if (found := added_p50(rows)) is not None:
        goals.append(
            ("a click alone: at most 3 ms over the bare loop's p50", f"{1e3 * found:.1f} ms", found <= MOST_ADDED_S)
        )
    for work, least in LEAST_SHARE.items():
        if (found := saturated_share(rows, work)) is not None:
            what = "clicks" if work == "click" else "embedded images"
            goal = f"{what} at saturation: at least {least:.0%} of the bare loop's throughput"
            goals.append((goal, _share_text(found), found >= least))
    if (found := saturated_share(rows, "embed", OURS_WITHOUT_DISK)) is not None:
        goal = "the same with embeddings in memory alone, as the bare loop and the peers keep theirs"
        goals.append((goal, _share_text(found), found >= LEAST_SHARE["embed"]))
    if any(row["server"] == OURS for row in rows):
        for peer in _peers(rows):
            found_text, is_met = standing_text(standings(rows, peer))
            goals.append((f"ahead of {peer} in throughput and p99 at every concurrency", found_text, is_met))
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
        "| server | form | at a time | per second | of the bare loop | p50, ms | p99, ms | CPU, ms each | failed |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    share_of = {id(row): _share(row, slot) for slot in _slots(rows, work) for row in slot}
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        if row["work"] == work:
            groups.setdefault((row["server"], row["concurrency"], row["form"]), []).append(row)
    # The bare loop first; servers that had another form at some concurrency were measured later.
    for (server, concurrency, form), group in sorted(groups.items(), key=lambda item: (item[0][0] != BARE, item[0][1])):
        shares = [share for row in group if (share := share_of[id(row)]) is not None]
        p50, p99 = (_median(group, lambda row, name=name: row["latency_s"][name]) for name in ("p50", "p99"))
        cells = (
            server,
            form,
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


def added_p50(rows: Sequence[Row]) -> float | None:
    """Return how much longer a click that comes alone takes than in the bare loop with one thread, in the median."""
    added = []
    for slot in _slots(rows, "click"):
        ours = [row["latency_s"]["p50"] for row in slot if row["server"] == OURS and row["concurrency"] == 1]
        bare = [row["latency_s"]["p50"] for row in slot if row["server"] == BARE and row["concurrency"] == 1]
        if ours and bare:
            added.append(min(ours) - min(bare))
    return statistics.median(added) if added else None


def saturated_share(rows: Sequence[Row], work: str, server: str = OURS) -> float | None:
    """Return our share of the bare loop's throughput, the rounds' median, at the concurrency where it is highest."""
    shares: dict[int, list[float]] = {}
    for slot in _slots(rows, work):
        for row in slot:
            if row["server"] == server and (share := _share(row, slot)) is not None:
                shares.setdefault(row["concurrency"], []).append(share)
    return max((statistics.median(found) for found in shares.values()), default=None)


def standings(rows: Sequence[Row], peer: str) -> dict[str, list[float]]:
    """Return, for each work, concurrency and quantity, how many times better we were than a peer in each round.

    Throughput over throughput, and p99 under p99, within the round.
    """
    found: dict[str, list[float]] = {}
    for work in dict.fromkeys(row["work"] for row in rows):
        for slot in sorted(_slots(rows, work), key=lambda slot: slot[0]["slot"]):
            ours, theirs = ([row for row in slot if row["server"] == server] for server in (OURS, peer))
            if not ours or not theirs:
                continue
            our, their = ours[0], theirs[0]
            where = f"{work} x{our['concurrency']}"
            rate = _ratio(our["throughput_per_s"], their["throughput_per_s"])
            found.setdefault(f"{where} throughput", []).append(rate)
            found.setdefault(f"{where} p99", []).append(_ratio(their["latency_s"]["p99"], our["latency_s"]["p99"]))
    return found


def verdict(ratios: Sequence[float]) -> str:
    """Return ``ahead``, ``behind``, or ``level`` where the rounds do not tell: a sign test, one-sided.

    Of fewer rounds than could tell, all have to agree.
    """
    for word, count in (("ahead", sum(r > 1 for r in ratios)), ("behind", sum(r < 1 for r in ratios))):
        chance = sum(math.comb(len(ratios), k) for k in range(count, len(ratios) + 1)) / 2 ** len(ratios)
        if chance <= CHANCE or count == len(ratios):
            return word
    return "level"


def standing_text(found: dict[str, list[float]]) -> tuple[str, bool]:
    """Return in words where we are ahead of a peer, and whether that is everywhere."""
    by_verdict: dict[str, list[str]] = {}
    for where, ratios in found.items():
        by_verdict.setdefault(verdict(ratios), []).append(where)
    if set(by_verdict) == {"ahead"}:
        return "everywhere", True
    parts = [f"{word} in {len(by_verdict[word])} of {len(found)}" for word in ("ahead", "level") if word in by_verdict]
    parts += [f"behind in {', '.join(by_verdict['behind'])}"] if "behind" in by_verdict else []
    return ", ".join(parts), False


def standings_table(rows: Sequence[Row]) -> str:
    """Return how many times better we are than each peer, the median over the rounds, with the verdict."""
    peers = _peers(rows)
    found = {peer: standings(rows, peer) for peer in peers}
    wheres = list(dict.fromkeys(where for of_peer in found.values() for where in of_peer))
    if not wheres:
        return ""
    lines = [
        "How many times better vplab is, median over the rounds; level where the rounds do not tell (sign test, "
        f"{CHANCE:.0%}):", "",
        f"| where | {' | '.join(peers)} |", f"|---|{'--:|' * len(peers)}",
    ]  # fmt: skip
    for where in wheres:
        cells = [
            f"{statistics.median(ratios):.2f} {verdict(ratios)}" if (ratios := found[peer].get(where)) else ""
            for peer in peers
        ]
        lines.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share_text(share: float) -> str:
    """Return a share in percent, rounded down: what falls short must not read as if it were met."""
    return f"{math.floor(1000 * share) / 10:.1f}%"


def _peers(rows: Sequence[Row]) -> list[str]:
    servers = dict.fromkeys(row["server"] for row in rows)
    return [name for name in servers if name not in (BARE, OURS, OURS_WITHOUT_DISK)]


def made_by(report: Row, parts: Sequence[str]) -> str:
    """Return the machine, the commit and the settings of some parts; each in a line of its own where they differ."""
    by_text: dict[str, list[str]] = {}
    for part in parts:
        if made := report["made"].get(part):
            by_text.setdefault(_made_text(made), []).append(_PARTS[part])
    if len(by_text) == 1:
        return next(iter(by_text))
    return "\n\n".join(f"{' and '.join(titles)}: {text}" for text, titles in by_text.items())


def _made_text(made: Row) -> str:
    settings = made["settings"]
    return (
        f"{made['machine']}, commit {made['commit']}. Nano models, {settings['images']} images of {settings['side']} "
        f"pixels; {settings['seconds']:g} s for each step, medians of {settings['rounds']} rounds."
    )


def _slots(rows: Sequence[Row], work: str) -> Sequence[Sequence[Row]]:
    """Return the rows measured within half a minute: a ratio within one does not suffer from the machine's drift."""
    slots: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        if row["work"] == work:
            slots.setdefault((row["round"], row["slot"]), []).append(row)
    return list(slots.values())


def _share(row: Row, slot: Sequence[Row]) -> float | None:
    bare = max((one["throughput_per_s"] for one in slot if one["server"] == BARE), default=0.0)
    return row["throughput_per_s"] / bare if bare else None


def _ratio(ours: float | None, theirs: float | None) -> float:
    """Return ours over theirs; what never answered takes for ever."""
    ours, theirs = (math.inf if value is None else value for value in (ours, theirs))
    return math.nan if math.isinf(ours) and math.isinf(theirs) else ours / theirs if theirs else math.inf


def _median(rows: Sequence[Row], of: Callable[[Row], float | None]) -> float:
    values = [value for row in rows if (value := of(row)) is not None]
    return statistics.median(values) if values else float("nan")
