"""An embedding service over a real channel, and pictures to send it."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import grpc
import numpy as np
from PIL import Image

from fakes.fake_models import FakeModelSource
from vplab.api.embedding.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from vplab.embedding.composition import open_embedding
from vplab.embedding.config import EmbeddingConfig
from vplab.runtime.server import running_server

LIMIT = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]


@dataclass
class Serving:
    """A running service and what a test may do with it."""

    stub: EmbeddingServiceStub
    source: FakeModelSource
    address: str
    config: EmbeddingConfig


Serve = Callable[..., AbstractAsyncContextManager[Serving]]
"""Starts a service with settings, given by name, over those that suit a test."""


def png(seed: int = 0, height: int = 60, width: int = 90) -> bytes:
    """Return a small image file; seeds differ in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@asynccontextmanager
async def serve_embedding(source: FakeModelSource, **settings: object) -> AsyncIterator[Serving]:
    """Run a service over a source of models while the context lasts."""
    values = {"listen": "127.0.0.1:0", "intra_op_threads": 1} | settings
    config = EmbeddingConfig(**values)
    async with (
        open_embedding(config, source) as service,
        running_server(
            [service.registration], config, service="embedding", served_models=service.served_models
        ) as server,
        grpc.aio.insecure_channel(server.address, options=LIMIT) as channel,
    ):
        yield Serving(EmbeddingServiceStub(channel), source, server.address, config)
