"""The registry's RPCs: check and convert, call the use case off the loop, convert back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.errors import InvalidInput
from vplab.registry import convert
from vplab.registry.alias_feed import AliasFeed
from vplab.registry.core.aliases import require_revision
from vplab.registry.core.blobs import Upload
from vplab.registry.core.registry import Registry
from vplab.registry.offload import Offload
from vplab.wire import names


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    """Implements ``vplab.api.registry.v1.RegistryService``."""

    def __init__(self, registry: Registry, feed: AliasFeed, catalog_work: Offload, blob_work: Offload) -> None:
        self._registry = registry
        self._feed = feed
        self._catalog_work = catalog_work
        self._blob_work = blob_work

    async def CreateArtifact(self, request: pb.CreateArtifactRequest, context: Any) -> pb.CreateArtifactResponse:
        artifact = await self._catalog_work(
            self._registry.artifacts.create,
            names.parse_artifact_id(request.artifact_id, field="artifact_id"),
            convert.kind(request.artifact.kind, "artifact.kind"),
            display_name=request.artifact.display_name,
            description=request.artifact.description,
            labels=dict(request.artifact.labels),
            request_id=convert.request_id(request.request_id),
        )
        return pb.CreateArtifactResponse(artifact=convert.artifact_message(artifact))

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> pb.GetArtifactResponse:
        artifact = await self._catalog_work(self._registry.artifacts.get, convert.artifact_id(request.name))
        return pb.GetArtifactResponse(artifact=convert.artifact_message(artifact))

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        page = await self._catalog_work(
            self._registry.artifacts.page,
            convert.page_request(request),
            convert.kind_filter(request.kind, "kind"),
            dict(request.labels),
            request.show_deleted,
        )
        artifacts = [convert.artifact_message(artifact) for artifact in page.items]
        return pb.ListArtifactsResponse(artifacts=artifacts, next_page_token=page.next_token)

    async def DeleteArtifact(self, request: pb.DeleteArtifactRequest, context: Any) -> pb.DeleteArtifactResponse:
        artifact_id = convert.artifact_id(request.name)
        artifact = await self._catalog_work(self._registry.artifacts.delete, artifact_id, request.etag)
        self._feed.ask()
        return pb.DeleteArtifactResponse(artifact=convert.artifact_message(artifact))

    async def UndeleteArtifact(self, request: pb.UndeleteArtifactRequest, context: Any) -> pb.UndeleteArtifactResponse:
        artifact = await self._catalog_work(self._registry.artifacts.undelete, convert.artifact_id(request.name))
        self._feed.ask()
        return pb.UndeleteArtifactResponse(artifact=convert.artifact_message(artifact))

    async def UploadBlob(self, requests: AsyncIterator[pb.UploadBlobRequest], context: Any) -> pb.UploadBlobResponse:
        header = await _header(requests)
        upload = await self._begin_upload(header)
        response = pb.UploadBlobResponse(sha256=header.sha256, size_bytes=header.size_bytes)
        if upload is None:
            response.already_existed = True
            return response
        try:
            async for request in requests:
                if request.WhichOneof("part") != "chunk":
                    raise InvalidInput("must be a chunk: only the first message is the header", field="part")
                await self._blob_work(upload.write, request.chunk)
            await self._blob_work(upload.finish)
        finally:
            # Also when the call was cancelled, and to its end: what arrived is there for the next attempt.
            await asyncio.shield(self._blob_work(upload.keep))
        return response

    async def _begin_upload(self, header: pb.BlobHeader) -> Upload | None:
        sha256 = names.parse_sha256(header.sha256, field="header.sha256")
        begin = self._registry.blobs.begin_upload
        beginning = asyncio.ensure_future(self._blob_work(begin, sha256, header.size_bytes, header.offset_bytes))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_give_up)
            raise

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Any) -> pb.QueryUploadResponse:
        sha256 = names.parse_sha256(request.sha256, field="sha256")
        status = await self._blob_work(self._registry.blobs.query_upload, sha256)
        return pb.QueryUploadResponse(complete=status.is_complete, committed_bytes=status.committed_bytes)

    async def DownloadBlob(
        self, request: pb.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[pb.DownloadBlobResponse]:
        sha256 = names.parse_sha256(request.sha256, field="sha256")
        size, pieces = await self._blob_work(self._registry.blobs.download, sha256, request.offset_bytes)
        piece = await self._blob_work(next, pieces, b"")
        yield pb.DownloadBlobResponse(size_bytes=size, chunk=piece)
        while piece:
            piece = await self._blob_work(next, pieces, b"")
            if piece:
                yield pb.DownloadBlobResponse(chunk=piece)

    async def PublishVersion(self, request: pb.PublishVersionRequest, context: Any) -> pb.PublishVersionResponse:
        version = await self._catalog_work(
            self._registry.versions.publish,
            convert.artifact_id(request.artifact, "artifact"),
            convert.manifest(request.manifest),
            request_id=convert.request_id(request.request_id),
        )
        return pb.PublishVersionResponse(version=convert.version_message(version))

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        version = await self._catalog_work(self._registry.versions.get, convert.version_or_alias(request.name))
        return pb.GetVersionResponse(version=convert.version_message(version))

    async def ListVersions(self, request: pb.ListVersionsRequest, context: Any) -> pb.ListVersionsResponse:
        artifact_id = convert.artifact_id(request.artifact, "artifact")
        page = await self._catalog_work(self._registry.versions.page, artifact_id, convert.page_request(request))
        versions = [convert.version_message(version) for version in page.items]
        return pb.ListVersionsResponse(versions=versions, next_page_token=page.next_token)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Any) -> pb.SetAliasResponse:
        alias = await self._catalog_work(
            self._registry.aliases.set,
            convert.alias_key(request.name, "name"),
            convert.version_key(request.version, "version"),
            etag=request.etag,
            reason=request.reason,
            actor=_caller(context),
        )
        self._feed.ask()
        return pb.SetAliasResponse(alias=convert.alias_message(alias))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Any) -> pb.ListAliasesResponse:
        artifact_id = convert.artifact_id(request.artifact, "artifact") if request.artifact else None
        found = await self._catalog_work(self._registry.aliases.page, artifact_id, convert.page_request(request))
        aliases = [convert.alias_message(alias) for alias in found.page.items]
        return pb.ListAliasesResponse(aliases=aliases, next_page_token=found.page.next_token, revision=found.revision)

    async def ListAliasChanges(self, request: pb.ListAliasChangesRequest, context: Any) -> pb.ListAliasChangesResponse:
        key = convert.alias_key(request.alias, "alias")
        page = await self._catalog_work(self._registry.aliases.history, key, convert.page_request(request))
        changes = [convert.change_message(change) for change in page.items]
        return pb.ListAliasChangesResponse(changes=changes, next_page_token=page.next_token)

    async def WatchAliases(
        self, request: pb.WatchAliasesRequest, context: Any
    ) -> AsyncIterator[pb.WatchAliasesResponse]:
        artifact_id = convert.artifact_id(request.artifact, "artifact") if request.artifact else None
        start = require_revision(request.from_revision, "from_revision") if request.HasField("from_revision") else None
        events = self._feed.watch(artifact_id, start)
        try:
            async for event in events:
                change = None if event.change is None else convert.change_message(event.change)
                yield pb.WatchAliasesResponse(change=change, revision=event.revision)
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    async def CreateLease(self, request: pb.CreateLeaseRequest, context: Any) -> pb.CreateLeaseResponse:
        version = convert.version_key(request.version, "version")
        lease = await self._catalog_work(self._registry.leases.create, version, request.holder, convert.ttl(request))
        return pb.CreateLeaseResponse(lease=convert.lease_message(lease))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        lease_id = names.parse_lease_name(request.name, field="name")
        lease = await self._catalog_work(self._registry.leases.renew, lease_id, convert.ttl(request))
        return pb.RenewLeaseResponse(lease=convert.lease_message(lease))

    async def DeleteLease(self, request: pb.DeleteLeaseRequest, context: Any) -> pb.DeleteLeaseResponse:
        lease_id = names.parse_lease_name(request.name, field="name")
        await self._catalog_work(self._registry.leases.delete, lease_id)
        return pb.DeleteLeaseResponse()

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Any) -> pb.CollectGarbageResponse:
        report = await self._blob_work(self._registry.garbage.collect, validate_only=request.validate_only)
        return pb.CollectGarbageResponse(
            artifacts=[f"artifacts/{artifact_id}" for artifact_id in report.artifact_ids],
            blob_digests=report.blob_digests,
            freed_bytes=report.freed_bytes,
        )


async def _header(requests: AsyncIterator[pb.UploadBlobRequest]) -> pb.BlobHeader:
    async for request in requests:
        if request.WhichOneof("part") != "header":
            raise InvalidInput("the first message must be the header", field="header")
        return request.header
    raise InvalidInput("the first message must be the header; there was none", field="header")


def _give_up(beginning: "asyncio.Future[Upload | None]") -> None:
    if not beginning.cancelled() and beginning.exception() is None and (upload := beginning.result()) is not None:
        upload.keep()


def _caller(context: Any) -> str:
    """Return the common name of the caller's certificate; empty without mutual TLS."""
    found = context.auth_context().get("x509_common_name") or [b""]
    return bytes(found[0]).decode("utf-8", "replace")[:200]
