"""The registry: artifacts, versions, aliases, blobs and leases."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from os import PathLike
from pathlib import Path

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.client.pages import PAGE_SIZE, all_pages
from vplab.client.registry import blobs, convert, publishing, watch
from vplab.client.registry.values import (
    Alias,
    AliasChange,
    AliasList,
    Artifact,
    ArtifactKind,
    BlobFile,
    Garbage,
    Lease,
    Lineage,
    Manifest,
    UploadState,
    Version,
)
from vplab.client.times import duration

_SHORT_S = 15.0
_PUBLISH_S = 60.0
_COLLECT_S = 600.0


class AsyncRegistry:
    """Calls of the registry service. Names are the contract's: ``artifacts/{artifact}[/versions/{n}|/aliases/{a}]``.

    Every method raises the kinds of ``vplab.errors``; ``timeout_s`` overrides the method's default deadline.
    """

    def __init__(self, calls: Calls, stub: pb_grpc.RegistryServiceStub) -> None:
        """Take the calls and the stub of one channel; ``AsyncClient.registry`` makes it."""
        self._calls = calls
        self._stub = stub

    async def create_artifact(
        self,
        artifact_id: str,
        kind: ArtifactKind,
        *,
        display_name: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Artifact:
        """Register a name that versions can be published under. Raises AlreadyExists."""
        artifact = pb.Artifact(
            kind=convert.KINDS.value(kind, field="artifact.kind"),  # type: ignore[arg-type]
            display_name=display_name,
            description=description,
            labels=labels or {},
        )
        request = pb.CreateArtifactRequest(
            artifact_id=artifact_id, artifact=artifact, request_id=request_id or str(uuid.uuid4())
        )
        return await self._calls.unary(
            self._stub.CreateArtifact,
            request,
            lambda answer: convert.artifact(answer.artifact),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def get_artifact(self, name: str, *, timeout_s: float | None = None) -> Artifact:
        """Return one artifact, deleted ones included. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetArtifact,
            pb.GetArtifactRequest(name=name),
            lambda answer: convert.artifact(answer.artifact),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_artifacts(
        self,
        *,
        kind: ArtifactKind | None = None,
        labels: Mapping[str, str] | None = None,
        show_deleted: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Artifact]:
        """Iterate over artifacts by name, reading page by page."""

        async def read_page(token: str) -> tuple[Sequence[Artifact], str]:
            request = pb.ListArtifactsRequest(
                page_size=PAGE_SIZE,
                page_token=token,
                kind=convert.KINDS.value(kind, field="kind"),  # type: ignore[arg-type]
                labels=labels or {},
                show_deleted=show_deleted,
            )
            return await self._calls.unary(
                self._stub.ListArtifacts,
                request,
                lambda answer: ([convert.artifact(m) for m in answer.artifacts], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for artifact in all_pages(read_page):
            yield artifact

    async def delete_artifact(self, name: str, *, etag: str = "", timeout_s: float | None = None) -> Artifact:
        """Soft-delete an artifact. Raises NotFound, FailedPrecondition while it is in use, Aborted for an old etag."""
        return await self._calls.unary(
            self._stub.DeleteArtifact,
            pb.DeleteArtifactRequest(name=name, etag=etag),
            lambda answer: convert.artifact(answer.artifact),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def undelete_artifact(self, name: str, *, timeout_s: float | None = None) -> Artifact:
        """Restore a soft-deleted artifact with its versions and aliases. Raises NotFound, FailedPrecondition."""
        return await self._calls.unary(
            self._stub.UndeleteArtifact,
            pb.UndeleteArtifactRequest(name=name),
            lambda answer: convert.artifact(answer.artifact),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def query_upload(self, sha256: str, *, timeout_s: float | None = None) -> UploadState:
        """Say whether a blob is stored, or how many bytes of its interrupted upload are."""
        return await self._calls.unary(
            self._stub.QueryUpload,
            pb.QueryUploadRequest(sha256=sha256),
            lambda answer: UploadState(answer.complete, answer.committed_bytes),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def upload_file(
        self,
        path: str | PathLike[str],
        *,
        as_path: str | None = None,
        media_type: str = "",
        timeout_s: float | None = None,
    ) -> BlobFile:
        """Store a file as a blob and return what a manifest says about it; nothing is sent if the blob is there.

        A broken connection is resumed where it stopped. ``as_path`` is the file's path in the version, its name unless
        given. Raises InvalidInput for a file that cannot be read or changes meanwhile.
        """
        source = blobs.FileSource(Path(path))
        digest, size_bytes = await blobs.upload(self._calls, self._stub, source, timeout_s)
        return BlobFile(as_path or Path(path).name, digest, size_bytes, media_type)

    async def upload_bytes(
        self, data: bytes, *, as_path: str, media_type: str = "", timeout_s: float | None = None
    ) -> BlobFile:
        """Store bytes as a blob, like ``upload_file``."""
        digest, size_bytes = await blobs.upload(self._calls, self._stub, blobs.BytesSource(data), timeout_s)
        return BlobFile(as_path, digest, size_bytes, media_type)

    async def download_file(self, sha256: str, path: str | PathLike[str], *, timeout_s: float | None = None) -> Path:
        """Store a blob at ``path`` once its sha256 is verified; until then bytes gather in ``path`` + ``.part``.

        A ``.part`` file that an earlier attempt left is continued. Raises NotFound, DataLoss, ResourceExhausted.
        """
        return await blobs.download(self._calls, self._stub, sha256, Path(path), timeout_s)

    async def read_blob(self, sha256: str, *, max_bytes: int = 64 << 20, timeout_s: float | None = None) -> bytes:
        """Return a small blob's verified bytes. Raises NotFound, DataLoss, ResourceExhausted above ``max_bytes``."""
        return await blobs.read(self._calls, self._stub, sha256, max_bytes, timeout_s)

    async def publish_version(
        self, artifact: str, manifest: Manifest, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Version:
        """Publish an immutable version whose blobs are stored; an equal manifest returns the version that has it.

        Raises NotFound, FailedPrecondition when a blob is missing.
        """
        request = pb.PublishVersionRequest(
            artifact=artifact, manifest=convert.manifest_to_proto(manifest), request_id=request_id or str(uuid.uuid4())
        )
        return await self._calls.unary(
            self._stub.PublishVersion,
            request,
            lambda answer: convert.version(answer.version),
            timeout_s=timeout_s,
            default_s=_PUBLISH_S,
        )

    async def publish_files(
        self,
        files: Mapping[str, str | PathLike[str]],
        artifact_id: str,
        kind: ArtifactKind,
        *,
        lineage: Sequence[Lineage] = (),
        metrics: Mapping[str, float] | None = None,
        licence: str = "",
        description: str = "",
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        alias: str | None = None,
        reason: str = "",
    ) -> Version:
        """Upload files (path in the version to path on disk), publish them, and move ``alias`` there if one is given.

        The artifact is created if it does not exist, with that display name and labels; ``model.json``, where there is
        one, becomes the manifest's spec. Raises InvalidInput for no files or one that cannot be read,
        FailedPrecondition when the artifact is of another kind, or when ``alias`` is ``production`` and an encoder,
        segmenter or adapter has no ``parity_passed`` in ``metrics``: 1 once its graph was compared with its origin.
        """
        uploaded = await publishing.upload_files(self, {path: Path(source) for path, source in files.items()})
        await publishing.ensure_artifact(self, artifact_id, kind, display_name, labels or {})
        manifest = Manifest(
            files=uploaded,
            lineage=tuple(lineage),
            metrics=metrics or {},
            licence=licence,
            spec=publishing.read_spec(files),
            description=description,
        )
        version = await self.publish_version(f"artifacts/{artifact_id}", manifest)
        if alias:
            await self.set_alias(f"artifacts/{artifact_id}/aliases/{alias}", version.name, etag="*", reason=reason)
        return version

    async def get_version(self, name: str, *, timeout_s: float | None = None) -> Version:
        """Return a version by number or alias; an artifact's name means its ``production`` alias. Raises NotFound."""
        return await self._calls.unary(
            self._stub.GetVersion,
            pb.GetVersionRequest(name=name),
            lambda answer: convert.version(answer.version),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_versions(self, artifact: str, *, timeout_s: float | None = None) -> AsyncIterator[Version]:
        """Iterate over an artifact's versions, newest first. Raises NotFound."""

        async def read_page(token: str) -> tuple[Sequence[Version], str]:
            return await self._calls.unary(
                self._stub.ListVersions,
                pb.ListVersionsRequest(artifact=artifact, page_size=PAGE_SIZE, page_token=token),
                lambda answer: ([convert.version(m) for m in answer.versions], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for version in all_pages(read_page):
            yield version

    async def set_alias(
        self, name: str, version: str, *, etag: str = "", reason: str = "", timeout_s: float | None = None
    ) -> Alias:
        """Point an alias at a version by compare-and-set.

        etag: the alias's current one; empty means it must not exist yet, ``"*"`` moves it whatever it is.
        Raises NotFound, Aborted when somebody else moved it, FailedPrecondition for a version whose parity report
        failed or, for ``production``, is missing.
        """
        return await self._calls.unary(
            self._stub.SetAlias,
            pb.SetAliasRequest(name=name, version=version, etag=etag, reason=reason),
            lambda answer: convert.alias(answer.alias),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def list_aliases(self, artifact: str = "", *, timeout_s: float | None = None) -> AliasList:
        """Return the aliases of an artifact, or of all, with the revision they were read at."""
        revisions: list[int] = []

        async def read_page(token: str) -> tuple[Sequence[Alias], str]:
            def take(answer: pb.ListAliasesResponse) -> tuple[Sequence[Alias], str]:
                revisions.append(answer.revision)
                return [convert.alias(m) for m in answer.aliases], answer.next_page_token

            request = pb.ListAliasesRequest(artifact=artifact, page_size=PAGE_SIZE, page_token=token)
            return await self._calls.unary(
                self._stub.ListAliases, request, take, timeout_s=timeout_s, default_s=_SHORT_S
            )

        aliases = [alias async for alias in all_pages(read_page)]
        return AliasList(tuple(aliases), min(revisions))

    async def list_alias_changes(self, alias: str, *, timeout_s: float | None = None) -> AsyncIterator[AliasChange]:
        """Iterate over the history of one alias, newest first. Raises NotFound."""

        async def read_page(token: str) -> tuple[Sequence[AliasChange], str]:
            return await self._calls.unary(
                self._stub.ListAliasChanges,
                pb.ListAliasChangesRequest(alias=alias, page_size=PAGE_SIZE, page_token=token),
                lambda answer: ([convert.alias_change(m) for m in answer.changes], answer.next_page_token),
                timeout_s=timeout_s,
                default_s=_SHORT_S,
            )

        async for change in all_pages(read_page):
            yield change

    async def watch_aliases(
        self, artifact: str = "", *, from_revision: int | None = None
    ) -> AsyncIterator[AliasChange]:
        """Iterate over alias changes in order, without gaps or repeats, for ever; broken connections are resumed.

        from_revision is exclusive; None starts with the next change. Raises OutOfRange (REVISION_EXPIRED) when the
        registry no longer keeps that revision: list the aliases and watch from the list's revision.
        """
        if from_revision is None:
            from_revision = await watch.current_revision(self, artifact)
        async with aclosing(watch.resumed(self._calls, self._stub, artifact, from_revision)) as changes:
            async for change in changes:
                yield change

    async def create_lease(self, version: str, *, holder: str, ttl_s: float, timeout_s: float | None = None) -> Lease:
        """Protect a version from garbage collection for ``ttl_s`` seconds (1 to 604,800). Raises NotFound."""
        return await self._calls.unary(
            self._stub.CreateLease,
            pb.CreateLeaseRequest(version=version, holder=holder, ttl=duration(ttl_s)),
            lambda answer: convert.lease(answer.lease),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def renew_lease(self, name: str, *, ttl_s: float, timeout_s: float | None = None) -> Lease:
        """Let a lease last ``ttl_s`` seconds from now. Raises NotFound, also once it expired."""
        return await self._calls.unary(
            self._stub.RenewLease,
            pb.RenewLeaseRequest(name=name, ttl=duration(ttl_s)),
            lambda answer: convert.lease(answer.lease),
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def delete_lease(self, name: str, *, timeout_s: float | None = None) -> None:
        """End a lease; ending one that does not exist succeeds."""
        await self._calls.unary(
            self._stub.DeleteLease,
            pb.DeleteLeaseRequest(name=name),
            lambda answer: None,
            timeout_s=timeout_s,
            default_s=_SHORT_S,
        )

    async def collect_garbage(self, *, validate_only: bool = False, timeout_s: float | None = None) -> Garbage:
        """Remove what nothing names any more; ``validate_only`` reports it and removes nothing."""
        return await self._calls.unary(
            self._stub.CollectGarbage,
            pb.CollectGarbageRequest(validate_only=validate_only),
            convert.garbage,
            timeout_s=timeout_s,
            default_s=_COLLECT_S,
        )
