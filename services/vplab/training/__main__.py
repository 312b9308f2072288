"""Starts the training service: ``python -m vplab.training``."""

from dataclasses import replace

from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.errors import InvalidInput
from vplab.runtime import request
from vplab.runtime.process import run_service
from vplab.runtime.server import serve
from vplab.runtime.settings import SettingsError
from vplab.training.backends.absent_executor import AbsentExecutor
from vplab.training.backends.client_datasets import ClientDatasets
from vplab.training.backends.client_models import ClientModels
from vplab.training.composition import open_training
from vplab.training.config import TrainingConfig
from vplab.vision.images import ImageLimits


async def start(config: TrainingConfig) -> None:
    """Serve until a signal."""
    options = replace(
        ClientOptions.from_environment(),
        request_id=request.request_id,
        time_remaining_s=request.time_remaining_s,
        max_message_bytes=config.max_receive_bytes,
    )
    async with AsyncClient(
        registry=config.registry_address, embedding=config.embedding_address, options=options
    ) as client:
        try:
            registry = client.registry
        except InvalidInput as error:
            raise SettingsError(error.message) from error
        snapshots = AsyncSnapshots(registry, config.cache_dir / "models")
        limits = ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        datasets = ClientDatasets(
            client,
            snapshots,
            limits,
            max_inline_pixels=config.max_inline_pixels,
            threads=config.worker_threads,
        )
        executor = AbsentExecutor(missing="a trainer")
        try:
            async with open_training(config, datasets, ClientModels(registry), executor) as service:
                await serve([service.registration], config, service="training", ready=service.ready)
        finally:
            datasets.close()
            snapshots.close()


if __name__ == "__main__":
    run_service("training", TrainingConfig, start)
