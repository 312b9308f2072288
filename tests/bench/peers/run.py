"""One run of all servers of the comparison under the same load, and the bare loop beside them.

``python tests/bench/peers/run.py --out OUT`` measures clicks and embeddings at every concurrency, one server after the
other and the whole of it ``--rounds`` times, and writes OUT/peers.json and OUT/peers.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from servers import SERVERS, Server, cpu_seconds, digest_of, free_port
from work import Click, Mask, Work

from vplab.bench.generators import Generators
from vplab.bench.load import Step
from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.samples import figures
from vplab.evaluation.software import describe_software

HERE = Path(__file__).resolve().parent
CONCURRENCY = (1, 2, 4, 8, 16)
WORKS = ("click", "embed")
BARE = "bare loop"
# The forms of the bare loop on a machine of N cores: runs that use all of them, or one on each.
_CORES = os.cpu_count() or 1
BARE_FORMS = ((1, _CORES), (_CORES, 1)) if _CORES > 1 else ((1, 1),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--servers", nargs="*", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=WORKS)
    parser.add_argument("--concurrency", type=int, nargs="*", default=list(CONCURRENCY))
    parser.add_argument("--seconds", type=float, default=8.0, help="measured at each concurrency")
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = make_pictures(arguments.images, arguments.side, num_points=16)
    expected = expected_masks(pictures)
    rows: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for work in arguments.works:
            rows += [{**row, "round": number} for row in measure_bare(work, arguments)]
        for name in arguments.servers:
            server = SERVERS[name](free_port())
            rows += [{**row, "round": number} for row in measure_server(server, pictures, expected, arguments)]
        report = {"settings": {**vars(arguments), "out": None}, "rows": rows, **describe_software()}
        (arguments.out / "peers.json").write_text(json.dumps(report, indent=1) + "\n")
    table = table_of(rows, arguments.works)
    (arguments.out / "peers.md").write_text(table + "\n")
    print(table)


def expected_masks(pictures: list[Picture]) -> list[Mask]:
    """Return the mask of the first click on each picture, by the bare loop's own work."""
    work = Work()
    work.embed([picture.data for picture in pictures])
    return work.click([Click(digest_of(picture), *picture.points_xy[0]) for picture in pictures])


def measure_bare(work: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every form of the bare loop."""
    rows = []
    for threads, intra_op in BARE_FORMS:
        command = [sys.executable, str(HERE / "bare.py"), "--work", work, "--threads", str(threads)]
        command += ["--intra-op", str(intra_op), "--seconds", str(arguments.seconds)]
        command += ["--warm-up", str(arguments.warm_up), "--images", str(arguments.images)]
        command += ["--side", str(arguments.side)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        form = found.pop("form")
        rows.append({"server": BARE, "concurrency": form["threads"], "form": f"{threads} x {intra_op}", **found})
        show(rows[-1])
    return rows


def measure_server(
    server: Server, pictures: list[Picture], expected: list[Mask], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Start a server, compare its masks with the bare loop's, and measure it at every concurrency."""
    rows = []
    with server.running(arguments.out / server.name, pictures) as process:
        agreement = check_masks(server, pictures, expected)
        for work in arguments.works:
            is_click = work == "click"
            requests = server.click_requests(pictures) if is_click else server.embed_requests(pictures)
            with Generators(server.clicks() if is_click else server.embeddings(), requests) as generators:
                for concurrency in arguments.concurrency:
                    cpu_s, began = cpu_seconds(process), time.monotonic()
                    samples, is_whole = generators.run(Step(concurrency, arguments.seconds, arguments.warm_up))
                    if not is_whole:
                        raise KeyboardInterrupt
                    found = figures(samples)
                    cpu_s = (cpu_seconds(process) - cpu_s) / (time.monotonic() - began)
                    rate = found["throughput_per_s"]
                    rows.append(
                        {
                            "server": server.name, "work": work, "concurrency": concurrency,
                            "mask_iou_min": agreement, **found, "cpu_s_per_item": cpu_s / rate if rate else None,
                        }
                    )  # fmt: skip
                    show(rows[-1])
    return rows


def check_masks(server: Server, pictures: list[Picture], expected: list[Mask]) -> float:
    """Return the least IoU of a server's masks with the bare loop's; ends the run where one differs visibly."""
    worst = 1.0
    for picture, right in zip(pictures, expected, strict=True):
        body = server.click_body(digest_of(picture), *picture.points_xy[0])
        found = server.mask_of(server.ask(server.clicks(), body))
        worst = min(worst, found.iou(right))
    if worst < 0.99:
        raise SystemExit(f"{server.name} answers other masks: IoU {worst:.3f}")
    return worst


def show(row: dict[str, Any]) -> None:
    """Print a row as it comes."""
    latency = {key: "-" if value is None else f"{1e3 * value:.1f}" for key, value in row["latency_s"].items()}
    print(
        f"{row['server']:10} {row['work']:6} x{row['concurrency']:<3} {row['throughput_per_s']:7.1f}/s "
        f"p50 {latency['p50']} p99 {latency['p99']} ms, {1e3 * (row['cpu_s_per_item'] or 0):.1f} ms CPU each, "
        f"generator {row['generator']['busiest_share']:.0%} {row['errors'] or ''}",
        file=sys.stderr,
        flush=True,
    )


def table_of(rows: list[dict[str, Any]], works: list[str]) -> str:
    """Return the medians over the rounds as tables in Markdown."""
    tables = []
    for work in works:
        lines = [
            f"**{work}**", "",
            "| server | at a time | per second | of the bare loop | p50, ms | p99, ms | CPU, ms each |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in rows:
            if row["work"] == work:
                groups.setdefault((row["server"], row["concurrency"]), []).append(row)
        medians = {key: _median(group, "throughput_per_s") for key, group in groups.items()}
        bare = max((value for (server, _), value in medians.items() if server == BARE), default=0.0)
        for (server, concurrency), group in groups.items():
            rate = medians[server, concurrency]
            p50, p99 = (1e3 * _median([row["latency_s"] for row in group], key) for key in ("p50", "p99"))
            cpu = 1e3 * _median(group, "cpu_s_per_item")
            share = f"{rate / bare:.2f}" if bare else ""
            lines.append(f"| {server} | {concurrency} | {rate:.1f} | {share} | {p50:.1f} | {p99:.1f} | {cpu:.1f} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _median(rows: list[dict[str, Any]], key: str) -> float:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.median(values) if values else float("nan")


if __name__ == "__main__":
    main()
