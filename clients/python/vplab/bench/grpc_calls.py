"""Unary gRPC calls with bytes that are neither made nor read while the clock runs."""

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from vplab.bench.ports import CallFailed, Connection
from vplab.client.channels import open_channel
from vplab.client.options import MAX_MESSAGE_BYTES, Area, ClientOptions


@dataclass(frozen=True)
class GrpcCalls:
    """One unary method of a server."""

    address: str
    method: str
    """``/package.Service/Method``."""
    area: Area | None = None
    """Which of our services it is, so that calls go through the channel every client of ours opens; None is a plain
    channel to somebody else's."""
    options: ClientOptions | None = None
    """Credentials and the like, for services of ours."""

    async def open(self) -> Connection:
        """Connect."""
        if self.area is None:
            limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
            return _GrpcConnection(grpc.aio.insecure_channel(self.address, options=limits), self.method, ())
        options = self.options or ClientOptions()
        token = options.bearer_token
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return _GrpcConnection(open_channel(self.area, self.address, options), self.method, metadata + options.metadata)


class _GrpcConnection:
    def __init__(self, channel: grpc.aio.Channel, method: str, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._metadata = metadata or None
        # Without (de)serialisers the bytes go through as they are.
        self._call: Any = channel.unary_unary(method, None, None)

    async def send(self, body: bytes, timeout_s: float) -> bytes:
        try:
            answer: bytes = await self._call(body, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name) from None
        return answer

    async def close(self) -> None:
        await self._channel.close(None)
