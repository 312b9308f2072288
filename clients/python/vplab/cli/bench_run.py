"""One run of ``vplab bench``: the services, the steps in order, and the report, also of a run that was stopped."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vplab.bench.beside import Bulk, clicks_beside
from vplab.bench.growth import axes_of, grow
from vplab.bench.measuring import Measuring, Row, Stopped
from vplab.bench.names import SECTIONS, WORKS, AxisName, BulkName, WorkName
from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.plot import plot_rows
from vplab.bench.site import Site
from vplab.bench.tables import notes_of, ratio_beside, stage_table, tables_of
from vplab.bench.works import AREA_OF, Called, Work
from vplab.cli.connection import Where
from vplab.cli.deployment import needed_by
from vplab.cli.home import Home
from vplab.cli.pictures import write_whole
from vplab.cli.terminal import messages, results
from vplab.cli.waiting_client import waiting_client
from vplab.client.options import Area, ClientOptions
from vplab.errors import InvalidInput, ResourceExhausted, Unimplemented
from vplab.evaluation.software import describe_software

_NUM_POINTS = 16


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    work: WorkName
    concurrency: tuple[int, ...]
    rates: tuple[float, ...]
    beside: BulkName | None
    growth: tuple[AxisName, ...]
    adapters: str | None
    num_objects: int
    segmenter: str
    encoder: str
    prompt_set: str
    seconds: float
    warm_up_s: float
    timeout_s: float
    num_images: int
    side_px: int
    beside_rate: float
    num_pairs: int
    num_processes: int | None
    metrics_urls: tuple[str, ...]
    seed: int

    def check(self) -> None:
        """Raise InvalidInput for options that contradict each other."""
        if self.adapters is not None and self.work == "embed":
            raise InvalidInput("an embedding does not depend on adapters", field="--adapters")
        if self.num_objects > 1 and not self.work.startswith("click"):
            raise InvalidInput("only clicks have objects", field="--objects")
        if self.prompt_set and self.work != "segment":
            raise InvalidInput("goes with --work segment", field="--prompt-set")

    @property
    def names_models(self) -> bool:
        """Whether anything was named that only the user's own services have."""
        names_adapters = self.adapters is not None and not self.adapters.isdecimal()
        return bool(self.segmenter or self.encoder or self.prompt_set or names_adapters)

    def needs(self) -> list[Area]:
        """Return the services that calls and preparation go to."""
        needs: set[Area] = set()
        if self.concurrency or self.rates:
            needs.add(AREA_OF[self.work])
        publishes = self.work == "segment" and not self.prompt_set
        if publishes or (self.adapters or "").isdecimal() or {"adapters", "references"} & set(self.growth):
            needs |= {"registry", "segmentation"}
        if self.beside:
            needs |= {"embedding", "segmentation"}
            if self.beside == "precompute":
                needs.add("registry")
        if self.growth:
            needs.add("segmentation")
        if {"images", "embed-size"} & set(self.growth):
            needs.add("embedding")
        return sorted(needs)


class BenchRun:
    """Measures a plan and writes its report."""

    def __init__(self, where: Where, out: Path, plan: Plan) -> None:
        """where: as the command line says. out: folder of the report."""
        self._plan = plan
        self._out = out
        self._is_own = not where.named() and not plan.names_models
        needs = plan.needs()
        if self._is_own:
            ports = dict(zip(needed_by(needs), _free_ports(), strict=False))
            where = replace(where, home=Home((out / "services").absolute()), metrics_ports=ports)
            urls: dict[str, str] = {area: f"http://127.0.0.1:{port}/metrics" for area, port in ports.items()}
        else:
            urls = {url: url for url in plan.metrics_urls}
        self._metrics_urls = urls
        self._where, self._needs = where, needs

    def run(self) -> dict[str, Any]:
        """Measure; write and return the report."""
        began = time.monotonic()
        report: dict[str, Any] = {
            "work": {"name": self._plan.work, "is": WORKS[self._plan.work]},
            "settings": asdict(self._plan),
            "is_complete": False,
            **{section: [] for section in SECTIONS},
            **describe_software(),
            "cpu": _cpu_name(),
        }
        self._write("bench.json", json.dumps(report, default=str))  # a folder that cannot be written says so now
        try:
            self._measure(report)
            report["is_complete"] = True
        except KeyboardInterrupt:
            messages.print("stopped; what was measured is kept", style="yellow")
        finally:
            report["wall_s"] = round(time.monotonic() - began, 1)
            self._report(report)
        if self._is_own:
            shutil.rmtree(self._out / "services", ignore_errors=True)
        return report

    def _measure(self, report: dict[str, Any]) -> None:
        plan = self._plan
        measuring = Measuring(
            plan.num_processes, self._metrics_urls, plan.warm_up_s, plan.seconds, plan.timeout_s, plan.seed
        )
        with self._site() as site:
            try:
                for section, steps in self._sections(site, measuring):
                    self._take(report, section, steps)
            finally:
                report["services"] = site.software()  # now that the models are loaded

    def _take(self, report: dict[str, Any], section: str, steps: Callable[[], Iterator[Row]]) -> None:
        try:
            for row in steps():
                report[section].append(row)
                messages.print(_line(section, row), style="dim", markup=False)
        except Stopped as stopped:
            if stopped.row.get("num_calls"):
                report[section].append({**stopped.row, "is_cut": True})
            raise KeyboardInterrupt from None

    @contextmanager
    def _site(self) -> Iterator[Site]:
        with waiting_client(self._where, self._needs) as client:
            called = Called(
                dict(client.addresses), ClientOptions.from_environment(), self._plan.segmenter, self._plan.encoder
            )
            site = Site(client, called, is_own=self._is_own)
            if "embedding" in self._needs:
                site.called = site.with_encoder()
            try:
                yield site
            finally:
                for name in site.close():
                    messages.print(f"{name} could not be deleted", style="yellow", markup=False)

    def _sections(self, site: Site, measuring: Measuring) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
        plan = self._plan
        with messages.status("generating images"):
            pictures = make_pictures(plan.num_images, plan.side_px, _NUM_POINTS, plan.seed)
        if plan.concurrency or plan.rates:
            work = self._work(site, pictures)
            if plan.concurrency:
                yield "sweep", lambda: _steps(measuring, work, measuring.closed, plan.concurrency)
            if plan.rates:
                yield "arrivals", lambda: _steps(measuring, work, measuring.arriving, plan.rates)
        if plan.beside is not None:
            clicks = site.called.clicks(pictures, site.digests(pictures), num_objects=plan.num_objects, seed=plan.seed)
            bulk = Bulk(plan.beside, site, pictures, measuring)
            yield "beside", lambda: clicks_beside(measuring, clicks, bulk, plan.beside_rate, plan.num_pairs)
        if plan.growth:
            yield "growth", lambda: self._growth(site, measuring)

    def _work(self, site: Site, pictures: list[Picture]) -> Work:
        plan = self._plan
        if plan.work == "embed":
            return site.called.embeddings(pictures)
        adapters = site.adapters(plan.adapters) if plan.adapters else [""]
        with messages.status("embedding images and loading adapters"):
            digests = site.digests(pictures, adapters)
        if plan.work == "segment":
            prompt_set = plan.prompt_set or site.prompt_set(make_pictures(1, plan.side_px, 1, plan.seed + 1))
            return site.called.segmentations(pictures, prompt_set, adapters)
        known = digests if plan.work == "click" else None
        return site.called.clicks(pictures, known, adapters, plan.num_objects, plan.seed)

    def _growth(self, site: Site, measuring: Measuring) -> Iterator[Row]:
        for name, axis in axes_of(site, self._plan.growth, self._plan.num_images, self._plan.side_px):
            yield from grow(measuring, name, axis)

    def _report(self, report: dict[str, Any]) -> None:
        report["p95_beside_ratio"] = ratio_beside(report["beside"])
        tables, notes = tables_of(report), notes_of(report)
        stages = [stage_table(report[section][-1]) for section in SECTIONS if report[section] and self._metrics_urls]
        made = f"{report['cpu']}, {report['machine']}, commit {report['commit']}"
        text = "\n\n".join([WORKS[self._plan.work].capitalize() + ".", *tables, *stages, *notes, made])
        self._write("bench.json", json.dumps(report, indent=1, default=str) + "\n")
        self._write("bench.md", text + "\n")
        drawn = {section: report[section] for section in ("sweep", "arrivals") if report[section]}
        if drawn:
            keys = {"sweep": "num_callers", "arrivals": "rate_per_s"}
            try:
                self._write("bench.png", plot_rows(drawn, keys, WORKS[self._plan.work]))
            except Unimplemented as error:
                messages.print(error.message, style="yellow", markup=False)
        for table in tables:
            results.print(table, markup=False)
        for note in notes:
            messages.print(note, style="yellow", markup=False)
        results.print(f"written to {self._out}", markup=False)

    def _write(self, name: str, content: str | bytes) -> None:
        try:
            write_whole(self._out / name, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            message = f"cannot write {self._out / name}: {error.strerror or error}"
            raise ResourceExhausted(message, reason="STORAGE_FULL") from error


def _steps(measuring: Measuring, work: Work, step: Callable[[Any], Row], values: tuple[Any, ...]) -> Iterator[Row]:
    with measuring.calling(work):
        for value in values:
            yield step(value)


def _line(section: str, row: Mapping[str, Any]) -> str:
    known = {"sweep": "num_callers", "arrivals": "rate_per_s", "beside": "is_busy", "growth": "value"}[section]
    p50, p95 = (row["latency_s"][name] for name in ("p50", "p95"))
    latency = "no answer" if p50 is None else f"p50 {1e3 * p50:.1f} ms, p95 {1e3 * p95:.1f} ms"
    errors = f", {row['errors']}" if row["errors"] else ""
    what = row.get("what", section)
    return f"{what} {row[known]:g}: {row['throughput_per_s']:.1f} per second, {latency}{errors}"


def _free_ports() -> Iterator[int]:
    for _ in range(8):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield int(probe.getsockname()[1])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )
