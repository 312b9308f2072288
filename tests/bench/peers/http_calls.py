"""POST calls over HTTP/1.1 with connections that are kept, as cheap as the gRPC ones: bytes out, bytes in."""

import asyncio
from dataclasses import dataclass

from vplab.bench.ports import CallFailed, Connection

_Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class HttpCalls:
    """One route of a server on this machine."""

    port: int
    path: str
    content_type: str

    async def open(self) -> Connection:
        """Return a pool; each call takes a connection of its own, opened when all others are in use."""
        return _HttpConnections(self)


class _HttpConnections:
    def __init__(self, calls: HttpCalls) -> None:
        self._calls = calls
        self._head = (
            f"POST {calls.path} HTTP/1.1\r\nHost: 127.0.0.1:{calls.port}\r\n"
            f"Content-Type: {calls.content_type}\r\nContent-Length: "
        ).encode()
        self._idle: list[_Pair] = []

    async def send(self, body: bytes, timeout_s: float) -> bytes:
        pair: _Pair | None = None
        try:
            async with asyncio.timeout(timeout_s):
                pair = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._calls.port)
                reader, writer = pair
                writer.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
                await writer.drain()
                status, answer, is_kept = await _read_answer(reader)
        except TimeoutError:
            _close(pair)
            raise CallFailed("DEADLINE_EXCEEDED") from None
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            _close(pair)
            raise CallFailed(type(error).__name__) from error
        except asyncio.CancelledError:
            _close(pair)
            raise
        if is_kept:
            self._idle.append(pair)
        else:
            _close(pair)
        if status != 200:
            raise CallFailed(f"HTTP_{status}")
        return answer

    async def close(self) -> None:
        for pair in self._idle:
            _close(pair)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Return status, body, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        chunks = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        body = b"".join(chunks)
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return status, body, headers.get("connection", "").lower() != "close"


def _close(pair: _Pair | None) -> None:
    if pair is not None:
        pair[1].close()
