"""A real registry on a folder, to be stopped and started again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
