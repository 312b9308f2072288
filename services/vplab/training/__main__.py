"""Starts the training service: ``python -m vplab.training``."""

from dataclasses import replace

from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions
from vplab.errors import InvalidInput
from vplab.runtime import request
from vplab.runtime.onnx_session import num_gpus
from vplab.runtime.process import run_service
from vplab.runtime.server import serve
from vplab.runtime.settings import SettingsError
from vplab.training.backends.absent_executor import AbsentExecutor
from vplab.training.backends.client_bundles import ClientBundles
from vplab.training.backends.client_datasets import ClientDatasets
from vplab.training.backends.client_models import ClientModels
from vplab.training.backends.local_executor import LocalExecutor
from vplab.training.composition import open_training
from vplab.training.config import TrainingConfig
from vplab.training.worker.messages import WorkerSettings
from vplab.vision.images import ImageLimits


async def start(config: TrainingConfig) -> None:
    """Serve until a signal."""
    options = replace(
        ClientOptions.from_environment(),
        request_id=request.request_id,
        time_remaining_s=request.time_remaining_s,
        max_message_bytes=config.max_receive_bytes,
    )
    addresses = {"registry": config.registry_address, "embedding": config.embedding_address}
    async with AsyncClient(**addresses, options=options) as client:
        try:
            registry = client.registry
            if config.trains:
                _ = client.embedding  # its address, which a worker would miss only at its first job
        except InvalidInput as error:
            raise SettingsError(error.message) from error
        executor = _executor(config, client)
        snapshots = AsyncSnapshots(registry, config.cache_dir / "models")
        limits = ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)
        work_dir, precision = config.cache_dir / "bundles", config.embedding_precision
        bundles = ClientBundles(registry, snapshots, work_dir, limits, precision, config.worker_threads)
        datasets = ClientDatasets(
            client,
            snapshots,
            limits,
            max_images=config.max_images,
            max_inline_pixels=config.max_inline_pixels,
            threads=config.worker_threads,
        )
        warm_up = (lambda: executor.warm_up(config.default_segmenter)) if config.warm_start else None
        try:
            models = ClientModels(registry)
            async with open_training(config, datasets, models, executor, bundles, warm_up) as service:
                await serve([service.registration], config, service="training", ready=service.ready)
        finally:
            await executor.close()
            datasets.close()
            snapshots.close()


def _executor(config: TrainingConfig, client: AsyncClient) -> LocalExecutor | AbsentExecutor:
    if not config.trains:
        return AbsentExecutor(missing=None)
    devices = config.devices or (("cuda:0",) if num_gpus() > 0 else ("cpu",))
    settings = [_worker_settings(config, client, device) for device in devices]
    executor = LocalExecutor(settings, silence_s=config.worker_silence_s, idle_s=config.worker_idle_s)
    missing = executor.missing_package()
    return executor if missing is None else AbsentExecutor(missing)


def _worker_settings(config: TrainingConfig, client: AsyncClient, device: str) -> WorkerSettings:
    return WorkerSettings(
        registry_address=client.addresses["registry"],
        embedding_address=client.addresses["embedding"],
        cache_dir=config.cache_dir,
        graph_dir=config.graph_dir,
        device=device,
        num_threads=config.worker_threads,
        niceness=config.worker_niceness,
        embedding_precision=config.embedding_precision,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        max_message_bytes=config.max_receive_bytes,
        log_level=config.log_level,
        log_format=config.log_format,
    )


if __name__ == "__main__":
    run_service("training", TrainingConfig, start)
