"""A server with one method of each gRPC kind, whose behaviour a test chooses, and the calls to them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from vplab.api.embedding.v1 import embedding_service_pb2 as embedding
from vplab.api.embedding.v1 import embedding_service_pb2_grpc as embedding_grpc
from vplab.api.registry.v1 import registry_service_pb2 as registry
from vplab.api.registry.v1 import registry_service_pb2_grpc as registry_grpc
from vplab.client.first_status import FirstStatus
from vplab.errors import VPLabError
from vplab.runtime.server import Registration, running_server
from vplab.runtime.settings import ServerSettings
from vplab.wire.status import error_from_call

REGISTRY = "vplab.api.registry.v1.RegistryService"
EMBEDDING = "vplab.api.embedding.v1.EmbeddingService"
KINDS = ("unary", "client_stream", "server_stream", "bidi_stream")
METHODS = {
    "unary": (REGISTRY, "QueryUpload"),
    "client_stream": (REGISTRY, "UploadBlob"),
    "server_stream": (REGISTRY, "DownloadBlob"),
    "bidi_stream": (EMBEDDING, "EmbedImages"),
}


async def _nothing() -> None:
    return


class FourKinds:
    """Each method sends or reads its messages and awaits ``behave`` in the middle; streams answer twice around it."""

    def __init__(self, behave: Callable[[], Awaitable[None]] = _nothing) -> None:
        self.behave = behave
        self.answer = b"chunk"

    @property
    def registrations(self) -> list[Registration]:
        return [
            Registration(
                REGISTRY, lambda s: registry_grpc.add_RegistryServiceServicer_to_server(_RegistryServicer(self), s)
            ),
            Registration(
                EMBEDDING, lambda s: embedding_grpc.add_EmbeddingServiceServicer_to_server(_EmbeddingServicer(self), s)
            ),
        ]


class _RegistryServicer(registry_grpc.RegistryServiceServicer):
    def __init__(self, script: FourKinds) -> None:
        self._script = script

    async def QueryUpload(self, request, context):
        await self._script.behave()
        return registry.QueryUploadResponse(committed_bytes=len(self._script.answer))

    async def GetVersion(self, request, context):
        return registry.GetVersionResponse(version=registry.Version(name=self._script.answer.decode()))

    async def UploadBlob(self, requests, context):
        size_bytes = 0
        async for request in requests:
            size_bytes += len(request.chunk)
        await self._script.behave()
        return registry.UploadBlobResponse(size_bytes=size_bytes)

    async def DownloadBlob(self, request, context):
        yield registry.DownloadBlobResponse(chunk=self._script.answer)
        await self._script.behave()
        yield registry.DownloadBlobResponse(chunk=self._script.answer)

    async def WatchAliases(self, request, context):
        yield registry.WatchAliasesResponse()
        await self._script.behave()


class _EmbeddingServicer(embedding_grpc.EmbeddingServiceServicer):
    def __init__(self, script: FourKinds) -> None:
        self._script = script

    async def EmbedImages(self, requests, context):
        async for request in requests:
            yield embedding.EmbedImagesResponse(item_id=request.item_id)
            await self._script.behave()


@asynccontextmanager
async def open_channel(registrations: Sequence[Registration], **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Serve with these settings and yield a plain channel to the server."""
    async with (
        running_server(registrations, ServerSettings(**settings)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield channel


def begin(kind: str, channel: grpc.aio.Channel, **options: Any) -> Any:
    """Start a call of that kind; the streams of requests have two messages and end."""
    registry_stub = registry_grpc.RegistryServiceStub(channel)
    if kind == "unary":
        return registry_stub.QueryUpload(registry.QueryUploadRequest(), **options)
    if kind == "client_stream":
        return registry_stub.UploadBlob([registry.UploadBlobRequest(chunk=b"x")] * 2, **options)
    if kind == "server_stream":
        return registry_stub.DownloadBlob(registry.DownloadBlobRequest(), **options)
    requests = [embedding.EmbedImagesRequest(item_id=str(i)) for i in range(2)]
    return embedding_grpc.EmbeddingServiceStub(channel).EmbedImages(requests, **options)


async def finish(call: Any) -> Sequence[Any]:
    """Return the responses of a call. Raises what a client of ours would."""
    told = FirstStatus(call)
    try:
        if isinstance(call, grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall):
            return [await call]
        responses = []
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        return responses
    except grpc.aio.AioRpcError as replaced:
        error = told.error or replaced
        raise error_from_call(error.code(), error.details(), error.trailing_metadata()) from error


async def failure(call: Any) -> VPLabError:
    """Return the error a call ends with."""
    try:
        responses = await finish(call)
    except VPLabError as error:
        return error
    raise AssertionError(f"the call ended well: {responses}")
