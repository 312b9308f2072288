"""Kill -9 between any two steps of a publish leaves no half version, no unreadable blob, and the caller can go on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fakes.crashing_registry import Nursery, RegistryProcess, running_nursery
from fakes.registry_stores import FakeClock, Stores, make_artifact, opened_registry, publish_bytes
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.registry.backends.sql_catalog import SqlCatalog
from vplab.registry.composition import open_blob_store
from vplab.registry.values import BlobState
from vplab.runtime.database import open_engine

CONTENT = {"weights.bin": b"w" * 3_000}  # two chunks
ARTIFACT = "artifacts/scratch"
REQUEST = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with running_nursery() as running:
        yield running


def upload(stub: pb_grpc.RegistryServiceStub, content: bytes) -> None:
    sha256 = hashlib.sha256(content).hexdigest()
    offset = stub.QueryUpload(pb.QueryUploadRequest(sha256=sha256)).committed_bytes
    header = pb.BlobHeader(sha256=sha256, size_bytes=len(content), offset_bytes=offset)
    pieces = [content[start : start + 2_000] for start in range(offset, len(content), 2_000)]
    messages = [pb.UploadBlobRequest(header=header), *(pb.UploadBlobRequest(chunk=piece) for piece in pieces)]
    stub.UploadBlob(iter(messages))


def publish(stub: pb_grpc.RegistryServiceStub, encoder: pb.Lineage) -> pb.Version:
    """What a client does to publish, from wherever an earlier attempt stopped."""
    for content in CONTENT.values():
        upload(stub, content)
    files = [
        pb.BlobFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for path, content in CONTENT.items()
    ]
    manifest = pb.Manifest(files=files, lineage=[encoder], metrics={"parity_passed": 1.0})
    request = pb.PublishVersionRequest(artifact=ARTIFACT, manifest=manifest, request_id=REQUEST)
    version: pb.Version = stub.PublishVersion(request).version
    stub.SetAlias(pb.SetAliasRequest(name=f"{ARTIFACT}/aliases/production", version=version.name, etag="*"))
    return version


def require_whole(stub: pb_grpc.RegistryServiceStub) -> list[str]:
    """Require that whatever is visible is whole, and return the names of the versions."""
    versions = stub.ListVersions(pb.ListVersionsRequest(artifact=ARTIFACT)).versions
    for version in versions:
        assert version == stub.GetVersion(pb.GetVersionRequest(name=version.name)).version
        assert {file.path for file in version.manifest.files} == set(CONTENT)
        assert len(version.manifest.lineage) == 1
        for file in version.manifest.files:
            assert download(stub, file.sha256) == CONTENT[file.path]
    for content in CONTENT.values():
        sha256 = hashlib.sha256(content).hexdigest()
        if stub.QueryUpload(pb.QueryUploadRequest(sha256=sha256)).complete:
            assert download(stub, sha256) == content
    for alias in stub.ListAliases(pb.ListAliasesRequest(artifact=ARTIFACT)).aliases:
        assert alias.version in [version.name for version in versions]
    return [version.name for version in versions]


def require_readable_blobs(stores: Stores) -> None:
    """Require of every blob that a version could name that its bytes are there, looking past the registry."""
    catalog = SqlCatalog(open_engine(stores.database_url))
    store = open_blob_store(stores.config())
    digests = [hashlib.sha256(content).hexdigest() for content in CONTENT.values()]
    for sha256, record in catalog.read(lambda tx: tx.blobs.get(digests)).items():
        if record.state is BlobState.STORED:
            assert hashlib.sha256(b"".join(store.read(sha256, 0))).hexdigest() == sha256
    catalog.close()


def download(stub: pb_grpc.RegistryServiceStub, sha256: str) -> bytes:
    return b"".join(message.chunk for message in stub.DownloadBlob(pb.DownloadBlobRequest(sha256=sha256)))


def connected(process: RegistryProcess) -> grpc.Channel:
    return grpc.insecure_channel(process.address, options=[("grpc.use_local_subchannel_pool", 1)])


def empty(stores: Stores) -> pb.Lineage:
    """Make the artifact that is published to, and what its versions are made from."""
    with opened_registry(stores, FakeClock()) as registry:
        make_artifact(registry)
        encoder = publish_bytes(registry, make_artifact(registry, "encoder"), b"encoder")
    return pb.Lineage(relation="image_encoder", version=str(encoder.key), digest=encoder.digest)


@pytest.fixture(params=["sqlite+folder", "postgresql+s3"])
def make_stores(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    templates = request.getfixturevalue("registry_templates")
    count = iter(range(10_000))

    def make() -> Stores:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        if request.param == "sqlite+folder":
            made: Stores = templates.sqlite(folder)
            return made
        s3 = request.getfixturevalue("s3_server")
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        made = templates.postgres(folder, request.getfixturevalue("postgres_server"), s3)
        return made

    return make


@pytest.mark.slow
def test_kill_before_any_step_leaves_everything_whole(nursery: Nursery, make_stores: object, tmp_path: Path) -> None:
    stores = make_stores()  # type: ignore[operator]
    encoder = empty(stores)
    process = nursery.start(stores.variables, tmp_path)
    with connected(process) as channel:
        publish(pb_grpc.RegistryServiceStub(channel), encoder)
    process.kill()
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) > 20
    was_published = []
    for number, step in enumerate(steps, 1):
        context = f"killed before step {number}, {step}"
        stores = make_stores()  # type: ignore[operator]
        encoder = empty(stores)
        process = nursery.start(stores.variables, tmp_path, die_before=number)
        with connected(process) as channel, pytest.raises(grpc.RpcError):
            publish(pb_grpc.RegistryServiceStub(channel), encoder)
        assert process.kill() == -9, context
        require_readable_blobs(stores)
        process = nursery.start(stores.variables, tmp_path)
        with connected(process) as channel:
            stub = pb_grpc.RegistryServiceStub(channel)
            versions = require_whole(stub)
            assert versions in ([], [f"{ARTIFACT}/versions/1"]), context
            was_published.append(bool(versions))
            assert publish(stub, encoder).name == f"{ARTIFACT}/versions/1", context
            assert require_whole(stub) == [f"{ARTIFACT}/versions/1"], context
        process.kill()
    # There is one step before which the version is not there, and from the next on it is.
    assert was_published == sorted(was_published)
    assert set(was_published) == {False, True}
