"""Training beside a real registry and embedding service with the shipped nano models, and small data sets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.segmentation_site import Site, as_png
from fakes.training_parts import training_config
from vplab.client import AsyncClient, AsyncSnapshots, ClientOptions, SegmentClass
from vplab.client.training.values import InlineDataset, TuningEvent, TuningJob, ValidatedImage
from vplab.registry import builtin_models
from vplab.runtime.server import running_server
from vplab.training.backends.client_bundles import ClientBundles
from vplab.training.backends.client_datasets import ClientDatasets
from vplab.training.backends.client_models import ClientModels
from vplab.training.backends.local_executor import LocalExecutor
from vplab.training.composition import open_training
from vplab.training.worker.messages import WorkerSettings
from vplab.vision.images import ImageLimits
from vplab.vision.synthesis import synthesize_inspection_set

NANO = Path(builtin_models.__file__).parent / "builtin"
SEGMENTER = "artifacts/nano-segmenter"


@dataclass
class TrainingSite:
    """The services a job needs, and clients of them."""

    site: Site
    client: AsyncClient
    executor: LocalExecutor

    async def ended(self, name: str, timeout_s: float = 1200.0) -> TuningJob:
        """Wait for a job's terminal event."""
        return (await self.events(name, timeout_s))[-1].event  # type: ignore[return-value]

    async def events(self, name: str, timeout_s: float = 1200.0) -> list[TuningEvent]:
        """Return a job's events up to the terminal one."""
        async with asyncio.timeout(timeout_s):
            return [event async for event in self.client.training.watch_tuning_job(name)]

    async def files(self, version: str) -> dict[str, str]:
        """Return the sha256 of each file of a version."""
        found = await self.client.registry.get_version(version)
        return {file.path: file.sha256 for file in found.manifest.files}


def worker_settings(site: Site, folder: Path, **changes: object) -> WorkerSettings:
    """Return settings for a worker beside a site."""
    values: dict[str, object] = {
        "registry_address": site.registry_address,
        "embedding_address": site.embedding_address,
        "cache_dir": folder,
        "device": "cpu",
        "num_threads": 1,
        "niceness": 0,
        "embedding_precision": "float16",
        "max_image_bytes": 32 << 20,
        "max_image_pixels": 100_000_000,
        "max_message_bytes": 32 << 20,
        "log_format": "json",
    }
    return WorkerSettings(**(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def nano_site(folder: Path) -> AsyncIterator[Site]:
    """Run a registry with the nano models and an embedding service."""
    site = Site(folder)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(site.registry.running())
        encoder = await site.publish_model(NANO / "nano-encoder", "nano-encoder")
        await site.publish_model(NANO / "nano-segmenter", "nano-segmenter", image_encoder=encoder)
        await stack.enter_async_context(site.embedding())
        yield site


@asynccontextmanager
async def training_beside(site: Site, **changes: object) -> AsyncIterator[TrainingSite]:
    """Serve training with a real worker process."""
    config = training_config(site.folder, **({"default_segmenter": SEGMENTER} | changes))
    addresses = {"registry": site.registry_address, "embedding": site.embedding_address}
    executor = LocalExecutor([worker_settings(site, config.cache_dir)], silence_s=config.worker_silence_s)
    async with AsyncClient(**addresses, options=ClientOptions()) as upstream:
        snapshots = AsyncSnapshots(upstream.registry, config.cache_dir / "models")
        limits = {"max_images": config.max_images, "max_inline_pixels": config.max_inline_pixels}
        datasets = ClientDatasets(upstream, snapshots, ImageLimits(), **limits, threads=2)
        work_dir, precision = config.cache_dir / "bundles", config.embedding_precision
        bundles = ClientBundles(upstream.registry, snapshots, work_dir, ImageLimits(), precision, 1)
        try:
            async with (
                open_training(config, datasets, ClientModels(upstream.registry), executor, bundles) as service,
                running_server([service.registration], config, service="training", ready=service.ready) as server,
                AsyncClient(training=server.address, **addresses, options=ClientOptions()) as client,
            ):
                yield TrainingSite(site, client, executor)
        finally:
            await executor.close()
            datasets.close()
            snapshots.close()


def scratches(num_images: int = 3, size_hw: tuple[int, int] = (128, 160), seed: int = 5) -> InlineDataset:
    """Return a small data set of one class, generated."""
    images = synthesize_inspection_set(num_images, size_hw, "patch", seed=seed)
    return InlineDataset(
        [SegmentClass(1, images[0].class_name)],
        [
            ValidatedImage(f"part-{index}.png", as_png(image.image_rgb), {1: image.mask})
            for index, image in enumerate(images)
        ],
    )
