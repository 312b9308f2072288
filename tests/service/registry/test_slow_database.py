import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fakes.registry_stores import FakeClock, Stores, opened_registry, upload_bytes
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.errors import Unavailable
from vplab.registry.composition import open_registry
from vplab.runtime.server import running_server


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
