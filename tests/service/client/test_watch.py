"""A watch of aliases over a registry that goes away and comes back."""

import asyncio
import socket
from contextlib import aclosing
from pathlib import Path

from fakes.registry_process import RegistryProcess, registry_config
from vplab.client import AsyncClient, ClientOptions
from vplab.client.registry.values import AliasChange, Manifest

PRODUCTION = "artifacts/base/aliases/production"


async def publish(client: AsyncClient, contents: list[bytes]) -> list[str]:
    await client.registry.create_artifact("base", "encoder")
    names = []
    for content in contents:
        file = await client.registry.upload_bytes(content, as_path="a")
        manifest = Manifest((file,), metrics={"parity_passed": 1.0})
        names.append((await client.registry.publish_version("artifacts/base", manifest)).name)
    return names


async def take(changes: list[AliasChange], count: int) -> None:
    async with asyncio.timeout(30):
        while len(changes) < count:
            await asyncio.sleep(0.02)


async def test_a_watch_sees_each_change_once_and_in_order_across_restarts(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = RegistryProcess(registry_config(tmp_path / "registry", listen=f"127.0.0.1:{port}"))
    seen: list[AliasChange] = []

    async with (
        AsyncClient(registry=f"127.0.0.1:{port}", options=ClientOptions()) as watching,
        AsyncClient(registry=f"127.0.0.1:{port}", options=ClientOptions()) as client,
    ):

        async def watch() -> None:
            async with aclosing(watching.registry.watch_aliases()) as changes:
                async for change in changes:
                    seen.append(change)

        async with process.running():
            one, two = await publish(client, [b"1", b"2"])
            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0.3)
            await client.registry.set_alias(PRODUCTION, one)
            await take(seen, 1)
        await asyncio.sleep(0.5)
        async with process.running():
            for version in (two, one):
                await client.registry.set_alias(PRODUCTION, version, etag="*")
            await take(seen, 3)
            await client.registry.set_alias(PRODUCTION, two, etag="*")
            await take(seen, 4)
        watcher.cancel()
        await asyncio.wait([watcher])
    assert [change.version for change in seen] == [one, two, one, two]
    revisions = [change.revision for change in seen]
    assert revisions == sorted(set(revisions))


async def test_a_watch_that_starts_before_the_registry_misses_nothing(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = RegistryProcess(registry_config(tmp_path / "registry", listen=f"127.0.0.1:{port}"))
    async with AsyncClient(registry=f"127.0.0.1:{port}", options=ClientOptions()) as client:
        changes = client.registry.watch_aliases("artifacts/base", from_revision=0)
        first = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0.3)
        async with process.running():
            (one,) = await publish(client, [b"1"])
            await client.registry.set_alias(PRODUCTION, one)
            async with asyncio.timeout(30):
                assert (await first).version == one
            await changes.aclose()  # type: ignore[attr-defined]
