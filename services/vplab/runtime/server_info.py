"""RuntimeService: what this process is and which model versions answer requests."""

import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from vplab.api.runtime.v1 import runtime_service_pb2 as pb
from vplab.api.runtime.v1 import runtime_service_pb2_grpc as pb_grpc
from vplab.runtime.device_queue import open_queues

RUNTIME_SERVICE: Final = "vplab.api.runtime.v1.RuntimeService"


@dataclass(frozen=True)
class ServedModel:
    """One version that answers requests now."""

    role: str
    """``segmenter``, ``image_encoder``, ``adapter`` ..."""
    name: str
    """``artifacts/{artifact}/versions/{number}``."""
    digest: str
    """sha256 of the version's manifest, in hex."""
    aliases: tuple[str, ...] = ()
    """Aliases that led to the version."""
    device: str = ""
    """``cpu``, ``cuda:0`` ..."""


class RuntimeServicer(pb_grpc.RuntimeServiceServicer):
    """Answers from memory; ``served_models`` is called for each request and must not block."""

    def __init__(
        self, service: str, served_services: Sequence[str], served_models: Callable[[], Sequence[ServedModel]]
    ) -> None:
        self.is_draining = False
        self._service = service
        self._served_services = sorted(served_services)
        self._served_models = served_models
        self._started = time.monotonic()
        self._start_time = time.time()

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        server = pb.ServerInfo(
            service=self._service,
            instance=instance(),
            software=software(),
            served_services=self._served_services,
            resident_memory_bytes=resident_memory_bytes(),
            is_draining=self.is_draining,
        )
        server.start_time.FromNanoseconds(round(self._start_time * 1e9))
        server.uptime.FromNanoseconds(round((time.monotonic() - self._started) * 1e9))
        for model in sorted(self._served_models(), key=lambda m: (m.role, m.name)):
            served = server.served_models.add(role=model.role, aliases=model.aliases, device=model.device)
            served.model.name, served.model.digest = model.name, model.digest
        for queue in open_queues():
            server.queues.add(name=queue.name, depth=queue.depth, capacity=queue.capacity, running=queue.num_running)
        return pb.GetServerInfoResponse(server=server)


def instance() -> str:
    """Return what tells this process from other replicas: in Kubernetes the host name is the pod's."""
    return f"{socket.gethostname()}/{os.getpid()}"


@cache  # to read the distribution's metadata takes almost a millisecond, and every answer with masks says this
def software() -> str:
    """Return the installed version of VP Lab."""
    try:
        return version("vplab")
    except PackageNotFoundError:
        return "unknown"


def resident_memory_bytes() -> int:
    """Return the resident sets of this process and of those that it started, 0 where the system does not tell."""
    if platform.system() != "Linux":
        return 0
    # A thread lists the children that it started, unless the kernel was built without.
    lists = map(_words, Path("/proc/self/task").glob("*/children"))
    pids = ["self", *(pid for children in lists for pid in children)]
    sizes = (_words(Path("/proc") / pid / "statm") for pid in pids)
    return sum(int(size[1]) for size in sizes if size) * os.sysconf("SC_PAGE_SIZE")


def _words(path: Path) -> list[str]:
    """Return a file's words; none where what it tells of has ended."""
    try:
        return path.read_text().split()
    except OSError:
        return []
