"""``grpc.health.v1`` for one server: Check, Watch and List.

The package's own servicer holds a lock while it writes to a watcher, so one watcher that does not read would hold up
every change of state, the drain's among them; and it has no List. Remove this when both are mended.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from vplab.errors import NotFound

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers for the names it was made with; ``""`` stands for the whole server."""

    def __init__(self, names: Iterable[str]) -> None:
        self._is_serving = dict.fromkeys(["", *names], False)
        self._changed = asyncio.Event()
        self._is_draining = False

    def set_serving(self, *names: str) -> None:
        """Report the named services as serving; has no effect once the server drains."""
        if not self._is_draining:
            self._is_serving |= dict.fromkeys(names, True)
            self._tell()

    def set_not_serving(self, *names: str) -> None:
        """Report the named services as not serving."""
        self._is_serving |= dict.fromkeys(names, False)
        self._tell()

    def drain(self) -> None:
        """Report every service as not serving, for good."""
        self._is_draining = True
        self.set_not_serving(*self._is_serving)

    def is_serving(self, name: str = "") -> bool:
        """Say what Check would."""
        return self._is_serving[name]

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._is_serving:
            raise NotFound(f"no service {request.service!r} on this server", metadata={"name": request.service})
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, request: Any, context: Any) -> Any:
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._is_serving}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._is_serving:
            return int(_UNKNOWN)
        return int(_SERVING if self._is_serving[name] else _NOT_SERVING)

    def _tell(self) -> None:
        # Each change wakes those who wait and gives later ones a fresh event, so no watcher can hold up another.
        self._changed.set()
        self._changed = asyncio.Event()
