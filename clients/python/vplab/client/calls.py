"""One call of any kind: deadline, headers, and our errors instead of gRPC's."""

import asyncio
import sys
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio

from vplab import errors
from vplab.client.first_status import FirstStatus
from vplab.client.options import ClientOptions
from vplab.errors import Cancelled, DeadlineExceeded, FailedPrecondition, Internal, InvalidInput, Unavailable
from vplab.wire.status import error_from_call

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Value = TypeVar("Value")

REQUEST_ID_KEY = "x-request-id"
"""Header that names a call in the logs of every service it passes through."""
CLIENT_KEY = "x-vplab-client"
"""Header that names whoever a service calls for."""
PRIORITY_KEY = "x-vplab-priority"
"""Header that lowers how urgent a call is."""
_PLAIN = " !#$&'()*+,/:;=?@[]"
"""What a header may hold beside letters and digits; the rest of a name is percent-encoded."""


@dataclass(frozen=True)
class Calls:
    """Makes the calls of one area's channel.

    Every method raises a kind of ``vplab.errors`` and nothing of gRPC's; an answer against the contract is Internal.
    """

    area: str
    address: str
    options: ClientOptions

    async def unary(
        self, method: Any, request: Any, convert: Callable[[Any], Value], *, timeout_s: float | None, default_s: float
    ) -> Value:
        """Call a method with one request and one answer. ``timeout_s`` overrides the method's own ``default_s``."""
        deadline_s, metadata = self._deadline_s(timeout_s, default_s), self._metadata()
        with self._translated(metadata):
            answer = await method(request, timeout=deadline_s, metadata=metadata)
        return self.converted(answer, convert)

    async def client_stream(
        self,
        method: Any,
        requests: AsyncIterator[Any],
        convert: Callable[[Any], Value],
        *,
        timeout_s: float | None,
        default_s: float,
    ) -> Value:
        """Call a method that takes a stream and gives one answer, which may come before the stream's end."""
        deadline_s, metadata = self._deadline_s(timeout_s, default_s), self._metadata()
        source = _Source(requests)
        with self._translated(metadata, source):
            call = method(source.read(), timeout=deadline_s, metadata=metadata)
            source.told = FirstStatus(call)
            try:
                answer = await call
            except grpc.aio.AioRpcError as error:
                if source.told.is_ok:
                    raise Unavailable(f"the {self.area} service answered early and its answer was lost") from error
                raise
        return self.converted(answer, convert)

    async def server_stream(
        self,
        method: Any,
        request: Any,
        *,
        timeout_s: float | None,
        default_s: float,
        wait_for_ready: bool = False,
    ) -> AsyncGenerator[Any, None]:
        """Call a method that answers with a stream; leaving the iterator cancels the call.

        ``wait_for_ready`` waits for a server that cannot be reached, until the deadline, instead of failing.
        """
        deadline_s, metadata = self._deadline_s(timeout_s, default_s), self._metadata()
        with self._translated(metadata):
            call = method(request, timeout=deadline_s, metadata=metadata, wait_for_ready=wait_for_ready)
            try:
                async for answer in call:
                    yield answer
            finally:
                call.cancel()

    async def both_streams(
        self, method: Any, requests: AsyncIterator[Any], *, timeout_s: float | None, default_s: float
    ) -> AsyncGenerator[Any, None]:
        """Call a method with a stream each way; an error of ``requests`` ends the call and is raised here."""
        deadline_s, metadata = self._deadline_s(timeout_s, default_s), self._metadata()
        source = _Source(requests)
        with self._translated(metadata, source):
            call = method(source.read(), timeout=deadline_s, metadata=metadata)
            source.told = FirstStatus(call)
            try:
                async for answer in call:
                    yield answer
            except grpc.aio.AioRpcError:
                if not source.told.is_ok:
                    raise
            finally:
                call.cancel()

    def converted(self, answer: Answer, convert: Callable[[Answer], Value]) -> Value:
        """Convert an answer; one that does not fit the contract is the server's fault, not the caller's input."""
        try:
            return convert(answer)
        except InvalidInput as error:
            where = f"{error.violations[0].field}: " if error.violations else ""
            message = f"the {self.area} service at {self.address} answered against the contract: {where}{error.message}"
            raise Internal(message) from error

    def _deadline_s(self, timeout_s: float | None, default_s: float) -> float:
        chosen = next(s for s in (timeout_s, self.options.timeout_s, default_s) if s is not None)
        left = self.options.time_remaining_s() if self.options.time_remaining_s else None
        if left is not None and left <= 0:
            raise DeadlineExceeded(f"no time was left to call the {self.area} service")
        return chosen if left is None else min(chosen, left)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        request_id = (self.options.request_id() if self.options.request_id else "") or uuid.uuid4().hex
        own: list[tuple[str, str]] = [(REQUEST_ID_KEY, request_id)]
        if self.options.bearer_token:
            own.append(("authorization", f"Bearer {self.options.bearer_token}"))
        client = self.options.client() if self.options.client else ""
        if client:
            own.append((CLIENT_KEY, quote(client, safe=_PLAIN)))
        priority = self.options.priority() if callable(self.options.priority) else self.options.priority
        if priority:
            own.append((PRIORITY_KEY, priority))
        return (*own, *_trace_context(), *self.options.metadata)

    @contextmanager
    def _translated(self, metadata: tuple[tuple[str, str], ...], source: "_Source | None" = None) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            if source is not None and source.error is not None:
                raise source.error from error
            told = source.told.error if source is not None and source.told is not None else None
            raise self._error(told or error, metadata[0][1]) from error
        except asyncio.CancelledError as error:
            if source is not None and source.error is not None:
                raise source.error from error
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Closing a channel looks like a cancellation to its calls, though nobody cancelled the caller.
            raise Cancelled(f"the client of the {self.area} service was closed during the call") from error
        except grpc.aio.UsageError as error:
            raise FailedPrecondition(f"the client of the {self.area} service is closed") from error

    def _error(self, error: grpc.aio.AioRpcError, request_id: str) -> errors.VPLabError:
        trailers = error.trailing_metadata()
        ours = error_from_call(error.code(), error.details(), list(trailers) if trailers else [])  # type: ignore[arg-type]
        ours.metadata.setdefault("request_id", request_id)
        if isinstance(ours, Unavailable) and "service" not in ours.metadata:
            ours.metadata["service"] = self.area
            ours.message = f"the {self.area} service at {self.address} cannot be reached: {ours.message}"
            ours.args = (ours.message,)
        return ours


def _trace_context() -> tuple[tuple[str, str], ...]:
    """Return the headers that tie a call to the span it is made in; none where nobody loaded OpenTelemetry."""
    propagate = sys.modules.get("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    return tuple(carrier.items())


class _Source:
    """A request stream that remembers why it failed: gRPC only cancels the call and drops the reason."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests
        self.error: Exception | None = None
        self.told: FirstStatus | None = None

    async def read(self) -> AsyncIterator[Any]:
        try:
            async for request in self._requests:
                yield request
        except Exception as error:
            self.error = error
            raise
