"""The synchronous client: the same calls without asyncio."""

import inspect
import threading
from pathlib import Path

import pytest

from vplab.client import Client, ClientOptions, sync
from vplab.client.embedding.area import AsyncEmbedding
from vplab.client.registry.area import AsyncRegistry
from vplab.client.replicas import AsyncReplica
from vplab.client.segmentation.area import AsyncSegmentation
from vplab.client.training.area import AsyncTraining
from vplab.errors import FailedPrecondition, NotFound
from vplab.runtime.server import RunningServer

AREAS = [
    (AsyncRegistry, sync.Registry),
    (AsyncEmbedding, sync.Embedding),
    (AsyncSegmentation, sync.Segmentation),
    (AsyncTraining, sync.Training),
    (AsyncReplica, sync.Replica),
]


@pytest.mark.parametrize(("asynchronous", "synchronous"), AREAS, ids=lambda area: area.__name__)
def test_both_clients_have_the_same_methods(asynchronous: type, synchronous: type) -> None:
    def public(area: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(method)
            for name, method in vars(area).items()
            if callable(method) and not name.startswith("_")
        }

    assert public(synchronous) == public(asynchronous)
    assert all(getattr(synchronous, name).__doc__ for name in public(synchronous))


def use(address: str, folder: Path) -> None:
    with Client(registry=address, options=ClientOptions()) as client:
        client.registry.create_artifact("b", "dataset")
        client.registry.create_artifact("a", "dataset")
        assert [artifact.name for artifact in client.registry.list_artifacts()] == ["artifacts/a", "artifacts/b"]
        assert next(iter(client.registry.list_artifacts())).name == "artifacts/a"
        with pytest.raises(NotFound):
            client.registry.get_artifact("artifacts/c")
        file = client.registry.upload_bytes(b"content", as_path="a")
        assert client.registry.download_file(file.sha256, folder / "a").read_bytes() == b"content"
        assert client.replica("registry").info().service == "registry"
        assert client.replica("registry").health()["vplab.api.registry.v1.RegistryService"] == "serving"


async def test_a_program_without_a_loop_makes_the_same_calls(registry: RunningServer, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def program() -> None:
        try:
            use(registry.address, tmp_path)
        except BaseException as error:
            failures.append(error)

    import asyncio

    await asyncio.to_thread(program)
    assert failures == []


def test_a_closed_client_says_so_and_leaves_no_thread() -> None:
    before = threading.active_count()
    client = Client(registry="127.0.0.1:1", options=ClientOptions())
    client.close()
    client.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        _ = client.registry
    assert threading.active_count() <= before
