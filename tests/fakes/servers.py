"""A bare gRPC server around one servicer, for tests of what a client makes of its answers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio


@asynccontextmanager
async def serving(
    *registrations: tuple[Callable[[Any, grpc.aio.Server], None], Any], port: int = 0
) -> AsyncIterator[str]:
    """Serve (add function, servicer) pairs and give the address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for add, servicer in registrations:
        add(servicer, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
