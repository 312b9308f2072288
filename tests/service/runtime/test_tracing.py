"""Spans of all four kinds of call, checked with OpenTelemetry's in-memory exporter."""

import builtins
from contextlib import suppress

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the tracing extra is not installed")

from grpc import StatusCode
from grpc.aio import insecure_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace import StatusCode as SpanStatus

from fakes.four_kinds import KINDS, METHODS, FourKinds, begin, failure, finish
from vplab import errors
from vplab.client import AsyncClient
from vplab.runtime import server, tracing
from vplab.runtime.server import running_server
from vplab.runtime.settings import ServerSettings, SettingsError

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = tracing.OpenTelemetryTracer(provider)
    monkeypatch.setattr(server, "open_tracer", lambda *_: (tracer, provider.shutdown))
    return exporter


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_is_a_server_span_below_the_callers(spans, kind):
    async with (
        running_server(FourKinds().registrations, ServerSettings()) as running,
        insecure_channel(running.address) as channel,
    ):
        await finish(begin(kind, channel, metadata=(("traceparent", PARENT), ("x-request-id", "r1"))))
    (span,) = spans.get_finished_spans()
    assert span.name == "/".join(METHODS[kind])
    assert span.kind is SpanKind.SERVER
    assert format(span.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(span.parent.span_id, "016x") == PARENT.split("-")[2]
    assert span.attributes["rpc.grpc.status_code"] == 0
    assert span.attributes["vplab.request_id"] == "r1"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "code", "is_error"),
    [
        (errors.NotFound("no"), StatusCode.NOT_FOUND, False),
        (RuntimeError("secret"), StatusCode.INTERNAL, True),
    ],
    ids=["the caller's", "the server's"],
)
async def test_a_failed_call_carries_its_code_and_no_internals(spans, kind, error, code, is_error):
    async def behave() -> None:
        raise error

    async with (
        running_server(FourKinds(behave).registrations, ServerSettings()) as running,
        insecure_channel(running.address) as channel,
    ):
        await failure(begin(kind, channel))
    (span,) = spans.get_finished_spans()
    assert span.attributes["rpc.grpc.status_code"] == code.value[0]
    assert (span.status.status_code is SpanStatus.ERROR) is is_error
    assert not span.events
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_handler_runs_inside_the_span(spans, kind):
    seen = set()

    async def behave() -> None:
        seen.add(get_current_span().get_span_context().span_id)

    async with (
        running_server(FourKinds(behave).registrations, ServerSettings()) as running,
        insecure_channel(running.address) as channel,
    ):
        await finish(begin(kind, channel))
    (span,) = spans.get_finished_spans()
    assert seen == {span.context.span_id}


async def test_a_call_made_by_a_handler_is_part_of_the_same_trace(spans):
    async with (
        running_server(FourKinds().registrations, ServerSettings()) as behind,
        AsyncClient(registry=behind.address) as client,
    ):

        async def behave() -> None:
            with suppress(errors.VPLabError):  # the answer is none the client can use
                await client.registry.get_version("artifacts/a/versions/1")

        async with (
            running_server(FourKinds(behave).registrations, ServerSettings()) as front,
            insecure_channel(front.address) as channel,
        ):
            await finish(begin("unary", channel, metadata=(("x-request-id", "r1"),)))
    inner, outer = spans.get_finished_spans()
    assert (inner.name.rpartition("/")[2], outer.name.rpartition("/")[2]) == ("GetVersion", "QueryUpload")
    assert inner.context.trace_id == outer.context.trace_id
    assert inner.parent.span_id == outer.context.span_id


async def test_a_configured_endpoint_makes_a_tracer_and_closes_it():
    settings = ServerSettings(otlp_endpoint="http://127.0.0.1:1", trace_ratio=0.0)
    tracer, close = tracing.open_tracer(settings, "loom", "1.0")
    assert isinstance(tracer, tracing.OpenTelemetryTracer)
    close()


def test_a_configured_endpoint_without_the_packages_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"otlp_endpoint .* pip install 'vplab\[tracing\]'"):
        tracing.open_tracer(ServerSettings(otlp_endpoint="http://collector:4317"), "loom", "1.0")


def test_no_endpoint_imports_nothing_and_makes_no_spans():
    tracer, close = tracing.open_tracer(ServerSettings(), "loom", "1.0")
    with tracer.span("s", "m", {}, "r") as span:
        span.end_with(StatusCode.OK)
    close()
