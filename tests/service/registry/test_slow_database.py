import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import event

from fakes.registry_stores import FakeClock, Stores, opened_registry, upload_bytes
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.errors import Unavailable
from vplab.registry import composition
from vplab.registry.backends.file_blobs import FileBlobs
from vplab.registry.backends.file_uploads import FileUploads
from vplab.registry.backends.sql_catalog import SqlCatalog
from vplab.registry.composition import open_registry
from vplab.registry.core.registry import Registry
from vplab.registry.errors import ResourceNotFound, StorageFull, StoreUnavailable
from vplab.registry.values import ArtifactKind
from vplab.runtime.database import open_engine
from vplab.runtime.server import StartError, running_server


async def test_health_answers_while_the_database_does_not(sqlite_stores: Stores) -> None:
    config = sqlite_stores.config(threads=2)
    other_writer = sqlite3.connect(config.database_url.removeprefix("sqlite:///"), isolation_level=None)
    async with (
        open_registry(config) as service,
        running_server([service.registration], config, ready=service.ready) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Any = pb_grpc.RegistryServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        other_writer.execute("BEGIN IMMEDIATE")
        artifact = pb.Artifact(kind=pb.ARTIFACT_KIND_ADAPTER)
        waiting = [
            asyncio.ensure_future(stub.CreateArtifact(pb.CreateArtifactRequest(artifact_id=name, artifact=artifact)))
            for name in "abcdef"  # more than there are threads
        ]
        await asyncio.sleep(0.1)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not any(call.done() for call in waiting)
        other_writer.execute("ROLLBACK")
        await asyncio.gather(*waiting)
    other_writer.close()


async def test_start_waits_for_a_database_that_is_not_there_yet(
    sqlite_stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sqlite_stores.config()
    came = asyncio.Event()
    loop = asyncio.get_running_loop()

    def migrate_later(engine: object) -> None:
        if not came.is_set():
            loop.call_soon_threadsafe(came.set)
            raise StoreUnavailable("database", "does not answer")

    monkeypatch.setattr(composition, "migrate", migrate_later)
    monkeypatch.setattr(composition, "RETRY_S", 0.01)
    async with (
        open_registry(config) as service,
        running_server([service.registration], config, ready=service.ready, wait_ready=False) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await came.wait()
        await server.ready
        assert not (await pb_grpc.RegistryServiceStub(channel).ListArtifacts(pb.ListArtifactsRequest())).artifacts


async def test_database_of_a_newer_release_stops_the_start(sqlite_stores: Stores) -> None:
    database = sqlite3.connect(sqlite_stores.database_url.removeprefix("sqlite:///"))
    database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.commit()
    database.close()
    async with open_registry(sqlite_stores.config()) as service:
        with pytest.raises(StartError, match="newer"):
            await service.ready()


def test_full_database_is_said_so(sqlite_stores: Stores) -> None:
    engine = open_engine(sqlite_stores.database_url)

    @event.listens_for(engine, "connect")
    def take_no_more(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1").close()  # SQLite takes the present size

    registry = Registry(
        SqlCatalog(engine), FileBlobs(sqlite_stores.staging_folder), FileUploads(sqlite_stores.staging_folder)
    )
    with pytest.raises(StorageFull):
        registry.artifacts.create("large", ArtifactKind.ADAPTER, description="x" * 10_000)
    with pytest.raises(ResourceNotFound):
        registry.artifacts.get("large")
    engine.dispose()


def test_object_store_that_is_away_is_unavailable(
    sqlite_stores: Stores, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    stores = Stores(sqlite_stores.database_url, "s3://nowhere/prefix", tmp_path / "staging")
    with opened_registry(stores, clock) as registry, pytest.raises(Unavailable) as refusal:
        upload_bytes(registry, b"weights")
    assert refusal.value.metadata == {"service": "object store"}
