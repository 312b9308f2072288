"""What the frame decides without a network: late calls, the end of calls, messages that are read on."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2

from vplab.errors import DeadlineExceeded
from vplab.runtime import handlers, request
from vplab.runtime.calls import CallFrame
from vplab.runtime.handlers import Exchange
from vplab.runtime.methods import Method, methods_of
from vplab.wire.status import error_from_call


class FakeContext:
    """The part of gRPC's context that the frame uses."""

    def __init__(self, remaining_s: float | None) -> None:
        self._remaining_s = remaining_s
        self._code: grpc.StatusCode | None = None
        self._trailers: tuple = ()

    def invocation_metadata(self):
        return ()

    def time_remaining(self):
        return self._remaining_s

    def trailing_metadata(self):
        return self._trailers

    def set_trailing_metadata(self, trailers):
        self._trailers = trailers

    def code(self):
        return self._code

    def peer_identities(self):
        return None

    def peer(self):
        return "ipv4:192.0.2.1:5"

    async def abort(self, code, message, trailers):
        self._code = code
        raise Aborted(error_from_call(code, message, trailers))


class Aborted(Exception):
    """What a fake abort raises."""


async def test_a_call_that_arrives_late_is_refused_before_any_work():
    ran = []

    async def work() -> bytes:
        ran.append(1)
        return b""

    frame = CallFrame(max_send_bytes=1024)
    with pytest.raises(Aborted) as refusal:
        await frame._around(Method("s", "m", "unary"), FakeContext(0.0), work, Exchange())
    assert isinstance(refusal.value.args[0], DeadlineExceeded)
    assert ran == []


async def test_outside_of_a_call_there_is_no_id_and_no_deadline():
    assert (request.request_id(), request.deadline(), request.time_remaining_s()) == ("", None, None)


async def test_time_remaining_is_never_negative():
    request.enter("r", 0.0)
    assert request.time_remaining_s() == 0.0


async def endless():
    while True:
        await asyncio.sleep(0)
        yield b"x"


async def test_reading_on_stops_at_the_end_of_the_messages():
    async def three():
        for _ in range(3):
            yield b"x"

    exchange = Exchange(three())
    await anext(exchange)
    await exchange.linger()
    assert [message async for message in exchange] == []


async def test_reading_on_stops_after_a_moment(monkeypatch):
    monkeypatch.setattr(handlers, "_LINGER_S", 0.01)
    await asyncio.wait_for(Exchange(endless()).linger(), 5)


async def test_nothing_is_read_on_while_the_handler_still_reads():
    never = asyncio.Event()

    async def stuck():
        await never.wait()
        yield b"x"

    exchange = Exchange(stuck())
    reader = asyncio.create_task(anext(exchange))
    await asyncio.sleep(0)
    await asyncio.wait_for(exchange.linger(), 5)
    reader.cancel()
    await asyncio.wait({reader})


async def test_a_write_is_finished_before_its_call_is_cancelled():
    go, written = asyncio.Event(), []

    class Writing:
        async def write(self, data: bytes) -> None:
            await go.wait()
            written.append(data)

    exchange = Exchange()
    task = asyncio.create_task(exchange.write(Writing(), b"x"))
    await asyncio.sleep(0)
    exchange.cancel(task)
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert written == [b"x"]


def test_methods_are_known_by_their_kind():
    methods = {
        method.name: method
        for method in methods_of([health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, "no.such.Service"])
    }
    assert {name: method.kind for name, method in methods.items()} == {
        "Check": "unary",
        "List": "unary",
        "Watch": "server_stream",
    }
    assert methods["Watch"].is_watch
    assert not methods["Check"].is_watch
