"""Puts the service together from its settings and a source of models; ``__main__`` and tests start here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obstore.store import LocalStore

from vplab.api.embedding.v1 import embedding_service_pb2_grpc as pb_grpc
from vplab.embedding.backends.obstore_embeddings import ObstoreEmbeddings, open_bucket
from vplab.embedding.backends.onnx_encoders import OnnxEncoderLoader
from vplab.embedding.backends.sql_jobs import SqlJobs
from vplab.embedding.cache import EmbeddingCache, HostCache
from vplab.embedding.config import EmbeddingConfig
from vplab.embedding.core import EmbeddingCore, EncodeQueue, encode_batch
from vplab.embedding.encoder_directory import EncoderDirectory
from vplab.embedding.encoder_pool import EncoderPool
from vplab.embedding.jobs import PrecomputeJobs
from vplab.embedding.ports import ModelSource
from vplab.embedding.preparation import ImagePreparation
from vplab.embedding.servicer import EmbeddingServicer
from vplab.runtime.background import Background
from vplab.runtime.graph_sessions import serves_side_by_side
from vplab.runtime.onnx_session import OnnxSettings, num_cores, runs_on_cpu
from vplab.runtime.server import Registration, StartError
from vplab.runtime.server_info import ServedModel
from vplab.vision.images import ImageLimits

SERVICE_NAME = "vplab.api.embedding.v1.EmbeddingService"
GPU_BATCH = 4


@dataclass(frozen=True)
class EmbeddingService:
    """Everything the server frame needs to serve."""

    registration: Registration
    directory: EncoderDirectory

    def served_models(self) -> Sequence[ServedModel]:
        """Return the loaded encoders."""
        return [
            ServedModel("image_encoder", status.version.model.name, status.version.model.digest, aliases)
            for status, aliases in self.directory.served()
        ]


@asynccontextmanager
async def open_embedding(config: EmbeddingConfig, source: ModelSource) -> AsyncIterator[EmbeddingService]:
    """Open the stores, start the device's queue and the background work; close them in the reverse order.

    Raises StartError if the cache folder cannot be used.
    """
    try:
        await asyncio.to_thread(config.cache_dir.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use {config.cache_dir}: {error.strerror or error}") from error
    async with AsyncExitStack() as stack:
        background = Background()
        pool = EncoderPool(source, OnnxEncoderLoader(_onnx(config)), config.max_encoders, config.max_encoder_bytes)
        stack.callback(pool.close)
        preparation = ImagePreparation(_limits(config), config.decode_threads, config.max_waiting_bytes)
        stack.push_async_callback(preparation.close)
        store = await _store(config, stack, background)
        cache = EmbeddingCache(HostCache(config.host_cache_bytes), store)
        stack.push_async_callback(cache.close)
        at_once = num_cores() if serves_side_by_side(_onnx(config)) else 1
        queue: EncodeQueue = EncodeQueue(
            encode_batch,
            name="encoder",
            capacity=config.queue_capacity,
            max_batch_size=config.max_batch_size or (1 if runs_on_cpu(_onnx(config)) else GPU_BATCH),
            max_wait_s=config.max_batch_wait_s,
            batch_key=lambda item: id(item.encoder),
            num_threads=at_once,
            num_background_threads=at_once if runs_on_cpu(_onnx(config)) else 0,
        )
        queue.start()
        stack.push_async_callback(queue.close)
        directory = EncoderDirectory(source, pool)
        stack.push_async_callback(directory.close)
        core = EmbeddingCore(directory, pool, cache, preparation, queue, works_at_device=runs_on_cpu(_onnx(config)))
        jobs = await _jobs(config, source, core, stack)
        stack.push_async_callback(background.close)
        for name, work in (
            ("aliases", directory.follow()),
            ("preload", directory.preload(config.preload)),
            ("jobs", jobs.run()),
        ):
            background.start(name, work)
        servicer = EmbeddingServicer(core, jobs, config.max_send_bytes)

        def add(server: Any) -> None:
            pb_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)

        yield EmbeddingService(Registration(SERVICE_NAME, add), directory)


async def _store(config: EmbeddingConfig, stack: AsyncExitStack, background: Background) -> ObstoreEmbeddings | None:
    if not config.store_bytes:
        return None
    if config.store_url is not None:
        objects = open_bucket(config.store_url)
    else:
        objects = LocalStore(config.cache_dir / "embeddings", mkdir=True)
    store = ObstoreEmbeddings(objects, config.store_bytes)
    stack.callback(store.close)
    background.start("index", store.index())
    return store


async def _jobs(
    config: EmbeddingConfig, source: ModelSource, core: EmbeddingCore, stack: AsyncExitStack
) -> PrecomputeJobs:
    store = SqlJobs(config.database_url or _sqlite_url(config.cache_dir / "jobs.sqlite"))
    stack.push_async_callback(store.close)
    await store.open()
    return PrecomputeJobs(
        store, source, core, num_at_once=config.job_images_at_once, max_image_bytes=config.max_image_bytes
    )


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"


def _limits(config: EmbeddingConfig) -> ImageLimits:
    return ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels)


def _onnx(config: EmbeddingConfig) -> OnnxSettings:
    return OnnxSettings(
        providers=config.providers,
        device_id=config.device_id,
        intra_op_threads=config.intra_op_threads,
        gpu_memory_limit_bytes=config.gpu_memory_limit_bytes,
        engine_cache=config.cache_dir / "tensorrt",
    )
