"""gRPC calls with bytes that are neither made nor read while the clock runs."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from vplab.bench.ports import CallFailed, Connection
from vplab.client.channels import open_channel
from vplab.client.options import MAX_MESSAGE_BYTES, Area, ClientOptions

_LENGTH_BYTES = 4


@dataclass(frozen=True)
class GrpcCalls:
    """One method of a server."""

    address: str
    method: str
    """``/package.Service/Method``."""
    area: Area | None = None
    """Which of our services it is, so that calls go through the channel every client of ours opens; None is a plain
    channel to somebody else's."""
    options: ClientOptions | None = None
    """Credentials and the like, for services of ours."""
    is_stream: bool = False
    """Whether a body is a stream of messages, as ``stream_body`` makes it, with an answer to each."""

    async def open(self) -> Connection:
        """Connect."""
        if self.area is None:
            limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
            return _GrpcConnection(grpc.aio.insecure_channel(self.address, options=limits), self, ())
        options = self.options or ClientOptions()
        token = options.bearer_token
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return _GrpcConnection(open_channel(self.area, self.address, options), self, metadata + options.metadata)


class _GrpcConnection:
    def __init__(self, channel: grpc.aio.Channel, calls: GrpcCalls, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._is_stream = calls.is_stream
        self._metadata = metadata or None
        # Without (de)serialisers the bytes go through as they are.
        make = channel.stream_stream if calls.is_stream else channel.unary_unary
        self._call: Any = make(calls.method, None, None)

    async def send(self, body: bytes, timeout_s: float) -> bytes:
        try:
            if self._is_stream:
                return await self._send_all(body, timeout_s)
            answer: bytes = await self._call(body, timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name) from None
        return answer

    async def close(self) -> None:
        await self._channel.close(None)

    async def _send_all(self, body: bytes, timeout_s: float) -> bytes:
        messages = split_stream(body)

        async def requests() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        answers = [answer async for answer in self._call(requests(), timeout=timeout_s, metadata=self._metadata)]
        if len(answers) != len(messages):
            raise CallFailed("ANSWERS_MISSING")
        return stream_body(answers)


def stream_body(messages: Sequence[bytes]) -> bytes:
    """Return messages as one body, each after its length."""
    return b"".join(len(message).to_bytes(_LENGTH_BYTES, "big") + message for message in messages)


def split_stream(body: bytes) -> list[bytes]:
    """Undo ``stream_body``."""
    messages, start = [], 0
    while start < len(body):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(body[start:begin], "big")
        messages.append(body[begin:start])
    return messages
