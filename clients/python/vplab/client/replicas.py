"""What one server process says about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from grpc_health.v1 import health_pb2, health_pb2_grpc

from vplab.api.runtime.v1 import runtime_service_pb2 as pb
from vplab.api.runtime.v1 import runtime_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.client.models import ModelReference, model_reference
from vplab.client.times import time_of

_SHORT_S = 5.0


@dataclass(frozen=True)
class ServedModel:
    """One version that answers requests."""

    role: str
    model: ModelReference
    aliases: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class QueueState:
    """The queue in front of one device."""

    name: str
    depth: int
    """Items that wait."""
    capacity: int
    """Items that may wait before new ones are refused."""
    running: int
    """Items on the device."""


@dataclass(frozen=True)
class ServerInfo:
    """One server process."""

    service: str
    instance: str
    software: str
    start_time: datetime | None
    uptime_s: float
    served_services: tuple[str, ...]
    served_models: tuple[ServedModel, ...]
    queues: tuple[QueueState, ...]
    resident_memory_bytes: int
    is_draining: bool


class AsyncReplica:
    """Health and self-description of the server behind one channel."""

    def __init__(self, calls: Calls, stub: pb_grpc.RuntimeServiceStub, health_stub: health_pb2_grpc.HealthStub) -> None:
        """Take the calls and the stubs of one channel; ``AsyncClient.replica`` makes it."""
        self._calls = calls
        self._stub = stub
        self._health_stub = health_stub

    async def info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Return what the process says about itself: served digests, queues, memory."""
        return await self._calls.unary(
            self._stub.GetServerInfo,
            pb.GetServerInfoRequest(),
            lambda answer: server_info(answer.server),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def health(self, *, timeout_s: float | None = None) -> Mapping[str, str]:
        """Return the health of each gRPC service on the server: ``serving``, ``not_serving`` or ``unknown``."""
        return await self._calls.unary(
            self._health_stub.List,
            health_pb2.HealthListRequest(),
            lambda answer: {
                name: health_pb2.HealthCheckResponse.ServingStatus.Name(status.status).lower()
                for name, status in answer.statuses.items()
            },
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )


def server_info(message: pb.ServerInfo) -> ServerInfo:
    """Return the value of a server's description."""
    return ServerInfo(
        service=message.service,
        instance=message.instance,
        software=message.software,
        start_time=time_of(message, "start_time"),
        uptime_s=message.uptime.ToNanoseconds() / 1e9,
        served_services=tuple(message.served_services),
        served_models=tuple(
            ServedModel(m.role, model_reference(m.model), tuple(m.aliases), m.device) for m in message.served_models
        ),
        queues=tuple(QueueState(q.name, q.depth, q.capacity, q.running) for q in message.queues),
        resident_memory_bytes=message.resident_memory_bytes,
        is_draining=message.is_draining,
    )
