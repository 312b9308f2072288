"""Starts the registry: ``python -m vplab.registry``."""

from vplab.registry.composition import open_registry
from vplab.registry.config import RegistryConfig
from vplab.runtime.process import run_service
from vplab.runtime.server import serve


async def start(config: RegistryConfig) -> None:
    async with open_registry(config) as registry:
        await serve([registry.registration], config, service="registry", ready=registry.ready)


if __name__ == "__main__":
    run_service("registry", RegistryConfig, start)
