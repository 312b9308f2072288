"""Starts the embedding service: ``python -m vplab.embedding``."""

from dataclasses import replace

from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.embedding.backends.client_models import ClientModels
from vplab.embedding.composition import open_embedding
from vplab.embedding.config import EmbeddingConfig
from vplab.errors import InvalidInput
from vplab.runtime import request
from vplab.runtime.process import run_service
from vplab.runtime.server import serve
from vplab.runtime.settings import SettingsError


async def start(config: EmbeddingConfig) -> None:
    """Serve until a signal."""
    options = replace(
        ClientOptions.from_environment(),
        request_id=request.request_id,
        time_remaining_s=request.time_remaining_s,
        max_message_bytes=config.max_receive_bytes,
    )
    async with AsyncClient(registry=config.registry_address, options=options) as client:
        try:
            registry = client.registry
        except InvalidInput as error:
            raise SettingsError(error.message) from error
        snapshots = AsyncSnapshots(registry, config.cache_dir / "models")
        try:
            async with open_embedding(config, ClientModels(registry, snapshots)) as service:
                await serve([service.registration], config, service="embedding", served_models=service.served_models)
        finally:
            snapshots.close()


if __name__ == "__main__":
    run_service("embedding", EmbeddingConfig, start)
