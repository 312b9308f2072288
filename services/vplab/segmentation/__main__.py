"""Starts the segmentation service: ``python -m vplab.segmentation``."""

from dataclasses import replace
from typing import Final

from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.errors import InvalidInput
from vplab.runtime import request
from vplab.runtime.process import run_service
from vplab.runtime.server import serve
from vplab.runtime.settings import SettingsError
from vplab.segmentation.backends.client_models import ClientModels
from vplab.segmentation.backends.client_prompt_sets import ClientPromptSets
from vplab.segmentation.backends.grpc_embedding import GrpcEmbedding
from vplab.segmentation.composition import open_segmentation
from vplab.segmentation.config import SegmentationConfig

_SWITCH_INTERVAL_S: Final = 1e-4
"""A click waits for the interpreter when its graph has run: Python's own 5 ms would be a third of it. Where work takes
longer, as in embedding, handing on so often costs a few percent of processor time and gains nothing."""


def client_options(config: SegmentationConfig) -> ClientOptions:
    """Return how this service calls others: with all that they may know about the call it does so for."""
    return replace(
        ClientOptions.from_environment(),
        request_id=request.request_id,
        client=request.client,
        priority=request.priority_to_pass_on,
        time_remaining_s=request.time_remaining_s,
        max_message_bytes=config.max_receive_bytes,
    )


async def start(config: SegmentationConfig) -> None:
    """Serve until a signal."""
    addresses = {"registry": config.registry_address, "embedding": config.embedding_address}
    async with AsyncClient(**addresses, options=client_options(config)) as client:
        try:
            registry, embedding = client.registry, client.embedding
        except InvalidInput as error:
            raise SettingsError(error.message) from error
        snapshots = AsyncSnapshots(registry, config.cache_dir / "models")
        try:
            source = ClientModels(registry, snapshots, config.cache_dir / "encoders")
            store = ClientPromptSets(registry, snapshots, config.cache_dir / "names")
            embedder = GrpcEmbedding(embedding, config.embedding_precision)
            async with open_segmentation(config, source, store, embedder) as service:
                await serve([service.registration], config, service="segmentation", served_models=service.served_models)
        finally:
            snapshots.close()


if __name__ == "__main__":
    run_service("segmentation", SegmentationConfig, start, switch_interval_s=_SWITCH_INTERVAL_S)
