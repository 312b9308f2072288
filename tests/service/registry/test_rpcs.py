"""Every RPC over a real channel, with what it answers and what it refuses."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value

from fakes.registry_stores import Stores
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.client.first_status import FirstStatus
from vplab.errors import InvalidInput, VPLabError
from vplab.registry.composition import open_registry
from vplab.runtime.server import running_server
from vplab.wire.status import error_from_call

MIB = 2**20
ADAPTER = pb.ARTIFACT_KIND_ADAPTER
DIGEST = "ab" * 32


@asynccontextmanager
async def served(stores: Stores, **settings: object) -> AsyncIterator[Any]:
    async with (
        open_registry(stores.config(**settings)) as service,
        running_server([service.registration], service.config, ready=service.ready) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield pb_grpc.RegistryServiceStub(channel)


@pytest.fixture
async def stub(stores: Stores) -> AsyncIterator[Any]:
    async with served(stores) as opened:
        yield opened


@pytest.fixture
async def sqlite_stub(sqlite_stores: Stores) -> AsyncIterator[Any]:
    async with served(sqlite_stores) as opened:
        yield opened


def messages(content: bytes, offset: int = 0, sha256: str | None = None) -> list[pb.UploadBlobRequest]:
    digest = sha256 or hashlib.sha256(content).hexdigest()
    header = pb.BlobHeader(sha256=digest, size_bytes=len(content), offset_bytes=offset)
    chunks = [content[start : start + MIB] for start in range(offset, len(content), MIB)]
    return [pb.UploadBlobRequest(header=header), *(pb.UploadBlobRequest(chunk=chunk) for chunk in chunks)]


async def upload(stub: Any, content: bytes, path: str = "model.bin") -> pb.BlobFile:
    answer = await stub.UploadBlob(iter(messages(content)))
    return pb.BlobFile(path=path, sha256=answer.sha256, size_bytes=answer.size_bytes)


async def make_artifact(stub: Any, artifact_id: str = "scratch") -> None:
    await stub.CreateArtifact(pb.CreateArtifactRequest(artifact_id=artifact_id, artifact=pb.Artifact(kind=ADAPTER)))


async def publish(stub: Any, content: bytes, artifact_id: str = "scratch") -> pb.Version:
    manifest = pb.Manifest(files=[await upload(stub, content)], metrics={"parity_passed": 1.0})
    answer = await stub.PublishVersion(pb.PublishVersionRequest(artifact=f"artifacts/{artifact_id}", manifest=manifest))
    version: pb.Version = answer.version
    return version


async def refusal(call: Any) -> VPLabError:
    """Return what the server refused a call with, as a client sees it."""

    async def ended() -> None:
        if isinstance(call, grpc.aio.UnaryStreamCall):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call

    told = FirstStatus(call)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await ended()
    error = told.error or raised.value
    return error_from_call(error.code(), error.details(), error.trailing_metadata())


async def fields(call: Any) -> list[str]:
    error = await refusal(call)
    assert isinstance(error, InvalidInput), error
    return [violation.field for violation in error.violations]


async def test_whole_life_of_a_version(stub: Any) -> None:
    await make_artifact(stub, "encoder")
    await make_artifact(stub)
    encoder = await publish(stub, b"encoder", "encoder")
    content = bytes(range(256)) * 5000
    manifest = pb.Manifest(
        files=[await upload(stub, content, "weights/model.bin"), await upload(stub, b"", "empty")],
        lineage=[pb.Lineage(relation="image_encoder", version=encoder.name, digest=encoder.digest)],
        metrics={"iou": 0.5, "parity_passed": 1.0},
        licence="Apache-2.0",
        description="déjà vu",
    )
    manifest.spec.update({"size": 512, "list": [1.5, None, True, {"a": "b"}]})
    request = pb.PublishVersionRequest(
        artifact="artifacts/scratch", manifest=manifest, request_id=str(uuid.uuid4()).upper()
    )
    version = (await stub.PublishVersion(request)).version
    assert (await stub.PublishVersion(request)).version == version
    assert version.name == "artifacts/scratch/versions/1"
    assert version.kind == ADAPTER
    by_path = pb.Manifest()
    by_path.CopyFrom(manifest)
    del by_path.files[:]
    by_path.files.extend(sorted(manifest.files, key=lambda file: file.path))
    assert version.manifest == by_path

    alias = await stub.SetAlias(pb.SetAliasRequest(name=f"{request.artifact}/aliases/production", version=version.name))
    assert alias.alias.version_digest == version.digest
    for name in (version.name, alias.alias.name, request.artifact):
        assert (await stub.GetVersion(pb.GetVersionRequest(name=name))).version == version
    received, sizes = b"", []
    async for message in stub.DownloadBlob(pb.DownloadBlobRequest(sha256=manifest.files[0].sha256)):
        received += message.chunk
        sizes.append(message.size_bytes)
    assert received == content
    assert sizes == [len(content)] + [0] * (len(sizes) - 1)


async def test_existing_blob_is_answered_at_once(stub: Any) -> None:
    content = bytes(3 * MIB)
    await upload(stub, content)

    async def header_only() -> AsyncIterator[pb.UploadBlobRequest]:
        yield messages(content)[0]

    answer = await stub.UploadBlob(header_only())
    assert answer.already_existed
    answer = await stub.UploadBlob(iter(messages(content)))
    assert answer.already_existed


async def test_cancelled_upload_is_resumed(stub: Any, stores: Stores) -> None:
    content = bytes(range(256)) * 4096 * 3
    sha256 = hashlib.sha256(content).hexdigest()
    call = stub.UploadBlob()
    for message in messages(content)[:3]:
        await call.write(message)
    folder = stores.config().upload_folder
    async with asyncio.timeout(30):
        while sum(path.stat().st_size for path in folder.glob("*.part")) < 2 * MIB:
            await asyncio.sleep(0.01)
        call.cancel()
        status = pb.QueryUploadResponse()
        while status.committed_bytes == 0:  # the cancellation is on its way
            status = await stub.QueryUpload(pb.QueryUploadRequest(sha256=sha256))
    assert (status.complete, status.committed_bytes) == (False, 2 * MIB)
    await stub.UploadBlob(iter(messages(content, status.committed_bytes)))
    status = await stub.QueryUpload(pb.QueryUploadRequest(sha256=sha256))
    assert (status.complete, status.committed_bytes) == (True, len(content))


async def test_download_resumes_at_an_offset(stub: Any) -> None:
    content = bytes(range(256)) * 5000
    file = await upload(stub, content)
    for offset in (1, MIB, len(content)):
        request = pb.DownloadBlobRequest(sha256=file.sha256, offset_bytes=offset)
        parts = [message async for message in stub.DownloadBlob(request)]
        assert b"".join(part.chunk for part in parts) == content[offset:]
        assert parts[0].size_bytes == len(content)
    error = await refusal(stub.DownloadBlob(pb.DownloadBlobRequest(sha256=file.sha256, offset_bytes=len(content) + 1)))
    assert error.reason == "OFFSET_OUT_OF_RANGE"


async def test_watch_tells_every_change_in_order_and_goes_on_from_a_revision(stub: Any) -> None:
    await make_artifact(stub)
    versions = [await publish(stub, bytes([n])) for n in range(2)]
    watch = stub.WatchAliases(pb.WatchAliasesRequest())
    assert not (await watch.read()).HasField("change")
    for n in range(4):
        await stub.SetAlias(
            pb.SetAliasRequest(
                name="artifacts/scratch/aliases/production", version=versions[n % 2].name, etag="*", reason=str(n)
            )
        )
    seen = [await watch.read() for _ in range(4)]
    assert [message.change.reason for message in seen] == ["0", "1", "2", "3"]
    assert [message.revision for message in seen] == [1, 2, 3, 4]
    watch.cancel()
    again = stub.WatchAliases(pb.WatchAliasesRequest(artifact="artifacts/scratch", from_revision=2))
    await again.read()
    assert [(await again.read()).revision for _ in range(2)] == [3, 4]
    again.cancel()


async def test_watch_hears_of_changes_made_by_another_replica(stores: Stores) -> None:
    async with served(stores, watch_poll_s=0.05) as one, served(stores) as other:
        await make_artifact(other)
        version = await publish(other, b"weights")
        watch = one.WatchAliases(pb.WatchAliasesRequest(from_revision=0))
        await watch.read()
        await other.SetAlias(pb.SetAliasRequest(name="artifacts/scratch/aliases/production", version=version.name))
        assert (await watch.read()).change.version == version.name
        await other.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/scratch"))
        gone = (await watch.read()).change
        assert (gone.version, gone.previous_version) == ("", version.name)
        watch.cancel()


async def test_quiet_watch_gets_heartbeats(sqlite_stores: Stores) -> None:
    async with served(sqlite_stores, watch_heartbeat_s=0.05) as stub:
        watch = stub.WatchAliases(pb.WatchAliasesRequest())
        beats = [await watch.read() for _ in range(3)]
        assert all(not beat.HasField("change") and beat.revision == 0 for beat in beats)
        watch.cancel()


async def test_watch_of_a_future_revision_is_refused(sqlite_stub: Any) -> None:
    error = await refusal(sqlite_stub.WatchAliases(pb.WatchAliasesRequest(from_revision=9)))
    assert error.reason == "REVISION_EXPIRED"


async def test_lists_and_history_page_over_the_wire(stub: Any) -> None:
    for name in ("a", "b", "c"):
        await make_artifact(stub, name)
    await publish(stub, b"1", "a")
    version = await publish(stub, b"2", "a")
    for etag in ("", "*"):
        await stub.SetAlias(pb.SetAliasRequest(name="artifacts/a/aliases/stable", version=version.name, etag=etag))
    page = await stub.ListArtifacts(pb.ListArtifactsRequest(page_size=2, kind=ADAPTER))
    rest = await stub.ListArtifacts(pb.ListArtifactsRequest(page_size=2, kind=ADAPTER, page_token=page.next_page_token))
    assert [artifact.name for artifact in [*page.artifacts, *rest.artifacts]] == [f"artifacts/{n}" for n in "abc"]
    newest = await stub.ListVersions(pb.ListVersionsRequest(artifact="artifacts/a", page_size=1))
    assert [found.name for found in newest.versions] == [version.name]
    aliases = await stub.ListAliases(pb.ListAliasesRequest())
    assert [(alias.name, aliases.revision) for alias in aliases.aliases] == [("artifacts/a/aliases/stable", 2)]
    history = await stub.ListAliasChanges(pb.ListAliasChangesRequest(alias="artifacts/a/aliases/stable"))
    assert [change.revision for change in history.changes] == [2, 1]


async def test_delete_undelete_lease_and_collection(stub: Any) -> None:
    await make_artifact(stub)
    version = await publish(stub, b"weights")
    lease = await stub.CreateLease(
        pb.CreateLeaseRequest(version=version.name, holder="line 7", ttl=Duration(seconds=60))
    )
    assert (await refusal(stub.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/scratch")))).reason == (
        "RESOURCE_IN_USE"
    )
    renewed = await stub.RenewLease(pb.RenewLeaseRequest(name=lease.lease.name, ttl=Duration(seconds=600)))
    assert renewed.lease.expire_time.seconds > lease.lease.expire_time.seconds
    await stub.DeleteLease(pb.DeleteLeaseRequest(name=lease.lease.name))
    gone = (await stub.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/scratch"))).artifact
    assert gone.HasField("expire_time")
    assert (await stub.GetArtifact(pb.GetArtifactRequest(name="artifacts/scratch"))).artifact == gone
    back = (await stub.UndeleteArtifact(pb.UndeleteArtifactRequest(name="artifacts/scratch"))).artifact
    assert not back.HasField("delete_time")
    report = await stub.CollectGarbage(pb.CollectGarbageRequest(validate_only=True))
    assert (list(report.artifacts), list(report.blob_digests), report.freed_bytes) == ([], [], 0)


BAD_NAMES = ["", "scratch", "artifacts/", "artifacts/Scratch", "artifacts/a-", "artifacts/" + "a" * 64, "artifacts/a/x"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_malformed_artifact_name_is_refused_by_every_rpc(sqlite_stub: Any, name: str) -> None:
    stub = sqlite_stub
    assert await fields(stub.GetArtifact(pb.GetArtifactRequest(name=name))) == ["name"]
    assert await fields(stub.DeleteArtifact(pb.DeleteArtifactRequest(name=name))) == ["name"]
    assert await fields(stub.UndeleteArtifact(pb.UndeleteArtifactRequest(name=name))) == ["name"]
    assert await fields(stub.PublishVersion(pb.PublishVersionRequest(artifact=name))) == ["artifact"]
    assert await fields(stub.ListVersions(pb.ListVersionsRequest(artifact=name))) == ["artifact"]
    assert await fields(stub.GetVersion(pb.GetVersionRequest(name=name))) == ["name"]
    if name:
        assert await fields(stub.ListAliases(pb.ListAliasesRequest(artifact=name))) == ["artifact"]
        assert await fields(stub.WatchAliases(pb.WatchAliasesRequest(artifact=name))) == ["artifact"]


async def test_every_rpc_names_the_field_it_refuses(sqlite_stub: Any) -> None:
    stub = sqlite_stub
    await make_artifact(stub)
    version = await publish(stub, b"weights")
    kind = pb.Artifact(kind=ADAPTER)
    second = Duration(seconds=1)
    refused: list[tuple[Any, str]] = [
        (stub.CreateArtifact(pb.CreateArtifactRequest(artifact_id="A", artifact=kind)), "artifact_id"),
        (stub.CreateArtifact(pb.CreateArtifactRequest(artifact_id="a")), "artifact.kind"),
        (stub.CreateArtifact(pb.CreateArtifactRequest(artifact_id="a", artifact=kind, request_id="7")), "request_id"),
        (stub.ListArtifacts(pb.ListArtifactsRequest(kind=99)), "kind"),  # type: ignore[arg-type]
        (stub.ListArtifacts(pb.ListArtifactsRequest(page_token="?")), "page_token"),
        (stub.ListArtifacts(pb.ListArtifactsRequest(labels={"": "x"})), "labels['']"),
        (stub.DeleteArtifact(pb.DeleteArtifactRequest(name="artifacts/scratch", etag="1")), "etag"),
        (stub.QueryUpload(pb.QueryUploadRequest(sha256=DIGEST.upper())), "sha256"),
        (stub.ListVersions(pb.ListVersionsRequest(artifact="artifacts/scratch", page_token="e30=")), "page_token"),
        (stub.GetVersion(pb.GetVersionRequest(name="artifacts/scratch/versions/0")), "name"),
        (stub.SetAlias(pb.SetAliasRequest(name="artifacts/scratch", version=version.name)), "name"),
        (stub.SetAlias(pb.SetAliasRequest(name="artifacts/scratch/aliases/a", version="x")), "version"),
        (stub.ListAliasChanges(pb.ListAliasChangesRequest(alias="x")), "alias"),
        (stub.CreateLease(pb.CreateLeaseRequest(version="x", holder="h", ttl=second)), "version"),
        (stub.CreateLease(pb.CreateLeaseRequest(version=version.name, ttl=second)), "holder"),
        (stub.CreateLease(pb.CreateLeaseRequest(version=version.name, holder="h")), "ttl"),
        (stub.CreateLease(pb.CreateLeaseRequest(version=version.name, holder="h", ttl=Duration(nanos=5))), "ttl"),
        (stub.RenewLease(pb.RenewLeaseRequest(name="leases/x", ttl=Duration(seconds=2**62))), "ttl"),
        (stub.RenewLease(pb.RenewLeaseRequest(name="x", ttl=second)), "name"),
        (stub.DeleteLease(pb.DeleteLeaseRequest(name="leases/")), "name"),
    ]
    for call, field in refused:
        assert await fields(call) == [field]
    assert await fields(stub.DownloadBlob(pb.DownloadBlobRequest(sha256="x"))) == ["sha256"]
    watch = stub.WatchAliases(pb.WatchAliasesRequest(from_revision=2**64 - 1))
    assert await fields(watch) == ["from_revision"]


def bad_manifests() -> Iterable[tuple[pb.Manifest, str]]:
    good = pb.BlobFile(path="a", sha256=DIGEST, size_bytes=1)
    yield pb.Manifest(), "manifest.files"
    for path in ("", "/a", "a/../b", "./a", "a//b", "a\\b", "a\0", "x" * 513, "C:/a"):
        yield pb.Manifest(files=[pb.BlobFile(path=path, sha256=DIGEST)]), "manifest.files[0].path"
    yield pb.Manifest(files=[good, good]), "manifest.files[1].path"
    yield pb.Manifest(files=[good, pb.BlobFile(path="a/b", sha256=DIGEST)]), "manifest.files"
    yield pb.Manifest(files=[pb.BlobFile(path="a", sha256="x")]), "manifest.files[0].sha256"
    yield pb.Manifest(files=[pb.BlobFile(path="a", sha256=DIGEST, size_bytes=2**63)]), "manifest.files[0].size_bytes"
    yield pb.Manifest(files=[pb.BlobFile(path="a", sha256=DIGEST, media_type="x")]), "manifest.files[0].media_type"
    yield pb.Manifest(files=[good], lineage=[pb.Lineage(relation="x")]), "manifest.lineage[0].version"
    lineage = pb.Lineage(relation="Big", version="artifacts/a/versions/1", digest=DIGEST)
    yield pb.Manifest(files=[good], lineage=[lineage]), "manifest.lineage[0].relation"
    lineage = pb.Lineage(relation="x", version="artifacts/a/versions/1", digest="")
    yield pb.Manifest(files=[good], lineage=[lineage]), "manifest.lineage[0].digest"
    yield pb.Manifest(files=[good], metrics={"iou": float("nan")}), "manifest.metrics['iou']"
    yield pb.Manifest(files=[good], metrics={"": 1.0}), "manifest.metrics['']"
    yield pb.Manifest(files=[good], licence="x" * 201), "manifest.licence"
    yield pb.Manifest(files=[good], description="x" * 10_001), "manifest.description"
    unset = pb.Manifest(files=[good])
    unset.spec.fields["a"].list_value.values.add()
    yield unset, "manifest.spec.a[0]"
    infinite = pb.Manifest(files=[good])
    infinite.spec.fields["a"].CopyFrom(Value(number_value=float("inf")))
    yield infinite, "manifest.spec.a"
    large = pb.Manifest(files=[good])
    large.spec.update({"a": "x" * MIB})
    yield large, "manifest.spec"


async def test_every_field_of_a_manifest_is_checked(sqlite_stub: Any) -> None:
    await make_artifact(sqlite_stub)
    for manifest, field in bad_manifests():
        request = pb.PublishVersionRequest(artifact="artifacts/scratch", manifest=manifest)
        assert await fields(sqlite_stub.PublishVersion(request)) == [field]


async def test_malformed_uploads_are_refused(sqlite_stub: Any) -> None:
    stub = sqlite_stub
    good = messages(b"hello")
    chunk = pb.UploadBlobRequest(chunk=b"x")
    assert await fields(stub.UploadBlob(iter([]))) == ["header"]
    assert await fields(stub.UploadBlob(iter([chunk]))) == ["header"]
    assert await fields(stub.UploadBlob(iter([pb.UploadBlobRequest()]))) == ["header"]
    assert await fields(stub.UploadBlob(iter([good[0], good[0]]))) == ["part"]
    assert await fields(stub.UploadBlob(iter(messages(b"hello", sha256="x")))) == ["header.sha256"]
    wrong = await refusal(stub.UploadBlob(iter(messages(b"hello", sha256=DIGEST))))
    assert wrong.reason == "DIGEST_MISMATCH"
    assert wrong.metadata["expected"] == DIGEST
    short = await refusal(stub.UploadBlob(iter(good[:1])))
    assert short.reason == "DIGEST_MISMATCH"
    large = [good[0], pb.UploadBlobRequest(chunk=bytes(MIB + 1))]
    assert (await refusal(stub.UploadBlob(iter(large)))).reason == "MESSAGE_TOO_LARGE"
    resumed = await refusal(stub.UploadBlob(iter(messages(b"hello", offset=3))))
    assert (resumed.reason, resumed.metadata["offset"]) == ("OFFSET_OUT_OF_RANGE", "0")


async def test_absent_things_are_not_found_by_every_rpc(sqlite_stub: Any) -> None:
    stub = sqlite_stub
    name, version, alias = "artifacts/a", "artifacts/a/versions/1", "artifacts/a/aliases/b"
    manifest = pb.Manifest(files=[pb.BlobFile(path="a", sha256=DIGEST)])
    ttl = Duration(seconds=5)
    calls = [
        stub.GetArtifact(pb.GetArtifactRequest(name=name)),
        stub.DeleteArtifact(pb.DeleteArtifactRequest(name=name)),
        stub.UndeleteArtifact(pb.UndeleteArtifactRequest(name=name)),
        stub.PublishVersion(pb.PublishVersionRequest(artifact=name, manifest=manifest)),
        stub.GetVersion(pb.GetVersionRequest(name=name)),
        stub.GetVersion(pb.GetVersionRequest(name=version)),
        stub.ListVersions(pb.ListVersionsRequest(artifact=name)),
        stub.SetAlias(pb.SetAliasRequest(name=alias, version=version)),
        stub.ListAliases(pb.ListAliasesRequest(artifact=name)),
        stub.ListAliasChanges(pb.ListAliasChangesRequest(alias=alias)),
        stub.CreateLease(pb.CreateLeaseRequest(version=version, holder="h", ttl=ttl)),
        stub.RenewLease(pb.RenewLeaseRequest(name="leases/x", ttl=ttl)),
    ]
    for call in calls:
        error = await refusal(call)
        assert error.reason == "RESOURCE_NOT_FOUND", error
        assert error.metadata["name"]
    for stream in (stub.DownloadBlob(pb.DownloadBlobRequest(sha256=DIGEST)),):
        assert (await refusal(stream)).reason == "RESOURCE_NOT_FOUND"
    await stub.DeleteLease(pb.DeleteLeaseRequest(name="leases/x"))


async def test_aliases_compare_and_set_over_the_wire(sqlite_stub: Any) -> None:
    await make_artifact(sqlite_stub)
    version = await publish(sqlite_stub, b"weights")
    request = pb.SetAliasRequest(name="artifacts/scratch/aliases/production", version=version.name)
    alias = (await sqlite_stub.SetAlias(request)).alias
    error = await refusal(sqlite_stub.SetAlias(request))
    assert (error.reason, error.metadata["etag"]) == ("ETAG_MISMATCH", alias.etag)
    request.etag = alias.etag
    assert (await sqlite_stub.SetAlias(request)).alias.revision == 2
