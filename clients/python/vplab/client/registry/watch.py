"""Following alias changes over connections that come and go."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.client.calls import Calls
from vplab.client.registry import convert
from vplab.client.registry.values import AliasChange
from vplab.errors import Aborted, Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown

if TYPE_CHECKING:
    from vplab.client.registry.area import AsyncRegistry

_STREAM_S = 3600.0
"""A watch is renewed every hour: a deadline on every call, and replicas share the watchers again."""
_SILENCE_S = 75.0
"""The registry sends a heartbeat at least every 30 s; after two missed ones the connection is taken for dead."""
_BACKOFF_S = (0.2, 5.0)

_PASSING = (Unavailable, DeadlineExceeded, Cancelled, Aborted, ResourceExhausted, Internal, Unknown)


async def current_revision(registry: "AsyncRegistry", artifact: str) -> int:
    """Return the registry's revision, so that a watch misses nothing even if its first connection fails."""
    backoff_s = _BACKOFF_S[0]
    while True:
        try:
            return (await registry.list_aliases(artifact)).revision
        except (Unavailable, DeadlineExceeded):
            backoff_s = await _pause(backoff_s)


async def resumed(
    calls: Calls, stub: pb_grpc.RegistryServiceStub, artifact: str, revision: int
) -> AsyncGenerator[AliasChange, None]:
    """Yield changes after ``revision`` for ever, resuming after the last revision that was seen."""
    backoff_s = _BACKOFF_S[0]
    while True:
        request = pb.WatchAliasesRequest(artifact=artifact, from_revision=revision)
        # Failing again and again would use up the budget of retries that the channel's other calls share.
        stream = calls.server_stream(
            stub.WatchAliases, request, timeout_s=None, default_s=_STREAM_S, wait_for_ready=True
        )
        try:
            async with aclosing(stream):
                while True:
                    async with asyncio.timeout(_SILENCE_S):
                        answer = await anext(stream)
                    backoff_s = _BACKOFF_S[0]
                    if answer.HasField("change") and answer.change.revision > revision:
                        revision = answer.change.revision
                        yield calls.converted(answer.change, convert.alias_change)
                    revision = max(revision, answer.revision)
        except (StopAsyncIteration, TimeoutError, *_PASSING):
            backoff_s = await _pause(backoff_s)


async def _pause(backoff_s: float) -> float:
    # Full jitter: a registry that comes back is not met by all its watchers at once.
    await asyncio.sleep(random.uniform(0.0, backoff_s))
    return min(backoff_s * 2, _BACKOFF_S[1])
