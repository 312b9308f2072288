"""A real registry on a folder, to be stopped and started again."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vplab.registry.composition import open_registry
from vplab.registry.config import RegistryConfig
from vplab.runtime.server import RunningServer, running_server


@dataclass(frozen=True)
class RegistryProcess:
    """A registry that can be stopped and started again on the same data and address."""

    config: RegistryConfig

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RunningServer]:
        """Serve while the context lasts."""
        async with (
            open_registry(self.config) as service,
            running_server([service.registration], self.config, service="registry", ready=service.ready) as server,
        ):
            yield server


def registry_config(folder: Path, **changes: object) -> RegistryConfig:
    """Return settings for a registry without models, collection or a long drain."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "database_url": f"sqlite:///{folder}/registry.db",
        "blob_url": (folder / "blobs").as_uri(),
        "builtin_models": False,
        "gc_interval_hours": 0,
        "drain_grace_s": 0.2,
    }
    return RegistryConfig(**(settings | changes))  # type: ignore[arg-type]


@contextmanager
def registry_in_a_thread(folder: Path) -> Iterator[str]:
    """Serve for programs that have an event loop of their own; gives the address."""
    loop, stop, addresses = asyncio.new_event_loop(), asyncio.Event(), list[str]()
    ready = threading.Event()

    async def serve() -> None:
        try:
            async with RegistryProcess(registry_config(folder)).running() as server:
                addresses.append(server.address)
                ready.set()
                await stop.wait()
        finally:
            ready.set()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="registry")
    thread.start()
    ready.wait()
    try:
        yield addresses[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
