"""OpenTelemetry traces of calls, when an endpoint is configured.

The packages come with the ``tracing`` extra and are imported only then. The server's span is made here and not by
``opentelemetry-instrumentation-grpc``, because the frame already stands around all four kinds of call and knows the
code that was sent.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import grpc

from vplab.runtime.settings import ServerSettings, SettingsError


class Span(Protocol):
    """The part of a span the frame uses."""

    def end_with(self, code: grpc.StatusCode) -> None:
        """Note the code the call ended with."""


class Tracer(Protocol):
    """Makes the span of a call."""

    def span(
        self, service: str, method: str, metadata: Mapping[str, str | bytes], request_id: str
    ) -> AbstractContextManager[Span]:
        """Return the context in which the call runs; its parent is the caller's span if the metadata names one."""


class _NoSpan:
    def end_with(self, code: grpc.StatusCode) -> None:
        return


class NoTracer:
    """Makes no traces."""

    def span(
        self, service: str, method: str, metadata: Mapping[str, str | bytes], request_id: str
    ) -> AbstractContextManager[Span]:
        return nullcontext(_NoSpan())


class OpenTelemetryTracer:
    """Makes spans with an OpenTelemetry provider, named and labelled by its conventions for RPC servers."""

    def __init__(self, provider: Any) -> None:
        self._tracer = provider.get_tracer("vplab.runtime")

    @contextmanager
    def span(self, service: str, method: str, metadata: Mapping[str, str | bytes], request_id: str) -> Iterator[Span]:
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "vplab.request_id": request_id,
        }
        text = {key: value for key, value in metadata.items() if isinstance(value, str)}
        with self._tracer.start_as_current_span(
            f"{service}/{method}",
            context=propagate.extract(text),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,  # messages may hold internals, and the log has them
            set_status_on_exception=False,
        ) as span:
            yield _OpenTelemetrySpan(span)


class _OpenTelemetrySpan:
    def __init__(self, span: Any) -> None:
        self._span = span

    def end_with(self, code: grpc.StatusCode) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.grpc.status_code", int(code.value[0]))  # type: ignore[index]
        # The codes that are the server's fault, by OpenTelemetry's conventions for gRPC servers.
        if code.name in ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"):
            self._span.set_status(StatusCode.ERROR)


def open_tracer(settings: ServerSettings, service: str, software: str) -> tuple[Tracer, Callable[[], None]]:
    """Return the tracer the settings ask for and what flushes and closes it.

    Raises SettingsError if an endpoint is configured and the packages are missing.
    """
    if settings.otlp_endpoint is None:
        return NoTracer(), lambda: None
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        raise SettingsError(
            f"otlp_endpoint is set, but {error.name} is not installed: pip install 'vplab[tracing]'"
        ) from None
    resource = Resource.create({"service.name": f"vplab-{service}", "service.version": software})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(settings.trace_ratio), resource=resource)
    exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=settings.otlp_endpoint.startswith("http://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # so that spans made by libraries and clients in this process go the same way
    return OpenTelemetryTracer(provider), provider.shutdown
