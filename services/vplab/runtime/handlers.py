"""Stands around a handler of any of the four kinds, so that nothing escapes: not even a request that does not parse.

Unary messages are parsed and serialised here rather than by gRPC, which answers UNKNOWN with the exception's name when
that fails.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError

from vplab.errors import InvalidInput, ResourceExhausted
from vplab.runtime.methods import Method

# grpc.aio clients report INTERNAL instead of our status if it reaches them while they still send messages. Remove this
# once https://github.com/grpc/grpc/issues/36066 is mended in the oldest client we support.
_LINGER_S: Final = 0.2


class Around(Protocol):
    """Runs the work of one call and deals with whatever it raises."""

    def __call__(
        self, method: Method, context: Any, work: Callable[[], Awaitable[bytes | None]], exchange: "Exchange"
    ) -> Awaitable[bytes | None]:
        """Return what ``work`` returns: the serialised response of a unary answer, None for a stream."""


class Exchange:
    """The messages of one call: iterates over those a caller streams to us, and writes those of a streamed answer."""

    def __init__(self, source: AsyncIterator[Any] | None = None) -> None:
        self._source = source
        self._is_reading = False
        self._is_writing = False
        self._ends_after_write = False

    def __aiter__(self) -> "Exchange":
        return self

    async def __anext__(self) -> Any:
        if self._source is None:
            raise StopAsyncIteration
        self._is_reading = True
        try:
            return await anext(self._source)
        except StopAsyncIteration:
            self._source = None
            raise
        except DecodeError as error:
            self._source = None
            raise _unreadable() from error
        finally:
            self._is_reading = False

    async def write(self, context: Any, data: bytes) -> None:
        """Send one message of the answer. A caller who went away meanwhile cancels the call."""
        self._is_writing = True
        try:
            await context.write(data)
        except grpc.aio.InternalError as error:
            raise asyncio.CancelledError from error
        finally:
            self._is_writing = False
        if self._ends_after_write:
            raise asyncio.CancelledError

    def cancel(self, task: "asyncio.Task[Any]") -> None:
        """Cancel the call's task, but not within a write: gRPC could then send no status any more."""
        if self._is_writing:
            self._ends_after_write = True
        else:
            task.cancel()

    async def linger(self) -> None:
        """Read what is still under way, for a short while, before a call ends early."""
        if self._source is None or self._is_reading:
            return
        try:
            async with asyncio.timeout(_LINGER_S):
                async for _ in self:
                    pass
        except (TimeoutError, InvalidInput):
            return


def wrap(handler: Any, method: Method, around: Around, max_send_bytes: int) -> Any:
    """Return a handler of the same kind whose whole call runs inside ``around``."""
    if handler.response_streaming:
        return _wrap_response_stream(handler, method, around, max_send_bytes)
    behave = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def answer(request: Any, context: Any) -> bytes | None:
        exchange = Exchange(request if handler.request_streaming else None)

        async def work() -> bytes:
            response = await behave(exchange if handler.request_streaming else _parsed(handler, request), context)
            return _serialized(handler, response, max_send_bytes)

        return await around(method, context, work, exchange)

    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(answer, handler.request_deserializer, None)
    return grpc.unary_unary_rpc_method_handler(answer, None, None)


def _wrap_response_stream(handler: Any, method: Method, around: Around, max_send_bytes: int) -> Any:
    behave = handler.stream_stream if handler.request_streaming else handler.unary_stream
    # A handler that writes by itself hands messages to gRPC, which then needs the serialiser.
    is_generator = inspect.isasyncgenfunction(behave)

    async def answer(request: Any, context: Any) -> None:
        exchange = Exchange(request if handler.request_streaming else None)

        async def work() -> None:
            responses = behave(exchange if handler.request_streaming else _parsed(handler, request), context)
            if not is_generator:
                await responses
                return
            # aclosing: a cancelled call must run the generator's cleanup now, not when it is collected.
            async with aclosing(responses):
                async for response in responses:
                    await exchange.write(context, _serialized(handler, response, max_send_bytes))

        await around(method, context, work, exchange)

    serializer = None if is_generator else handler.response_serializer
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, serializer)
    return grpc.unary_stream_rpc_method_handler(answer, None, serializer)


def unknown_method(around: Around, method: Method, work: Callable[[], Awaitable[None]]) -> Any:
    """Return a handler for a path nobody serves; it takes any number of messages, so that it fits every caller."""

    async def answer(requests: AsyncIterator[bytes], context: Any) -> None:
        await around(method, context, work, Exchange(requests))

    return grpc.stream_stream_rpc_method_handler(answer, None, None)


def _parsed(handler: Any, request: bytes) -> Any:
    if handler.request_deserializer is None:
        return request
    try:
        return handler.request_deserializer(request)
    except DecodeError as error:
        raise _unreadable() from error


def _unreadable() -> InvalidInput:
    return InvalidInput("the request is not a message of this method's type", field="")


def _serialized(handler: Any, response: Any, max_send_bytes: int) -> bytes:
    data: bytes = response if handler.response_serializer is None else handler.response_serializer(response)
    if len(data) > max_send_bytes:
        raise ResourceExhausted(
            f"the response of {len(data)} bytes exceeds the limit of {max_send_bytes}",
            reason="MESSAGE_TOO_LARGE",
            metadata={"limit": str(max_send_bytes), "actual": str(len(data))},
        )
    return data
