"""Replicas killed at random moments lose nothing that was acknowledged."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fakes.crashing_registry import Nursery, RegistryProcess, running_nursery
from fakes.registry_stores import FakeClock, Stores, make_artifact, opened_registry
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.registry.paging import PageRequest

NUM_KILLS = 6
NUM_PUBLISHERS = 3
ALIAS = "artifacts/scratch/aliases/production"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with running_nursery() as running:
        yield running


class Replicas:
    """Some processes on the same stores, one of which dies now and then and comes back."""

    def __init__(self, nursery: Nursery, stores: Stores, folder: Path, count: int) -> None:
        self._nursery, self._stores, self._folder = nursery, stores, folder
        self._running: dict[int, RegistryProcess] = {}
        for index in range(count):
            (folder / str(index)).mkdir()
            self._start(index)

    def _start(self, index: int) -> None:
        self._running[index] = self._nursery.start(self._stores.variables, self._folder / str(index))

    def kill_and_restart(self, index: int) -> None:
        assert self._running[index].kill() == -9
        self._start(index)

    def address(self, index: int) -> str:
        return self._running[index % len(self._running)].address

    def stop(self) -> None:
        for process in self._running.values():
            process.kill()


def publish_for_ever(replicas: Replicas, worker: int, stop: threading.Event) -> dict[str, str]:
    """Publish until told to stop, going on after each failure; return the digest of each acknowledged version."""
    acknowledged: dict[str, str] = {}
    attempt = 0
    number = 0
    while not stop.is_set():
        attempt += 1
        with grpc.insecure_channel(replicas.address(worker + attempt)) as channel:
            stub = pb_grpc.RegistryServiceStub(channel)
            try:
                while not stop.is_set():
                    version = publish_one(stub, f"{worker}-{number}".encode() * 20_000)
                    acknowledged[version.name] = version.digest
                    number += 1
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
    return acknowledged


def publish_one(stub: pb_grpc.RegistryServiceStub, content: bytes) -> pb.Version:
    sha256 = hashlib.sha256(content).hexdigest()
    header = pb.BlobHeader(sha256=sha256, size_bytes=len(content))
    stub.UploadBlob(iter([pb.UploadBlobRequest(header=header), pb.UploadBlobRequest(chunk=content)]), timeout=60)
    file = pb.BlobFile(path="model.bin", sha256=sha256, size_bytes=len(content))
    manifest = pb.Manifest(files=[file], metrics={"parity_passed": 1.0})
    request = pb.PublishVersionRequest(artifact="artifacts/scratch", manifest=manifest)
    version: pb.Version = stub.PublishVersion(request, timeout=60).version
    stub.SetAlias(pb.SetAliasRequest(name=ALIAS, version=version.name, etag="*"), timeout=60)
    return version


@pytest.mark.slow
def test_what_was_acknowledged_is_there_whoever_died(
    nursery: Nursery, stores: Stores, clock: FakeClock, tmp_path: Path
) -> None:
    with opened_registry(stores, clock) as registry:
        make_artifact(registry)
    num_replicas = 2 if stores.environment else 1
    replicas = Replicas(nursery, stores, tmp_path, num_replicas)
    stop, draw = threading.Event(), random.Random(7)
    with ThreadPoolExecutor(NUM_PUBLISHERS) as pool:
        publishing = [pool.submit(publish_for_ever, replicas, worker, stop) for worker in range(NUM_PUBLISHERS)]
        try:
            for _ in range(NUM_KILLS):
                time.sleep(draw.uniform(0.1, 0.6))
                replicas.kill_and_restart(draw.randrange(num_replicas))
            time.sleep(0.5)
        finally:
            stop.set()
        acknowledged = {name: digest for future in publishing for name, digest in future.result(120).items()}
    replicas.stop()
    assert acknowledged
    with opened_registry(stores, clock) as registry:
        published, token = {}, ""
        while page := registry.versions.page("scratch", PageRequest(1000, token)):
            for version in page.items:
                published[str(version.key)] = version.digest
                (file,) = version.manifest.files
                assert len(b"".join(registry.blobs.download(file.sha256, 0)[1])) == file.size_bytes
            if not (token := page.next_token):
                break
        assert acknowledged.items() <= published.items()
        changes = registry.aliases.news(None, 0, 100_000).changes
        assert [change.revision for change in changes] == list(range(1, len(changes) + 1))
        assert len(changes) >= len(acknowledged)
