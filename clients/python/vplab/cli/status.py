"""``vplab status``: health, served digests, queues and memory of every replica."""

import asyncio
import socket
from dataclasses import dataclass, replace
from typing import Any

import typer
from rich.table import Table

from vplab.cli.connection import Where
from vplab.cli.exit_codes import ExitCode
from vplab.cli.parameters import JsonFile, where_of
from vplab.cli.running import run_async, verb
from vplab.cli.terminal import describe, messages, results, size, write_json
from vplab.client import AsyncClient
from vplab.client.options import AREAS, Area
from vplab.client.replicas import ServerInfo
from vplab.errors import Unavailable, VPLabError

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ReplicaStatus:
    """One server, or why nobody answered there."""

    area: Area
    address: str
    health: str
    """``serving``, ``not_serving`` or ``unreachable``."""
    info: ServerInfo | None
    problem: str = ""
    socket: str = ""
    """``unix:/path`` where it listens besides, if it was started on this machine."""


@verb
def status(context: typer.Context, json_file: JsonFile = None) -> ExitCode:
    """Show whether each service is healthy, which model digests it serves, its queues and its memory.

    A name that stands for several addresses is asked at each of them, so that replicas can be compared.

    Example: vplab status --json status.json
    """
    return run_async(_status(where_of(context), json_file))


async def _status(where: Where, json_file: Any) -> ExitCode:
    addresses, sockets = where.named(), dict[Area, str]()
    if not addresses:
        deployment = where.home.running()
        if deployment is None:
            raise Unavailable(f"nothing is running from {where.home.root}; start the services with: vplab serve")
        addresses, sockets = deployment.addresses, deployment.sockets
    targets = [(area, target) for area in AREAS if area in addresses for target in await _replicas(addresses[area])]
    asked = await asyncio.gather(*(_ask(area, target) for area, target in targets))
    replicas = [replace(replica, socket=sockets.get(replica.area, "")) for replica in asked]
    _show(replicas)
    write_json(json_file, _figures(replicas))
    return ExitCode.OK if all(replica.health == "serving" for replica in replicas) else ExitCode.PARTLY_FAILED


async def _ask(area: Area, address: str) -> ReplicaStatus:
    async with AsyncClient(**{area: address}) as client:  # type: ignore[arg-type]
        replica = client.replica(area)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                health = (await replica.health()).get("", "unknown")
                info = await replica.info()
        except TimeoutError:
            return ReplicaStatus(area, address, "unreachable", None, f"no answer within {_TIMEOUT_S:g} s")
        except VPLabError as error:
            return ReplicaStatus(area, address, "unreachable", None, describe(error))
    return ReplicaStatus(area, address, health, info)


async def _replicas(address: str) -> list[str]:
    """Return every address a name stands for; what is no name is returned as it is."""
    if address.startswith("unix:"):
        return [address]
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return [address]
    hosts = dict.fromkeys(str(entry[4][0]) for entry in found)
    if len(hosts) < 2 or host == "localhost":
        return [address]
    return [f"[{h}]:{port}" if ":" in h else f"{h}:{port}" for h in hosts]


def _show(replicas: list[ReplicaStatus]) -> None:
    table = Table(
        "service", "address", "health", "version", "up", "memory", "queues", "serves", box=None, pad_edge=False
    )
    for replica in replicas:
        style = {"serving": "green", "not_serving": "yellow"}.get(replica.health, "red")
        address = "\n".join(filter(None, (replica.address, replica.socket)))
        table.add_row(replica.area, address, f"[{style}]{replica.health}[/]", *_cells(replica.info))
    results.print(table)
    for replica in replicas:
        if replica.problem:
            messages.print(f"{replica.area} at {replica.address}: {replica.problem}", style="red", markup=False)
    if any(replica.info for replica in replicas):
        results.print(f"memory in all: {size(_memory(replicas))}")


def _cells(info: ServerInfo | None) -> tuple[str, ...]:
    if info is None:
        return ("",) * 5
    queues = ", ".join(f"{q.name} {q.depth}/{q.capacity}" for q in info.queues)
    models = "\n".join(
        f"{m.role}: {m.model.name.removeprefix('artifacts/')} {m.model.digest[:12]}" for m in info.served_models
    )
    return info.software, f"{info.uptime_s:.0f} s", size(info.resident_memory_bytes), queues, models


def _memory(replicas: list[ReplicaStatus]) -> int:
    return sum(replica.info.resident_memory_bytes for replica in replicas if replica.info)


def _figures(replicas: list[ReplicaStatus]) -> dict[str, Any]:
    return {"resident_memory_bytes": _memory(replicas), "replicas": [_replica_figures(r) for r in replicas]}


def _replica_figures(replica: ReplicaStatus) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "service": replica.area,
        "address": replica.address,
        "socket": replica.socket,
        "health": replica.health,
        "problem": replica.problem,
    }
    info = replica.info
    if info is not None:
        figures |= {
            "instance": info.instance,
            "software": info.software,
            "uptime_s": round(info.uptime_s, 3),
            "resident_memory_bytes": info.resident_memory_bytes,
            "is_draining": info.is_draining,
            "queues": [{"name": q.name, "depth": q.depth, "capacity": q.capacity} for q in info.queues],
            "served_models": [
                {
                    "role": m.role,
                    "name": m.model.name,
                    "digest": m.model.digest,
                    "aliases": m.aliases,
                    "device": m.device,
                }
                for m in info.served_models
            ],
        }
    return figures
