"""What the frame does around a call, for each of the four kinds and over a real channel."""

import asyncio
import io
import json
import logging
import time
from collections.abc import Callable

import grpc
import httpx
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY as SERIES
from structlog.testing import capture_logs

from fakes.four_kinds import KINDS, METHODS, FourKinds, begin, failure, finish, open_channel
from vplab import errors
from vplab.api.registry.v1 import registry_service_pb2 as pb
from vplab.api.registry.v1 import registry_service_pb2_grpc as pb_grpc
from vplab.runtime import request
from vplab.runtime.logs import configure_logging
from vplab.runtime.server import Registration, running_server
from vplab.runtime.settings import MIB, ServerSettings
from vplab.wire.status import CODE_TO_KIND

REQUEST_ID = request.REQUEST_ID_KEY


@pytest.fixture
def script():
    return FourKinds()


@pytest.fixture
async def channel(script):
    async with open_channel(script.registrations) as channel:
        yield channel


def raising(error: BaseException):
    async def behave() -> None:
        raise error

    return behave


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the server does after its answer is on the way."""
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


def handled(kind: str, code: str) -> float:
    service, method = METHODS[kind]
    labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
    return SERIES.get_sample_value("grpc_server_handled_total", labels)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_good_call_gets_its_answers(channel, kind):
    assert len(await finish(begin(kind, channel))) == (2 if kind in ("server_stream", "bidi_stream") else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_type", CODE_TO_KIND.values(), ids=lambda kind: kind.__name__)
async def test_an_error_arrives_as_its_kind_with_reason_and_metadata(channel, script, kind, error_type):
    script.behave = raising(error_type("the why", metadata={"name": "artifacts/a"}))
    error = await failure(begin(kind, channel))
    assert (type(error), error.message, error.reason) == (error_type, "the why", error_type.default_reason)
    assert error.metadata["name"] == "artifacts/a"


@pytest.mark.parametrize("kind", KINDS)
async def test_field_violations_arrive(channel, script, kind):
    script.behave = raising(errors.InvalidInput("must not be empty", field="prompts[0]"))
    error = await failure(begin(kind, channel))
    assert [(v.field, v.description) for v in error.violations] == [("prompts[0]", "must not be empty")]


@pytest.mark.parametrize("kind", KINDS)
async def test_shedding_says_when_to_come_back(channel, script, kind):
    script.behave = raising(errors.ResourceExhausted("full", retry_after_s=1.5))
    call = begin(kind, channel)
    assert (await failure(call)).retry_after_s == pytest.approx(1.5)
    assert dict(await call.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unexpected_exception_is_internal_and_tells_nothing_but_the_request_id(channel, script, kind):
    script.behave = raising(RuntimeError("password=hunter2 in /etc/secret"))
    with capture_logs() as lines:
        error = await failure(begin(kind, channel, metadata=((REQUEST_ID, "call-7"),)))
    assert (type(error), error.reason, error.metadata) == (errors.Internal, "INTERNAL", {"request_id": "call-7"})
    assert "hunter2" not in str(error.__cause__)
    logged = [line for line in lines if line["event"] == "unexpected exception"]
    assert "hunter2" in str(logged[0]["exc_info"])


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sane_request_id_is_kept_and_returned(channel, script, kind):
    seen = []

    async def behave() -> None:
        seen.append(request.request_id())

    script.behave = behave
    call = begin(kind, channel, metadata=((REQUEST_ID, "line-3.frame:17"),))
    await finish(call)
    assert dict(await call.trailing_metadata())[REQUEST_ID] == "line-3.frame:17"
    assert set(seen) == {"line-3.frame:17"}


@pytest.mark.parametrize("proposed", ["", "a b", "x" * 129, "<script>", "a/../b", '"quoted"'])
async def test_a_request_id_that_could_forge_a_log_line_is_replaced(channel, proposed):
    call = begin("unary", channel, metadata=((REQUEST_ID, proposed),))
    await finish(call)
    given = dict(await call.trailing_metadata())[REQUEST_ID]
    assert given != proposed
    assert len(given) == 32


async def test_calls_do_not_see_each_others_request_ids(channel, script):
    seen = []

    async def behave() -> None:
        await asyncio.sleep(0.01)
        seen.append(request.request_id())

    script.behave = behave
    await asyncio.gather(*(finish(begin("unary", channel, metadata=((REQUEST_ID, f"r{i}"),))) for i in range(20)))
    assert sorted(seen) == sorted(f"r{i}" for i in range(20))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_callers_deadline_reaches_the_handler(channel, script, kind):
    seen = []

    async def behave() -> None:
        seen.append((request.time_remaining_s(), request.deadline() - time.monotonic()))

    script.behave = behave
    await finish(begin(kind, channel, timeout=30))
    # gRPC rounds a timeout up to three digits on its way.
    assert all(0 < remaining < 31 for pair in seen for remaining in pair)
    assert seen


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_is_cancelled_at_the_callers_deadline(channel, script, kind):
    cancelled = asyncio.Event()

    async def behave() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    script.behave = behave
    before = handled(kind, "DEADLINE_EXCEEDED")
    # Long enough for the handler to begin on a busy machine: a call that is late before it began is never handled.
    # More than a second is rounded up on its way, so that the caller gives up before the server's clock does.
    assert type(await failure(begin(kind, channel, timeout=1.205))) is errors.DeadlineExceeded
    await asyncio.wait_for(cancelled.wait(), 5)
    await until(lambda: handled(kind, "DEADLINE_EXCEEDED") == before + 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_cancels_its_handler(channel, script, kind):
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def behave() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    script.behave = behave
    before = handled(kind, "CANCELLED")
    call = begin(kind, channel)
    waiting = asyncio.create_task(failure(call))
    await asyncio.wait_for(began.wait(), 5)
    call.cancel()
    await asyncio.wait({waiting})
    await asyncio.wait_for(cancelled.wait(), 5)
    await until(lambda: handled(kind, "CANCELLED") == before + 1)


async def test_a_unary_call_without_a_deadline_gets_the_default_one(script):
    script.behave = lambda: asyncio.sleep(60)
    async with open_channel(script.registrations, default_deadline_s=0.1) as channel:
        error = await failure(begin("unary", channel))
        assert (type(error), "default of 0.1 s" in error.message) == (errors.DeadlineExceeded, True)


@pytest.mark.parametrize("kind", ["client_stream", "server_stream", "bidi_stream"])
async def test_streams_have_no_default_deadline(script, kind):
    deadlines = []

    async def behave() -> None:
        await asyncio.sleep(0.15)
        deadlines.append(request.deadline())

    script.behave = behave
    async with open_channel(script.registrations, default_deadline_s=0.1) as channel:
        await finish(begin(kind, channel))
    assert set(deadlines) == {None}


async def test_a_timeout_inside_the_handler_is_internal_and_not_the_default_deadline(channel, script):
    script.behave = raising(TimeoutError("database"))
    assert type(await failure(begin("unary", channel))) is errors.Internal


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_that_does_not_parse_is_invalid_input(channel, kind):
    service, method = METHODS[kind]
    path, junk = f"/{service}/{method}", b"\xff\xff\xff"
    call = {
        "unary": lambda: channel.unary_unary(path)(junk),
        "client_stream": lambda: channel.stream_unary(path)([junk]),
        "server_stream": lambda: channel.unary_stream(path)(junk),
        "bidi_stream": lambda: channel.stream_stream(path)([junk]),
    }[kind]()
    error = await failure(call)
    assert (type(error), error.reason) == (errors.InvalidInput, "INVALID_FIELD")


@pytest.mark.parametrize("path", ["/no.such.Service/Method", "/vplab.api.registry.v1.RegistryService/Nope", "/", "/x"])
async def test_an_unknown_method_is_unimplemented_with_details(channel, path):
    for call in (channel.unary_unary(path)(b""), channel.stream_stream(path)([b"a", b"b"])):
        error = await failure(call)
        assert (type(error), error.reason) == (errors.Unimplemented, "NOT_IMPLEMENTED")


async def test_a_method_the_servicer_leaves_out_is_unimplemented_with_details(channel):
    error = await failure(pb_grpc.RegistryServiceStub(channel).ListVersions(pb.ListVersionsRequest()))
    assert (type(error), error.reason) == (errors.Unimplemented, "NOT_IMPLEMENTED")


async def test_a_request_above_the_limit_is_refused_and_one_above_4_mib_is_not(script):
    async with running_server(script.registrations, ServerSettings(max_receive_bytes=6 * MIB)) as server:
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            stub = pb_grpc.RegistryServiceStub(channel)
            await finish(stub.QueryUpload(pb.QueryUploadRequest(sha256="x" * 5 * MIB)))
            error = await failure(stub.QueryUpload(pb.QueryUploadRequest(sha256="x" * 7 * MIB)))
            assert (type(error), error.reason) == (errors.ResourceExhausted, "MESSAGE_TOO_LARGE")
            error = await failure(stub.UploadBlob([pb.UploadBlobRequest(chunk=b"x" * 7 * MIB)]))
            assert (type(error), error.reason) == (errors.ResourceExhausted, "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize("method", ["GetVersion", "DownloadBlob"])
async def test_a_response_above_the_limit_names_limit_and_size(script, method):
    script.answer = b"x" * 2 * MIB
    async with open_channel(script.registrations, max_send_bytes=MIB) as channel:
        stub = pb_grpc.RegistryServiceStub(channel)
        error = await failure(getattr(stub, method)(getattr(pb, f"{method}Request")()))
    assert (type(error), error.reason) == (errors.ResourceExhausted, "MESSAGE_TOO_LARGE")
    assert error.metadata["limit"] == str(MIB)
    assert int(error.metadata["actual"]) > 2 * MIB


@pytest.mark.parametrize("kind", KINDS)
async def test_every_call_leaves_one_access_line_and_one_count(channel, script, kind):
    script.behave = raising(errors.NotFound("no"))
    before = handled(kind, "NOT_FOUND")
    with capture_logs() as lines:
        await failure(begin(kind, channel))
        await until(lambda: handled(kind, "NOT_FOUND") > before)
    (line,) = [line for line in lines if line["event"] == "call"]
    assert (line["service_name"], line["method"]) == METHODS[kind]
    assert line["code"] == "NOT_FOUND"
    assert line["seconds"] > 0
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert handled(kind, "NOT_FOUND") == before + 1


async def test_more_calls_than_the_server_takes_are_refused_and_health_is_not(script):
    go = asyncio.Event()
    script.behave = go.wait
    async with open_channel(script.registrations, max_calls_in_flight=2) as channel:
        held = [asyncio.create_task(finish(begin(kind, channel))) for kind in ("unary", "server_stream")]
        await asyncio.sleep(0.2)
        error = await failure(begin("unary", channel))
        assert (type(error), error.reason, error.retry_after_s) == (errors.ResourceExhausted, "OVERLOADED", 0.5)
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        go.set()
        await asyncio.gather(*held)
        await finish(begin("unary", channel))


async def test_a_client_that_pings_too_often_is_disconnected(script):
    script.behave = lambda: asyncio.sleep(60)
    options = [("grpc.keepalive_time_ms", 100), ("grpc.http2.max_pings_without_data", 0)]
    settings = ServerSettings(min_client_ping_interval_s=300)
    async with (
        running_server(script.registrations, settings) as server,
        grpc.aio.insecure_channel(server.address, options) as channel,
    ):
        error = await failure(begin("unary", channel))
        assert (type(error), "many pings" in error.message.replace("_", " ")) == (errors.Unavailable, True)


async def test_a_client_that_pings_as_often_as_allowed_stays_connected(script):
    script.behave = lambda: asyncio.sleep(1)
    options = [("grpc.keepalive_time_ms", 100), ("grpc.http2.max_pings_without_data", 0)]
    settings = ServerSettings(min_client_ping_interval_s=0.01)
    async with (
        running_server(script.registrations, settings) as server,
        grpc.aio.insecure_channel(server.address, options) as channel,
    ):
        await finish(begin("unary", channel))


async def test_prometheus_reads_the_series_from_their_own_port(script):
    async with (
        running_server(script.registrations, ServerSettings(metrics_port=0), service="loom") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await finish(begin("unary", channel))
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{server.metrics_port}/metrics")).text
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="QueryUpload"' in text
    assert 'grpc_server_handling_seconds_bucket{grpc_method="QueryUpload"' in text
    assert 'vplab_server_info{instance="' in text


async def test_no_metrics_port_is_opened_unless_asked_for(script):
    async with running_server(script.registrations, ServerSettings()) as server:
        assert server.metrics_port is None


async def test_in_flight_goes_up_and_down(channel, script):
    began, go = asyncio.Event(), asyncio.Event()

    async def behave() -> None:
        began.set()
        await go.wait()

    def in_flight() -> float:
        service, method = METHODS["unary"]
        labels = {"grpc_type": "unary", "grpc_service": service, "grpc_method": method}
        return SERIES.get_sample_value("grpc_server_in_flight", labels)

    script.behave = behave
    before = in_flight()
    task = asyncio.create_task(finish(begin("unary", channel)))
    await began.wait()
    assert in_flight() == before + 1
    go.set()
    await task
    await until(lambda: in_flight() == before)


async def test_series_exist_for_every_method_and_code_before_the_first_call(channel):
    labels = {"grpc_type": "unary", "grpc_service": METHODS["unary"][0], "grpc_method": "CollectGarbage"}
    for code in grpc.StatusCode:
        assert SERIES.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": code.name}) is not None


async def test_names_made_up_by_callers_become_no_series(channel):
    await failure(channel.unary_unary("/made.up.Service/Name")(b""))
    services = {s.labels.get("grpc_service") for m in SERIES.collect() for s in m.samples if "grpc_service" in s.labels}
    assert "made.up.Service" not in services
    assert "unknown" in services


@pytest.mark.parametrize("kind", ["unary", "client_stream", "server_stream"])
async def test_a_handlers_own_abort_is_left_alone(kind):
    class Aborting(pb_grpc.RegistryServiceServicer):
        async def QueryUpload(self, request, context):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "by hand")

        async def DownloadBlob(self, request, context):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "by hand")
            yield

        async def UploadBlob(self, requests, context):
            async for _ in requests:
                pass  # an end before the client has written makes grpc.aio answer it with an error of its own
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "by hand")

    registration = Registration(
        METHODS[kind][0], lambda s: pb_grpc.add_RegistryServiceServicer_to_server(Aborting(), s)
    )
    async with open_channel([registration]) as channel:
        before = handled(kind, "FAILED_PRECONDITION")
        error = await failure(begin(kind, channel))
        assert (type(error), error.message) == (errors.FailedPrecondition, "by hand")
        await until(lambda: handled(kind, "FAILED_PRECONDITION") == before + 1)


async def test_a_slow_reader_holds_up_only_its_own_stream(channel, script):
    """gRPC's flow control reaches the generator: it is not run ahead of the reader without bound."""
    produced = 0

    class Endless(pb_grpc.RegistryServiceServicer):
        async def DownloadBlob(self, request, context):
            nonlocal produced
            for _ in range(2000):
                produced += 1
                yield pb.DownloadBlobResponse(chunk=b"x" * 65536)

        async def QueryUpload(self, request, context):
            return pb.QueryUploadResponse()

    registration = Registration(
        METHODS["unary"][0], lambda s: pb_grpc.add_RegistryServiceServicer_to_server(Endless(), s)
    )
    async with (
        running_server([registration], ServerSettings()) as server,
        grpc.aio.insecure_channel(server.address) as slow,
        grpc.aio.insecure_channel(server.address) as quick,
    ):
        call = begin("server_stream", slow)
        await call.read()
        await asyncio.sleep(0.3)
        after_pause = produced
        await finish(begin("unary", quick))
        assert after_pause < 1000
        call.cancel()


def test_json_log_lines_carry_service_and_request_id():
    root = logging.getLogger()
    kept, level = root.handlers, root.level
    out = io.StringIO()
    try:
        configure_logging(service="loom", level="info", format="auto", stream=out)
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            structlog.get_logger("x").info("woven", metres=3)
            logging.getLogger("library").warning("hm %s", 5)
        structlog.get_logger("x").debug("not written")
    finally:
        root.handlers, root.level = kept, level
        structlog.reset_defaults()
        logging.captureWarnings(False)
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    assert (first["service"], first["request_id"], first["event"], first["metres"]) == ("loom", "r1", "woven", 3)
    assert (second["event"], second["level"], second["request_id"]) == ("hm 5", "warning", "r1")
