"""``vplab serve``: all services, or the named ones, until told to stop."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vplab.cli.connection import deployed
from vplab.cli.deployment import LocalDeployment
from vplab.cli.exit_codes import ExitCode
from vplab.cli.home import Home
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import messages, results, write_json
from vplab.client.file_locks import FileLock
from vplab.client.options import AREAS, Area
from vplab.errors import FailedPrecondition, InvalidInput

PORT_BASE = 7301
METRICS_OFFSET = 10
"""Metrics of a service are ten ports above the service: 7311 to 7314."""


@verb
def serve(
    context: typer.Context,
    services: Annotated[
        list[str] | None, typer.Argument(help="registry, embedding, segmentation, training; all if none is named.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Interface to listen on. Without tokens or client certificates whoever connects may do all."),
    ] = "127.0.0.1",
    port_base: Annotated[
        int, typer.Option(min=1, max=65_000, help="Port of the registry; the others follow.")
    ] = PORT_BASE,
    uds: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Listen on unix sockets in this folder instead of ports.")
    ] = None,
    metrics: Annotated[
        bool, typer.Option(help=f"Prometheus metrics, each {METRICS_OFFSET} ports above its service.")
    ] = True,
    logs: Annotated[
        bool | None,
        typer.Option("--logs/--log-files", help="Log to the terminal, or to files (the default for all services)."),
    ] = None,
    json_file: JsonFile = None,
) -> ExitCode | None:
    """Start the services and keep them running; Ctrl-C or SIGTERM drains and stops them.

    A service that dies is started again; one that dies five times within a minute stops everything, with its log shown.

    Example: vplab serve --port-base 7301
    """
    areas = _areas(services or [])
    where = where_of(context)
    addresses = {area: _address(area, host, port_base, uds) for area in areas}
    known = {area: _address(area, host, port_base, uds) for area in AREAS} | where.named()
    folder = None if uds is not None or _uses_tls() else Path(tempfile.mkdtemp(prefix="vplab-"))
    deployment = LocalDeployment(
        home=where.home,
        addresses=addresses,
        sockets={} if folder is None else {area: f"unix:{folder / area}.sock" for area in areas},
        others={area: known[area] for area in AREAS if area not in areas},
        metrics_ports={area: port_base + METRICS_OFFSET + AREAS.index(area) for area in areas} if metrics else {},
        metrics_host=host if metrics and uds is None else None,
        logs_to_terminal=len(areas) < len(AREAS) if logs is None else logs,
        on_restart=lambda message: messages.print(message, style="yellow", markup=False),
    )
    try:
        return run_async(_serve(deployment, json_file, is_whole=len(areas) == len(AREAS)))
    except KeyboardInterrupt:
        return ExitCode.OK  # being told to stop is how serving ends
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


async def _serve(deployment: LocalDeployment, json_file: Path | None, *, is_whole: bool) -> None:
    deployment.home.create()
    with FileLock(deployment.home.deployment_lock) as lock:
        # Services that are started one by one share a home on purpose.
        if is_whole and not lock.try_acquire(exclusive=True):
            raise _taken(deployment.home)
        async with deployed(deployment) as started_s:
            _show(deployment, started_s)
            write_json(
                json_file,
                {
                    "healthy_after_s": round(started_s, 3),
                    "home": str(deployment.home.root),
                    "services": {
                        area: {
                            "address": address,
                            "socket": deployment.sockets.get(area),
                            "metrics_port": deployment.metrics_ports.get(area),
                            "pid": deployment.pids()[area],
                        }
                        for area, address in deployment.addresses.items()
                    },
                },
            )
            try:
                await deployment.watch()
            finally:
                messages.print("stopping", style="dim")


def _show(deployment: LocalDeployment, started_s: float) -> None:
    table = Table("service", "address", "metrics", "log", box=None, pad_edge=False)
    for area, address in deployment.addresses.items():
        port = deployment.metrics_ports.get(area)
        log = "this terminal" if deployment.logs_to_terminal else str(deployment.home.logs / f"{area}.log")
        table.add_row(area, address, f"http://{deployment.metrics_host or '127.0.0.1'}:{port}" if port else "", log)
    results.print(table)
    for area, address in deployment.addresses.items():
        results.print(f"export VPLAB_{area.upper()}_ADDRESS={address}", style="dim")
    messages.print(f"healthy after {started_s:.1f} s; data is in {deployment.home.root}; Ctrl-C stops", style="green")


def _uses_tls() -> bool:
    """Say whether certificates are set: they name hosts, so callers then keep to host and port."""
    return any(re.fullmatch(r"VPLAB_(\w+_)?TLS_\w+", name) and value for name, value in os.environ.items())


def _areas(names: list[str]) -> tuple[Area, ...]:
    for name in names:
        if name not in AREAS:
            raise InvalidInput(f"{name!r} is none of {', '.join(AREAS)}", field="services")
    return tuple(area for area in AREAS if not names or area in names)


def _address(area: Area, host: str, port_base: int, uds: Path | None) -> str:
    if uds is not None:
        uds.mkdir(parents=True, exist_ok=True)
        return f"unix:{uds.absolute() / area}.sock"
    return f"{host}:{port_base + AREAS.index(area)}"


def _taken(home: Home) -> FailedPrecondition:
    running = home.running()
    who = f"process {running.pid}" if running else "another vplab command"
    return FailedPrecondition(f"{who} already serves from {home.root}: stop it, or choose another --home")
