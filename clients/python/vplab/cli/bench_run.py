"""One run of ``vplab bench``: the services, the steps in order, and the report, also of a run that was stopped."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vplab.bench.beside import Bulk, clicks_beside
from vplab.bench.growth import axes_of, grow
from vplab.bench.measuring import Measuring, Row, Stopped
from vplab.bench.names import SECTIONS, WORKS
from vplab.bench.pictures import Picture, make_pictures
from vplab.bench.plot import plot_report
from vplab.bench.site import Site
from vplab.bench.stage_tables import stage_tables
from vplab.bench.tables import notes_of, ratio_beside, tables_of
from vplab.bench.works import Called, Work
from vplab.cli.bench_plan import Plan
from vplab.cli.connection import Where
from vplab.cli.deployment import needed_by
from vplab.cli.home import Home
from vplab.cli.pictures import write_whole
from vplab.cli.terminal import messages, results
from vplab.cli.waiting_client import waiting_client
from vplab.client.options import ClientOptions
from vplab.errors import InvalidInput, NotFound, ResourceExhausted, Unimplemented
from vplab.evaluation.software import describe_software

_NUM_POINTS = 16
_BESIDE_RATE, _NUM_PAIRS = 5.0, 3


class BenchRun:
    """Measures a plan and writes its report."""

    def __init__(self, where: Where, out: Path, plan: Plan) -> None:
        """where: as the command line says. out: folder of the report.

        Raises InvalidInput for pages of metrics where the services are this run's own.
        """
        self._plan = plan
        self._out = out
        self._is_own = not where.named() and not plan.names_of_models
        if self._is_own and plan.metrics_urls:
            message = (
                "goes with the address of a service, such as --segmentation: those of this run's own are read anyway"
            )
            raise InvalidInput(message, field="--metrics")
        self._measured = _measured(where, out, plan, is_own=self._is_own)
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
            "work": {"name": self._plan.work_name, "is": WORKS[self._plan.work_name]},
            "measured": self._measured,
            "settings": asdict(self._plan),
            "is_complete": False,
            **{section: [] for section in SECTIONS},
            **describe_software(),
            "cpu": _cpu_name(),
        }
        self._write("bench.json", json.dumps(report, default=str))  # a folder that cannot be written says so now
        messages.print(f"measuring {self._measured}", markup=False)
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
            if self._plan.prompt_set:
                site.called = site.with_segmenter_of(self._plan.prompt_set)
            try:
                yield site
            finally:
                for name in site.close():
                    messages.print(f"{name} could not be deleted", style="yellow", markup=False)

    def _sections(self, site: Site, measuring: Measuring) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
        plan = self._plan
        with messages.status("generating images"):
            pictures = make_pictures(plan.num_images, plan.side_px, _NUM_POINTS, plan.seed)
        # All that an option names is looked up before the first call is measured, so that an error costs nothing.
        adapters = self._adapters(site)
        clicks = self._clicks(site, pictures, adapters) if plan.beside else None
        prompt_set = plan.prompt_set or (self._made_prompt_set(site) if plan.publishes_prompt_set else "")
        if plan.concurrency or plan.rates:
            work = self._work(site, pictures, adapters, prompt_set)
            if plan.concurrency:
                yield "sweep", lambda: _steps(measuring, work, measuring.closed, plan.concurrency)
            if plan.rates:
                yield "arrivals", lambda: _steps(measuring, work, measuring.arriving, plan.rates)
        if plan.beside is not None and clicks is not None:
            bulk = Bulk(plan.beside, site, pictures, measuring, prompt_set, adapters)
            rate, num_pairs = plan.beside_rate or _BESIDE_RATE, plan.num_pairs or _NUM_PAIRS
            yield "beside", lambda: clicks_beside(measuring, clicks, bulk, rate, num_pairs)
        if plan.growth:
            yield "growth", lambda: self._growth(site, measuring)

    def _adapters(self, site: Site) -> list[str]:
        """Return the adapters that calls name, loaded; raises NotFound for one that is not there."""
        plan = self._plan
        if plan.adapters is None:
            return [""]
        with messages.status("loading adapters"):
            adapters = site.some_adapters(plan.num_adapters) if plan.num_adapters else list(plan.adapter_names)
            try:
                site.load(adapters)
            except NotFound as error:
                raise NotFound(f"--adapters: {error.message}") from error
        return adapters

    def _clicks(self, site: Site, pictures: list[Picture], adapters: list[str]) -> Work:
        """Return clicks on images that are embedded."""
        with messages.status("embedding images"):
            digests = site.digests(pictures)
        return site.called.clicks(pictures, digests, adapters, self._plan.objects_of_click, self._plan.seed)

    def _work(self, site: Site, pictures: list[Picture], adapters: list[str], prompt_set: str) -> Work:
        plan = self._plan
        if plan.work_name == "embed":
            return site.called.embeddings(pictures)
        if plan.work_name == "segment":
            return site.called.segmentations(pictures, prompt_set, adapters)
        if plan.work_name == "click":
            return self._clicks(site, pictures, adapters)
        return site.called.clicks(pictures, None, adapters, plan.objects_of_click, plan.seed)

    def _made_prompt_set(self, site: Site) -> str:
        return site.prompt_set(make_pictures(1, self._plan.side_px, 1, self._plan.seed + 1))

    def _growth(self, site: Site, measuring: Measuring) -> Iterator[Row]:
        for name, axis in axes_of(site, self._plan.growth, self._plan.num_images, self._plan.side_px):
            yield from grow(measuring, name, axis)

    def _report(self, report: dict[str, Any]) -> None:
        report["p95_beside_ratio"] = ratio_beside(report["beside"])
        tables, notes = tables_of(report), notes_of(report)
        made = f"{report['cpu']}, {report['machine']}, commit {report['commit']}; measured: {self._measured}"
        title = WORKS[self._plan.work_name].capitalize()
        text = "\n\n".join([f"{title}.", *tables, *stage_tables(report), *notes, made])
        self._write("bench.json", json.dumps(report, indent=1, default=str) + "\n")
        self._write("bench.md", text + "\n")
        if any(report[section] for section in SECTIONS):
            try:
                self._write("bench.png", plot_report(report, title))
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


def _measured(where: Where, out: Path, plan: Plan, *, is_own: bool) -> str:
    """Return which services are measured, and why it is those."""
    if is_own:
        return f"services of its own, below {out / 'services'}"
    if where.named():
        return "the services at " + ", ".join(sorted(set(where.named().values())))
    return f"the services of {where.home.root}: {' and '.join(plan.names_of_models)} names what only they may have"


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
