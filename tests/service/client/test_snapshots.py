"""Versions as verified local folders: shared between processes, kept while the registry is away."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.client.registry.values import Manifest, Version
from vplab.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from vplab.runtime.server import RunningServer

FETCH = """
import asyncio, sys
from vplab.client import AsyncClient, AsyncSnapshots
async def main():
    async with AsyncClient(registry=sys.argv[1]) as client:
        snapshot = await AsyncSnapshots(client.registry, sys.argv[2]).fetch(sys.argv[3])
        print(snapshot.folder)
asyncio.run(main())
"""


async def publish(client: AsyncClient, artifact_id: str, files: dict[str, bytes]) -> Version:
    blobs = [await client.registry.upload_bytes(data, as_path=path) for path, data in files.items()]
    await client.registry.create_artifact(artifact_id, "encoder")
    version = await client.registry.publish_version(
        f"artifacts/{artifact_id}", Manifest(tuple(blobs), metrics={"parity_passed": 1.0})
    )
    await client.registry.set_alias(f"artifacts/{artifact_id}/aliases/production", version.name)
    return version


async def test_a_version_becomes_a_folder_of_its_files(client: AsyncClient, tmp_path: Path) -> None:
    version = await publish(client, "base", {"model.json": b"{}", "deep/graph.onnx": b"graph"})
    snapshot = await AsyncSnapshots(client.registry, tmp_path / "cache").fetch("artifacts/base")
    assert (snapshot.version_name, snapshot.digest, snapshot.is_current) == (version.name, version.digest, True)
    assert snapshot.manifest == version.manifest
    assert (snapshot.folder / "deep" / "graph.onnx").read_bytes() == b"graph"
    with pytest.raises(NotFound):
        await AsyncSnapshots(client.registry, tmp_path / "cache").fetch("artifacts/absent")


async def test_without_the_registry_the_last_known_version_is_served(tmp_path: Path) -> None:
    process = RegistryProcess(registry_config(tmp_path / "registry"))
    async with process.running() as server, AsyncClient(registry=server.address, options=ClientOptions()) as client:
        version = await publish(client, "base", {"a": b"1"})
        await AsyncSnapshots(client.registry, tmp_path / "cache").fetch("artifacts/base")
    async with AsyncClient(registry=server.address, options=ClientOptions(timeout_s=1)) as client:
        snapshots = AsyncSnapshots(client.registry, tmp_path / "cache")
        snapshot = await snapshots.fetch("artifacts/base")
        assert (snapshot.digest, snapshot.is_current) == (version.digest, False)
        assert snapshot.manifest == version.manifest
        with pytest.raises(Unavailable):
            await snapshots.fetch("artifacts/other")
        snapshots.close()
        (snapshot.folder / "a").write_bytes(b"2")
        with pytest.raises(DataLoss, match="damaged"):
            await AsyncSnapshots(client.registry, tmp_path / "cache").fetch("artifacts/base")


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed"])
async def test_a_damaged_file_is_fetched_again(client: AsyncClient, tmp_path: Path, damage: str) -> None:
    await publish(client, "base", {"a": b"12345", "b": b"b"})
    first = AsyncSnapshots(client.registry, tmp_path / "cache")
    path = (await first.fetch("artifacts/base")).folder / "a"
    first.close()
    match damage:
        case "changed":
            path.write_bytes(b"54321")
        case "truncated":
            path.write_bytes(b"123")
        case "removed":
            path.unlink()
    again = await AsyncSnapshots(client.registry, tmp_path / "cache").fetch("artifacts/base")
    assert (again.folder / "a").read_bytes() == b"12345"


async def test_processes_that_fetch_at_once_get_the_same_folder(registry: RunningServer, tmp_path: Path) -> None:
    async with AsyncClient(registry=registry.address, options=ClientOptions()) as client:
        version = await publish(client, "base", {"a": os.urandom(5_000_000), "b": os.urandom(100)})
    command = [sys.executable, "-c", FETCH, registry.address, str(tmp_path / "cache"), version.name]
    processes = [await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [(await process.communicate())[0].decode().strip() for process in processes]
    assert {process.returncode for process in processes} == {0}
    assert set(outputs) == {str(tmp_path / "cache" / "versions" / version.digest / "files")}
    assert sorted(path.name for path in (tmp_path / "cache" / "versions").iterdir()) == [version.digest]


async def test_a_fetch_that_was_killed_is_finished_by_the_next(registry: RunningServer, tmp_path: Path) -> None:
    async with AsyncClient(registry=registry.address, options=ClientOptions()) as client:
        files = {f"f{number}": os.urandom(4_000_000) for number in range(4)}
        version = await publish(client, "base", files)
        command = [sys.executable, "-c", FETCH, registry.address, str(tmp_path / "cache"), version.name]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        incoming = tmp_path / "cache" / "versions" / f"{version.digest}.incoming" / "files"
        while process.returncode is None and not (incoming.exists() and list(incoming.iterdir())):
            await asyncio.sleep(0.005)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        snapshot = await AsyncSnapshots(client.registry, tmp_path / "cache").fetch(version.name)
        assert {path.name: path.read_bytes() for path in snapshot.folder.iterdir()} == files


async def test_beyond_the_limit_the_version_used_longest_ago_is_removed(client: AsyncClient, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        await publish(client, name, {"f": name.encode() * 1000})
    cache = tmp_path / "cache"
    for name in ("a", "b"):
        snapshots = AsyncSnapshots(client.registry, cache)
        await snapshots.fetch(f"artifacts/{name}")
        snapshots.close()
    os.utime(cache / "locks" / (await client.registry.get_version("artifacts/a")).digest, (1, 1))
    kept = AsyncSnapshots(client.registry, cache, max_bytes=3_200)
    await kept.fetch("artifacts/c")
    contents = {path.read_bytes()[:1] for path in cache.glob("versions/*/files/f")}
    assert contents == {b"b", b"c"}


async def test_a_version_in_use_is_never_removed(client: AsyncClient, tmp_path: Path) -> None:
    for name in ("a", "b"):
        await publish(client, name, {"f": name.encode() * 1000})
    user = AsyncSnapshots(client.registry, tmp_path / "cache")
    held = await user.fetch("artifacts/a")
    await AsyncSnapshots(client.registry, tmp_path / "cache", max_bytes=1).fetch("artifacts/b")
    assert (held.folder / "f").exists()
    user.release(held.digest)
    await AsyncSnapshots(client.registry, tmp_path / "cache", max_bytes=1).fetch("artifacts/b")
    assert not (held.folder / "f").exists()


async def test_what_is_remembered_in_a_broken_way_is_forgotten(client: AsyncClient, tmp_path: Path) -> None:
    await publish(client, "base", {"a": b"1"})
    cache = tmp_path / "cache"
    await AsyncSnapshots(client.registry, cache).fetch("artifacts/base")
    (note,) = (cache / "names").iterdir()
    note.write_text("{")
    await AsyncSnapshots(client.registry, cache).fetch("artifacts/base")
    assert json.loads(note.read_text())["name"] == "artifacts/base"


async def test_a_cache_folder_that_cannot_be_used_is_a_failed_precondition(client: AsyncClient, tmp_path: Path) -> None:
    await publish(client, "base", {"a": b"1"})
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="cache folder"):
        await AsyncSnapshots(client.registry, tmp_path / "file" / "cache").fetch("artifacts/base")
