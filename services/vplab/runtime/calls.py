"""The one interceptor: everything that happens around a call, in one place and one order.

Request id, span, count and log line outermost; then errors become status; inside that the checks (credentials,
readiness, deadline) and the handler. One interceptor and not six, because the order is the point, and each further one
would wrap all four kinds of call again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import grpc
import structlog

from vplab.errors import (
    DataLoss,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
    VPLabError,
)
from vplab.runtime import metrics, request
from vplab.runtime.auth import Authenticator, client_of
from vplab.runtime.handlers import Exchange, unknown_method, wrap
from vplab.runtime.methods import UNKNOWN, Method, method_of
from vplab.runtime.tracing import NoTracer, Tracer
from vplab.wire.status import code_of, trailers_from_error

HEALTH_SERVICE: Final = "grpc.health.v1.Health"

_TIMEOUT_ROUNDING: Final = 0.01
_CLOCK_STEP_S: Final = 0.002

_log = structlog.get_logger(__name__)
_access_log = structlog.get_logger("vplab.access")


@dataclass(eq=False)
class _Call:
    """A call in progress."""

    method: Method
    context: Any
    exchange: Exchange
    request_id: str
    began: float
    task: "asyncio.Task[Any] | None" = field(default_factory=asyncio.current_task)
    ended_with: VPLabError | None = None

    def end(self, error: VPLabError) -> None:
        """Stop the handler and answer with ``error``."""
        if self.ended_with is None and self.task is not None:
            self.ended_with = error
            self.exchange.cancel(self.task)

    async def settle(self) -> None:
        """Leave the caller time to finish sending; from here on the call ends by itself."""
        self.task = None
        await self.exchange.linger()


@cache
def call_metrics(method: Method) -> metrics.CallMetrics:
    """Return the series of a method, which begin to exist when they are first asked for."""
    return metrics.CallMetrics(*method.labels, (code.name for code in grpc.StatusCode))


class CallFrame(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every call of one server; see the module.

    ``own_services`` are those of the frame itself: they answer while the service is not ready yet.
    """

    def __init__(
        self,
        *,
        max_send_bytes: int,
        max_calls_in_flight: int | None = None,
        default_deadline_s: float | None = None,
        authenticate: Authenticator | None = None,
        trusted_clients: Collection[str] = (),
        tracer: Tracer | None = None,
        own_services: Collection[str] = (),
    ) -> None:
        self.is_ready = True
        self._max_send_bytes = max_send_bytes
        self._max_calls_in_flight = max_calls_in_flight
        self._default_deadline_s = default_deadline_s
        self._authenticate = authenticate
        self._trusted_clients = frozenset(trusted_clients)
        self._tracer = tracer or NoTracer()
        self._own_services = frozenset(own_services)
        self._wrapped: dict[str, Any] = {}
        self._calls: set[_Call] = set()
        self._access_log = _access_log.bind()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the wrapped handler; gRPC calls this for each call."""
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # not kept: callers could fill the memory with names
                return unknown_method(self._around, UNKNOWN, lambda: _refuse_unknown(path))
            self._wrapped[path] = wrap(handler, method_of(path, handler), self._around, self._max_send_bytes)
        return self._wrapped[path]

    def end_watches(self) -> None:
        """End the calls that would last for ever, so that their callers go to another replica."""
        for call in list(self._calls):
            if call.method.is_watch:
                call.end(Unavailable("the server is stopping; watch again at another replica"))

    def end_all(self) -> None:
        """End every call that is left."""
        for call in list(self._calls):
            call.end(Unavailable("the server stopped before the call was done"))

    async def _around(
        self, method: Method, context: Any, work: Callable[[], Awaitable[bytes | None]], exchange: Exchange
    ) -> bytes | None:
        metadata = {key: value for key, value in context.invocation_metadata() or ()}
        proposed = metadata.get(request.REQUEST_ID_KEY)
        call_id = request.accept_request_id(proposed if isinstance(proposed, str) else None)
        call = _Call(method, context, exchange, call_id, time.monotonic())
        remaining_s = self._remaining_s(method, context)
        takes_tokens = self._authenticate is not None
        client = client_of(context, metadata, takes_tokens=takes_tokens, trusted=self._trusted_clients)
        deadline = None if remaining_s is None else call.began + remaining_s
        request.enter(call_id, deadline, client, request.accept_priority(metadata.get(request.PRIORITY_KEY)))
        structlog.contextvars.bind_contextvars(request_id=call_id)
        self._calls.add(call)
        call_metrics(method).began()
        code = grpc.StatusCode.OK
        with self._tracer.span(method.service, method.name, metadata, call_id) as span:
            try:
                return await self._answered(call, metadata, remaining_s, work)
            except asyncio.CancelledError:
                code = _code_of_cancellation(call)
                raise
            except BaseException:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            finally:
                code = _as_status_code(code)
                span.end_with(code)
                self._calls.discard(call)
                # After the answer is on its way: nobody has to wait for a line of the log.
                seconds = time.monotonic() - call.began
                asyncio.get_running_loop().call_soon(self._note_end, call, code, seconds, context.peer())

    async def _answered(
        self,
        call: _Call,
        metadata: dict[str, str | bytes],
        remaining_s: float | None,
        work: Callable[[], Awaitable[bytes | None]],
    ) -> bytes | None:
        """Run the checks and the work; an error that is ours leaves as the status it stands for."""
        context = call.context
        try:
            response = await self._checked(call, metadata, remaining_s, work)
        except asyncio.CancelledError:
            if call.ended_with is None or call.task is None:
                raise
            call.task.uncancel()
            await self._abort(call, call.ended_with)
        except grpc.aio.AbortError:
            raise  # the handler has sent its own status
        except Exception as error:
            await call.settle()
            await self._abort(call, self._as_ours(call, error))
        await call.settle()
        context.set_trailing_metadata((*(context.trailing_metadata() or ()), (request.REQUEST_ID_KEY, call.request_id)))
        return response

    async def _checked(
        self,
        call: _Call,
        metadata: dict[str, str | bytes],
        remaining_s: float | None,
        work: Callable[[], Awaitable[bytes | None]],
    ) -> bytes | None:
        service = call.method.service
        if self._authenticate is not None and service != HEALTH_SERVICE:
            self._authenticate(metadata)
        if not self.is_ready and service not in self._own_services and call.method is not UNKNOWN:
            raise Unavailable("the service is starting", metadata={"service": service}, retry_after_s=1.0)
        if self._is_full() and service not in self._own_services:
            raise ResourceExhausted(f"the server has {self._max_calls_in_flight} calls in flight", retry_after_s=0.5)
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceeded("the deadline passed before any work began")
        # gRPC itself ends a call at the caller's deadline; only the one we gave is ours to watch.
        own_limit_s = remaining_s if call.context.time_remaining() is None else None
        try:
            async with asyncio.timeout(own_limit_s) as limit:
                return await work()
        except TimeoutError as error:
            if not limit.expired():
                raise
            message = f"the call had no deadline and took longer than the default of {own_limit_s} s"
            raise DeadlineExceeded(message) from error

    def _is_full(self) -> bool:
        limit = self._max_calls_in_flight
        if limit is None or len(self._calls) <= limit:
            return False
        return sum(call.method.service not in self._own_services for call in self._calls) > limit

    def _remaining_s(self, method: Method, context: Any) -> float | None:
        remaining_s: float | None = context.time_remaining()
        return self._default_deadline_s if remaining_s is None and method.kind == "unary" else remaining_s

    def _as_ours(self, call: _Call, error: Exception) -> VPLabError:
        if isinstance(error, Internal | Unknown | DataLoss):
            _log.error("call failed", method=call.method.name, reason=error.reason, exc_info=error)
            error.metadata = {**error.metadata, "request_id": call.request_id}
            return error
        if isinstance(error, VPLabError):
            return error
        if isinstance(error, NotImplementedError) and call.context.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented(f"this server does not offer {call.method.name}")  # the generated servicer's answer
        _log.error("unexpected exception", method=call.method.name, exc_info=error)
        # The text of an exception may hold paths, addresses or data: it stays in the log.
        return Internal("internal error; the request id finds it in the log", metadata={"request_id": call.request_id})

    async def _abort(self, call: _Call, error: VPLabError) -> None:
        trailers = (*trailers_from_error(error), (request.REQUEST_ID_KEY, call.request_id))
        try:
            await call.context.abort(code_of(error), error.message[:512], trailers)
        except grpc.aio.InternalError as gone:
            raise asyncio.CancelledError from gone  # the caller went away before the status was on its way

    def _note_end(self, call: _Call, code: grpc.StatusCode, seconds: float, peer: str) -> None:
        call_metrics(call.method).ended(code.name, seconds)
        # Probes come every few seconds from every node.
        write = self._access_log.debug if call.method.service == HEALTH_SERVICE else self._access_log.info
        write(
            "call",
            service_name=call.method.service,
            method=call.method.name,
            code=code.name,
            seconds=round(seconds, 6),
            peer=peer,
        )


async def _refuse_unknown(path: str) -> None:
    raise Unimplemented(f"this server has no method {path[:200]!r}", metadata={"method": path[:200]})


def _code_of_cancellation(call: _Call) -> grpc.StatusCode:
    remaining_s = call.context.time_remaining()
    if remaining_s is None:
        return grpc.StatusCode.CANCELLED
    # gRPC rounds a timeout up to three digits on its way, so the caller's own clock can end the call first.
    given_s = time.monotonic() - call.began + remaining_s
    is_late = remaining_s <= _TIMEOUT_ROUNDING * given_s + _CLOCK_STEP_S
    return grpc.StatusCode.DEADLINE_EXCEEDED if is_late else grpc.StatusCode.CANCELLED


def _as_status_code(code: Any) -> grpc.StatusCode:
    # gRPC's context answers with the bare number after an abort.
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.UNKNOWN)  # type: ignore[index]
