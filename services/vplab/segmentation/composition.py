"""Puts the service together from its settings and backends; ``__main__`` and tests start here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from vplab.api.segmentation.v1 import segmentation_service_pb2_grpc as pb_grpc
from vplab.runtime.background import Background
from vplab.runtime.graph_sessions import serves_side_by_side
from vplab.runtime.onnx_session import OnnxSettings, num_cores, runs_on_cpu
from vplab.runtime.server import Registration, StartError
from vplab.runtime.server_info import ServedModel
from vplab.segmentation.adapters import Adapters
from vplab.segmentation.backends.onnx_banks import OnnxBankLoader
from vplab.segmentation.backends.onnx_segmenters import OnnxSegmenterLoader
from vplab.segmentation.config import SegmentationConfig
from vplab.segmentation.core import SegmentationCore
from vplab.segmentation.decode_queue import DecodeQueue, decode_batch
from vplab.segmentation.followed_names import follow_aliases
from vplab.segmentation.ports import Embedder, ModelSource, PromptSetStore
from vplab.segmentation.prompt_sets import PromptSets
from vplab.segmentation.segmenters import Segmenters
from vplab.segmentation.servicer import SegmentationServicer
from vplab.segmentation.targets import Targets
from vplab.segmentation.workers import Workers
from vplab.vision.images import ImageLimits

SERVICE_NAME = "vplab.api.segmentation.v1.SegmentationService"
# Room in a message for everything that is not logits.
_MESSAGE_MARGIN_BYTES = 4 << 20


@dataclass(frozen=True)
class SegmentationService:
    """Everything the server frame needs to serve."""

    registration: Registration
    segmenters: Segmenters
    adapters: Adapters

    def served_models(self) -> Sequence[ServedModel]:
        """Return the loaded segmenters and adapters."""
        return [
            ServedModel(role, version.model.name, version.model.digest, aliases, loaded.device)
            for role, pool in (("segmenter", self.segmenters), ("adapter", self.adapters))
            for version, loaded, aliases in pool.served()
        ]


@asynccontextmanager
async def open_segmentation(
    config: SegmentationConfig, source: ModelSource, store: PromptSetStore, embedder: Embedder
) -> AsyncIterator[SegmentationService]:
    """Start the device's queue, the threads and the background work; close them in the reverse order.

    Raises StartError if the cache folder cannot be used.
    """
    try:
        await asyncio.to_thread(config.cache_dir.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use {config.cache_dir}: {error.strerror or error}") from error
    async with AsyncExitStack() as stack:
        workers = Workers(config.worker_threads, config.quick_threads, config.max_waiting)
        stack.push_async_callback(workers.close)
        at_once = num_cores() if serves_side_by_side(_onnx(config)) else 1
        queue: DecodeQueue = DecodeQueue(
            decode_batch,
            name="decoder",
            capacity=config.queue_capacity,
            max_batch_size=config.max_batch_size,
            max_wait_s=config.max_batch_wait_s,
            batch_key=lambda item: item.batch_key,
            num_threads=at_once,
            num_background_threads=at_once if runs_on_cpu(_onnx(config)) else 0,
        )
        queue.start()
        stack.push_async_callback(queue.close)
        loader = OnnxSegmenterLoader(_onnx(config))
        segmenters = Segmenters(source, loader, config.max_segmenters)
        stack.push_async_callback(segmenters.close)
        banks = OnnxBankLoader(_onnx(config), config.adapter_bank_bytes) if config.adapter_bank_bytes else None
        adapters = Adapters(
            source, loader, banks, max_graph_bytes=config.adapter_cache_bytes, max_banks=config.max_segmenters
        )
        stack.push_async_callback(adapters.close)
        targets = Targets(
            embedder,
            workers,
            ImageLimits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels),
            cache_bytes=config.embedding_cache_bytes,
            max_tiles=config.max_tiles,
        )
        prompt_sets = PromptSets(
            store,
            segmenters,
            targets,
            workers,
            default_segmenter=config.default_segmenter,
            default_feature_encoder=config.default_feature_encoder,
            tile_side=config.tile_side,
            cache_bytes=config.reference_cache_bytes,
        )
        stack.callback(prompt_sets.close)
        core = SegmentationCore(
            segmenters,
            adapters,
            prompt_sets,
            targets,
            queue,
            workers,
            default_segmenter=config.default_segmenter,
            refines=config.refines,
            max_logits_bytes=max(0, config.max_send_bytes - _MESSAGE_MARGIN_BYTES),
            finishes_at_device=runs_on_cpu(_onnx(config)),
        )
        background = Background()
        stack.push_async_callback(background.close)
        background.start("aliases", follow_aliases(source, (segmenters.moved, adapters.moved)))
        if config.preload:
            background.start("preload", segmenters.preload(config.default_segmenter))
        servicer = SegmentationServicer(core, config.stream_frames_at_once)

        def add(server: Any) -> None:
            pb_grpc.add_SegmentationServiceServicer_to_server(servicer, server)

        yield SegmentationService(Registration(SERVICE_NAME, add), segmenters, adapters)


def _onnx(config: SegmentationConfig) -> OnnxSettings:
    return OnnxSettings(
        providers=config.providers,
        device_id=config.device_id,
        intra_op_threads=config.intra_op_threads,
        gpu_memory_limit_bytes=config.gpu_memory_limit_bytes,
        engine_cache=config.cache_dir / "tensorrt",
    )
