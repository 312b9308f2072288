"""One run of all servers of the comparison under the same load, and the bare loop beside them.

``python tests/bench/peers/run.py --out OUT`` measures clicks and embeddings, at every concurrency one server after the
other, each in the form that a short trial found best there, and the whole of it ``--rounds`` times; then, for our own
services, clicks beside bulk work and how costs grow: ``vplab bench --beside precompute`` and ``--growth all``. Writes
OUT/peers.json and OUT/peers.md, and with ``--readme`` the tables into this folder's README and their summary into the
README of the project.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from report import BARE, growth_of, summary_of, tables_of
from servers import ROOT, SERVERS, Form, Server, cpu_seconds, digest_of, free_port, suspended
from work import Click, Mask, Work

from vplab.bench.generators import Generators
from vplab.bench.load import Step
from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.samples import figures
from vplab.evaluation.software import describe_software

HERE = Path(__file__).resolve().parent
CONCURRENCY = (1, 4, 8, 16)
WORKS = ("click", "embed")
PARTS = ("servers", "beside", "growth")
# The forms of the bare loop on a machine of N cores: runs that use all of them, or one on each.
_CORES = os.cpu_count() or 1
BARE_FORMS = ((1, _CORES), (_CORES, 1)) if _CORES > 1 else ((1, 1),)

Row = dict[str, Any]


def main() -> None:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server of the moment is ended too
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "peers.json"
    report: Row = {"trials": [], "rows": [], "beside": [], "growth": [], "made": {}}
    if path.exists():  # parts that are not measured now stay as an earlier run found and made them
        report |= json.loads(path.read_text())
    settings = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    made = describe_software()
    for part in arguments.parts:
        report["made"][part] = made | {"settings": settings | {"seconds": seconds_of(part, arguments)}}
        if part == "servers":
            report |= {"rows": [], "trials": []}
            Comparison(arguments, report, path).run()
        else:
            report[part] = bench(part, arguments)
        path.write_text(json.dumps(report, indent=1) + "\n")
    tables, growth = tables_of(report), growth_of(report)
    text = "\n\n".join(part for part in (tables, growth) if part)
    (arguments.out / "peers.md").write_text(text + "\n")
    print(text)
    if arguments.readme and report["rows"]:
        write_between(HERE / "README.md", "peers", tables)
        write_between(ROOT / "README.md", "serving", summary_of(report))
    if arguments.readme and growth:
        write_between(HERE / "README.md", "growth", growth)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--servers", nargs="*", default=list(SERVERS), choices=list(SERVERS))
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=WORKS)
    parser.add_argument("--concurrency", type=int, nargs="*", default=list(CONCURRENCY))
    parser.add_argument("--seconds", type=float, default=2.0, help="measured at each concurrency")
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--rounds", type=odd, default=9, help="odd, so that a median is one that was measured")
    parser.add_argument(
        "--probe-seconds",
        type=float,
        default=2.0,
        help="for each form of a peer at each concurrency; 0 takes the first",
    )
    parser.add_argument("--venvs", type=Path, help="folder of the peers' virtual environments; else OUT/venvs")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--readme", action="store_true", help="write the tables into the READMEs")
    return parser.parse_args()


def odd(text: str) -> int:
    number = int(text)
    if number < 1 or number % 2 == 0:
        raise argparse.ArgumentTypeError(f"{text} is not an odd number")
    return number


class Comparison:
    """Measures every server and the bare loop in turns, and writes what it has after each."""

    def __init__(self, arguments: argparse.Namespace, report: Row, path: Path) -> None:
        self._arguments = arguments
        self._report = report
        self._path = path
        self._pictures = make_pictures(arguments.images, arguments.side, num_points=16)
        self._expected = expected_masks(self._pictures)
        venvs = arguments.venvs or arguments.out / "venvs"
        self._pythons = {name: python_of(name, venvs) for name in arguments.servers}

    def run(self) -> None:
        """Measure one work after the other."""
        for work in self._arguments.works:
            names = [name for name in self._arguments.servers if work in SERVERS[name].works]
            best = {name: self._best_forms(name, work) for name in names}
            for concurrencies, forms in alike(best, self._arguments.concurrency):
                with ExitStack() as stack:
                    bare = [stack.enter_context(BareLoop.running(work, form, self._arguments)) for form in BARE_FORMS]
                    running = [stack.enter_context(self._serving(name, form, work)) for name, form in forms.items()]
                    self._measure_in_turns(work, bare, running, concurrencies)

    def _measure_in_turns(
        self, work: str, bare: "list[BareLoop]", running: "list[Running]", concurrencies: list[int]
    ) -> None:
        """Measure every server and the bare loop within half a minute, at each concurrency, in every round.

        All of them run all the time, but all that are not measured are stopped: what the machine does besides changes
        within minutes, and some servers poll a core away while nobody asks them.
        """
        for number in range(self._arguments.rounds):
            for concurrency in concurrencies:
                slot = {"round": number, "slot": concurrency}
                with suspended([one.process for one in running]):
                    rows = [loop.measure(work) for loop in bare]
                for one in running:
                    with suspended([other.process for other in running if other is not one]):
                        row = one.measure(concurrency, self._arguments.seconds, self._arguments.warm_up)
                    rows.append({**row, "work": work})
                    show(rows[-1])
                self._report["rows"] += [{**row, **slot} for row in rows]
                self._path.write_text(json.dumps(self._report, indent=1) + "\n")

    def _best_forms(self, name: str, work: str) -> dict[int, Form]:
        """Return, for each concurrency, the form in which a server answers most calls, each tried for a short while."""
        forms, concurrencies = SERVERS[name].forms, self._arguments.concurrency
        if len(forms) == 1 or not self._arguments.probe_seconds:
            return dict.fromkeys(concurrencies, forms[0])
        rates: dict[int, dict[Form, float]] = {concurrency: {} for concurrency in concurrencies}
        for form in forms:
            # A caller alone would only wait for others to share his batch.
            tried = [concurrency for concurrency in concurrencies if concurrency > 1 or form.batch == 1]
            with self._serving(name, form, work) as running:
                for concurrency in tried:
                    row = running.measure(concurrency, self._arguments.probe_seconds, self._arguments.warm_up)
                    self._report["trials"].append({**row, "work": work})
                    show(self._report["trials"][-1])
                    rates[concurrency][form] = row["throughput_per_s"]
        return {concurrency: max(found, key=found.__getitem__) for concurrency, found in rates.items()}

    @contextmanager
    def _serving(self, name: str, form: Form, work: str) -> "Iterator[Running]":
        """Start a server, compare its masks with the bare loop's, and connect a load generator."""
        server = SERVERS[name](free_port(), form, self._pythons[name])
        with server.running(self._arguments.out / name, self._pictures) as process:
            agreement = check_masks(server, self._pictures, self._expected)
            if work == "click":
                target, requests = server.clicks(), server.click_requests(self._pictures)
            else:
                target, requests = server.embeddings(), server.embed_requests(self._pictures)
            with Generators(target, requests) as generators:
                yield Running(server, process, generators, agreement)


@dataclass(frozen=True)
class Running:
    """A server that waits for calls, and the generator that makes them."""

    server: Server
    process: psutil.Process
    generators: Generators
    mask_iou_min: float

    def measure(self, concurrency: int, seconds: float, warm_up_s: float) -> Row:
        """Measure so many callers."""
        cpu_s, began = cpu_seconds(self.process), time.monotonic()
        samples, is_whole = self.generators.run(Step(concurrency, seconds, warm_up_s))
        if not is_whole:
            raise KeyboardInterrupt
        found = figures(samples)
        cpu_s = (cpu_seconds(self.process) - cpu_s) / (time.monotonic() - began)
        rate = found["throughput_per_s"]
        return {
            "server": self.server.name,
            "form": str(self.server.form),
            "concurrency": concurrency,
            **found,
            "mask_iou_min": self.mask_iou_min,
            "cpu_s_per_item": cpu_s / rate if rate else None,
        }


@dataclass(frozen=True)
class BareLoop:
    """A process of ``bare.py`` that waits to be asked."""

    process: "subprocess.Popen[str]"

    @classmethod
    @contextmanager
    def running(cls, work: str, form: tuple[int, int], arguments: argparse.Namespace) -> "Iterator[BareLoop]":
        """Start the loop in a form, (threads, threads of a run)."""
        threads, intra_op = form
        command = [sys.executable, str(HERE / "bare.py"), "--on-demand", "--work", work, "--threads", str(threads)]
        command += ["--intra-op", str(intra_op), "--seconds", str(arguments.seconds)]
        command += ["--warm-up", str(arguments.warm_up), "--images", str(arguments.images)]
        command += ["--side", str(arguments.side)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield cls(process)  # closing its input, on the way out, ends it

    def measure(self, work: str) -> Row:
        """Let it work for a while."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("once\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        form = found.pop("form")
        name = f"{form['threads']} threads x {form['intra_op']}"
        row = {"server": BARE, "work": work, "concurrency": form["threads"], "form": name, **found}
        show(row)
        return row


def alike(
    best: Mapping[str, Mapping[int, Form]], concurrencies: Sequence[int]
) -> list[tuple[list[int], dict[str, Form]]]:
    """Return the concurrencies at which every server has the same form, and those forms.

    Only these are measured by the same processes: a server in two forms at once would have twice the idle workers.
    """
    groups: dict[tuple[Form, ...], list[int]] = {}
    for concurrency in concurrencies:
        groups.setdefault(tuple(forms[concurrency] for forms in best.values()), []).append(concurrency)
    return [(found, dict(zip(best, forms, strict=True))) for forms, found in groups.items()]


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter that a server runs in; a peer's virtual environment is made if it is not there."""
    requirements = HERE / "requirements" / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    python = folder.absolute() / name / "bin" / "python"
    if not python.exists():
        print(f"making {name}'s virtual environment", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    return python


def expected_masks(pictures: list[Picture]) -> list[Mask]:
    """Return the mask of the first click on each picture, by the bare loop's own work."""
    work = Work()
    work.embed([picture.data for picture in pictures])
    return work.click([Click(digest_of(picture), *picture.points_xy[0]) for picture in pictures])


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


def bench(part: str, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of ``vplab bench`` for one of its parts."""
    folder = arguments.out / part
    what = ["--beside", "precompute"] if part == "beside" else ["--growth", "all"]
    command = [sys.executable, "-m", "vplab.cli.main", "bench", "--out", str(folder), *what]
    command += ["--seconds", str(seconds_of(part, arguments)), "--warm-up", str(arguments.warm_up)]
    command += ["--images", str(arguments.images), "--image-size", str(arguments.side)]
    command += ["--pairs", str(arguments.rounds)] if part == "beside" else []
    code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if code not in (0, 1):
        raise SystemExit(f"vplab bench {what[0]} ended with code {code}")
    rows: list[Row] = json.loads((folder / "bench.json").read_text())[part]
    return rows


def seconds_of(part: str, arguments: argparse.Namespace) -> float:
    """Return how long a step of a part takes: a p95 of few clicks is the worst of them, and five a second are few."""
    return float(arguments.seconds * (3 if part == "beside" else 1))


def show(row: Row) -> None:
    """Print a row as it comes."""
    latency = {key: "-" if value is None else f"{1e3 * value:.1f}" for key, value in row["latency_s"].items()}
    print(
        f"{row['server']:10} {row['work']:6} x{row['concurrency']:<3} {row['throughput_per_s']:7.1f}/s "
        f"p50 {latency['p50']} p99 {latency['p99']} ms, {1e3 * (row['cpu_s_per_item'] or 0):.1f} ms CPU each, "
        f"generator {row['generator']['busiest_share']:.0%} ({row['form']}) {row['errors'] or ''}",
        file=sys.stderr,
        flush=True,
    )


def write_between(path: Path, mark: str, text: str) -> None:
    """Put a text between ``<!-- mark -->`` and ``<!-- end mark -->`` of a file."""
    begin, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{path} has no marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
