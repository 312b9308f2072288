"""Moving blobs: in chunks, resumed where they stopped, and verified by sha256 at the end."""

import asyncio
import hashlib
import io
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import IO, Protocol, TypeVar

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.errors import (
    Aborted,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    InvalidInput,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from vplab.wire.names import parse_sha256

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
"""The contract's limit for one chunk."""
_MIN_BYTES_PER_S = 256 << 10
"""A transfer slower than this (2 Mbit/s) has stalled; it sets the default deadline together with the size."""
_SHORT_S = 30.0
_NUM_ATTEMPTS = 5
"""Broken connections in a row, without a byte in between, after which a transfer is given up."""

_PASSING: tuple[type[Exception], ...] = (Unavailable, Aborted, Cancelled)


class Source(Protocol):
    """Bytes to upload, readable from any offset."""

    def open(self) -> IO[bytes]:
        """Open the bytes for reading. Raises InvalidInput."""


class FileSource:
    """A file's bytes."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self._path = path

    def open(self) -> IO[bytes]:
        """Open the file. Raises InvalidInput when it cannot be read."""
        try:
            return self._path.open("rb")
        except OSError as error:
            raise InvalidInput(f"cannot read {self._path}: {error.strerror or error}", field="path") from error


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        """Take the bytes."""
        self._data = data

    def open(self) -> IO[bytes]:
        """Open the bytes."""
        return io.BytesIO(self._data)


async def upload(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, source: Source, timeout_s: float | None
) -> tuple[str, int]:
    """Store a source's bytes and return their sha256 and size."""
    digest, size_bytes = await asyncio.to_thread(_digest_of, source)
    default_s = _deadline_s(size_bytes)

    async def attempt(progress: "_Progress") -> None:
        query = pb.QueryUploadRequest(sha256=digest)
        state = await calls.unary(
            stub.QueryUpload, query, lambda answer: answer, timeout_s=timeout_s, default_s=_SHORT_S
        )
        if state.complete:
            return
        progress.reached(state.committed_bytes)
        header = pb.BlobHeader(sha256=digest, size_bytes=size_bytes, offset_bytes=state.committed_bytes)
        await calls.client_stream(
            stub.UploadBlob,
            _upload_parts(source, header),
            lambda answer: None,
            timeout_s=timeout_s,
            default_s=default_s,
        )

    await _until_done(attempt, timeout_s, retried=(*_PASSING, OutOfRange))
    return digest, size_bytes


async def download(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, sha256: str, path: Path, timeout_s: float | None
) -> Path:
    """Store a blob at ``path``, gathering bytes in a ``.part`` file beside it and continuing one that is there."""
    parse_sha256(sha256, field="sha256")
    part = path.with_name(path.name + ".part")
    try:
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)

        async def attempt(progress: "_Progress") -> None:
            offset = part.stat().st_size if part.exists() else 0
            progress.reached(offset)
            await _append(calls, stub, sha256, part, offset, timeout_s)

        try:
            await _until_done(attempt, timeout_s)
        except OutOfRange:
            part.unlink()  # longer than the blob: it cannot be a beginning of it
            await _until_done(attempt, timeout_s)
        actual = await asyncio.to_thread(digest_file, part)
        if actual != sha256:
            part.unlink()
            raise DataLoss(
                f"blob {sha256[:12]} arrived with other bytes",
                reason="DIGEST_MISMATCH",
                metadata={"expected": sha256, "actual": actual},
            )
        await asyncio.to_thread(publish_file, part, path)
    except OSError as error:
        raise ResourceExhausted(f"cannot write {path}: {error.strerror or error}", reason="STORAGE_FULL") from error
    return path


async def read(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, sha256: str, max_bytes: int, timeout_s: float | None
) -> bytes:
    """Return a blob's verified bytes, from memory to memory."""
    parse_sha256(sha256, field="sha256")
    received = bytearray()

    async def attempt(progress: "_Progress") -> None:
        progress.reached(len(received))
        async with aclosing(_chunks(calls, stub, sha256, len(received), timeout_s)) as chunks:
            async for size_bytes, chunk in chunks:
                if max(size_bytes, len(received) + len(chunk)) > max_bytes:
                    message = f"blob {sha256[:12]} is larger than {max_bytes} bytes"
                    raise ResourceExhausted(message, reason="MESSAGE_TOO_LARGE", metadata={"limit": str(max_bytes)})
                received.extend(chunk)

    await _until_done(attempt, timeout_s)
    actual = hashlib.sha256(received).hexdigest()
    if actual != sha256:
        raise DataLoss(
            f"blob {sha256[:12]} arrived with other bytes",
            reason="DIGEST_MISMATCH",
            metadata={"expected": sha256, "actual": actual},
        )
    return bytes(received)


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(part: Path, path: Path) -> None:
    """Move a finished file to its name so that a crash leaves the old state or the new one, never half a file."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    if os.name != "posix":  # elsewhere a folder cannot be opened, and the rename is as durable as it gets
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Progress:
    """Counts attempts in a row that brought nothing."""

    def __init__(self) -> None:
        self._offset = -1
        self.num_fruitless = 0

    def reached(self, offset: int) -> None:
        if offset > self._offset:
            self.num_fruitless = 0
        self._offset = offset


async def _until_done(
    attempt: Callable[[_Progress], Awaitable[None]],
    timeout_s: float | None,
    retried: tuple[type[Exception], ...] = _PASSING,
) -> None:
    progress = _Progress()
    while True:
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await attempt(progress)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"the transfer did not end within {timeout_s:g} s") from None
        except retried:
            progress.num_fruitless += 1
            if progress.num_fruitless >= _NUM_ATTEMPTS:
                raise
            await asyncio.sleep(random.uniform(0.05, 0.2) * 2**progress.num_fruitless)


async def _upload_parts(source: Source, header: pb.BlobHeader) -> AsyncIterator[pb.UploadBlobRequest]:
    yield pb.UploadBlobRequest(header=header)
    file = await asyncio.to_thread(source.open)
    with file:
        file.seek(header.offset_bytes)
        left = header.size_bytes - header.offset_bytes
        while left:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise InvalidInput("the file became shorter while it was uploaded", field="path")
            left -= len(chunk)
            yield pb.UploadBlobRequest(chunk=chunk)


async def _append(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, sha256: str, part: Path, offset: int, timeout_s: float | None
) -> None:
    with part.open("ab") as file:
        async with aclosing(_chunks(calls, stub, sha256, offset, timeout_s)) as chunks:
            async for _, chunk in chunks:
                await asyncio.to_thread(file.write, chunk)


async def _chunks(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, sha256: str, offset: int, timeout_s: float | None
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield the blob's size (0 where unknown yet) and its pieces from ``offset`` on; ends only at the blob's end."""
    request = pb.DownloadBlobRequest(sha256=sha256, offset_bytes=offset)
    size_bytes = 0
    async with aclosing(
        calls.server_stream(stub.DownloadBlob, request, timeout_s=timeout_s, default_s=3600.0)
    ) as answers:
        async for answer in answers:
            size_bytes = answer.size_bytes or size_bytes
            offset += len(answer.chunk)
            yield size_bytes, answer.chunk
    if offset < size_bytes:
        raise Unavailable(f"the download of blob {sha256[:12]} ended at {offset} of {size_bytes} bytes")


def _digest_of(source: Source) -> tuple[str, int]:
    with source.open() as file:
        try:
            digest = hashlib.sha256()
            size_bytes = 0
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        except OSError as error:
            raise InvalidInput(f"cannot be read: {error.strerror or error}", field="path") from error
    return digest.hexdigest(), size_bytes


def _deadline_s(size_bytes: int) -> float:
    return 60.0 + size_bytes / _MIN_BYTES_PER_S
