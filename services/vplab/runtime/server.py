"""Starts a service's gRPC server with everything the frame brings, and stops it in order.

The stop: health says NOT_SERVING; after ``drain_delay_s`` watches are ended and new calls refused; calls in flight get
``drain_grace_s``, then they are ended with UNAVAILABLE.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc

from vplab.api.runtime.v1 import runtime_service_pb2_grpc
from vplab.runtime import metrics, unix_sockets
from vplab.runtime.auth import authenticator
from vplab.runtime.calls import HEALTH_SERVICE, CallFrame, call_metrics
from vplab.runtime.health import HealthServicer
from vplab.runtime.methods import UNKNOWN, methods_of
from vplab.runtime.server_info import RUNTIME_SERVICE, RuntimeServicer, ServedModel, instance, software
from vplab.runtime.settings import ServerSettings
from vplab.runtime.tls import server_credentials
from vplab.runtime.tracing import open_tracer
from vplab.wire.unix_sockets import unix_path

_log = structlog.get_logger(__name__)

# What gRPC may take to send the last statuses once every handler has ended.
_FLUSH_S = 2.0
_STOPPING = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Registration:
    """One gRPC service of a server."""

    full_service_name: str
    """Such as ``vplab.api.registry.v1.RegistryService``."""
    add: Callable[[Any], None]
    """Adds the servicer to a ``grpc.aio.Server``: ``lambda s: add_RegistryServiceServicer_to_server(servicer, s)``."""


class StartError(Exception):
    """The server could not start; the message says why in words for an operator."""


@dataclass(frozen=True)
class RunningServer:
    """A server that listens."""

    address: str
    """Where: ``host:port`` with the port that was taken, or ``unix:/path``."""
    unix_address: str | None
    """Where it listens besides, ``unix:/path``."""
    health_address: str | None
    """Where the plain-text health service listens, None if it does not."""
    metrics_port: int | None
    """Where Prometheus reads, None if nowhere."""
    health: HealthServicer
    """For a service that has to report itself as not serving."""
    ready: "asyncio.Task[None]"
    """Done once the service is ready; carries the exception if it cannot become ready."""


async def serve(
    registrations: Sequence[Registration],
    settings: ServerSettings,
    *,
    service: str,
    ready: Callable[[], Awaitable[None]] | None = None,
    served_models: Callable[[], Sequence[ServedModel]] | None = None,
    metadata: Mapping[str, str] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``, then drain and return. A second signal ends the calls in flight at once.

    ``ready`` is awaited once the server listens; until it returns health says NOT_SERVING and calls of the service get
    UNAVAILABLE. ``metadata`` is written to the start's log line. With ``stop`` no signal handlers are installed.

    Raises StartError or SettingsError if the server cannot start, and whatever ``ready`` raises.
    """
    stopping, hurry = stop or asyncio.Event(), asyncio.Event()
    if stop is None:
        _on_signals(stopping, hurry)
    options: dict[str, Any] = {"service": service, "ready": ready, "served_models": served_models, "hurry": hurry}
    async with running_server(registrations, settings, wait_ready=False, **options) as server:
        where = {"address": server.address, "unix_address": server.unix_address, "metrics_port": server.metrics_port}
        _log.info("listening", **where, **(metadata or {}))
        waiter = asyncio.create_task(stopping.wait())
        await asyncio.wait({waiter, server.ready}, return_when=asyncio.FIRST_COMPLETED)
        if server.ready.done() and not waiter.done():
            server.ready.result()
            _log.info("serving", address=server.address)
            await waiter
        waiter.cancel()
        _log.info("stopping", grace_s=settings.drain_grace_s)
    _log.info("stopped")


@asynccontextmanager
async def running_server(
    registrations: Sequence[Registration],
    settings: ServerSettings,
    *,
    service: str = "test",
    ready: Callable[[], Awaitable[None]] | None = None,
    served_models: Callable[[], Sequence[ServedModel]] | None = None,
    wait_ready: bool = True,
    hurry: asyncio.Event | None = None,
) -> AsyncIterator[RunningServer]:
    """Serve while the context lasts, then drain; ``hurry`` cuts the drain short."""
    names = [registration.full_service_name for registration in registrations]
    own_services = [HEALTH_SERVICE, RUNTIME_SERVICE]
    if settings.enable_reflection:
        own_services.append("grpc.reflection.v1alpha.ServerReflection")
    for method in [*methods_of([*names, *own_services]), UNKNOWN]:
        call_metrics(method)
    metrics.SERVER_INFO.info({"service": service, "software": software(), "instance": instance()})
    health = HealthServicer([*names, RUNTIME_SERVICE])
    info = RuntimeServicer(service, names, served_models or tuple)
    tracer, close_tracer = open_tracer(settings, service, software())
    frame = CallFrame(
        max_send_bytes=settings.max_send_bytes,
        max_calls_in_flight=settings.max_calls_in_flight,
        default_deadline_s=settings.default_deadline_s,
        authenticate=authenticator(settings),
        trusted_clients=settings.trusted_clients,
        tracer=tracer,
        own_services=own_services,
    )
    server = grpc.aio.server(interceptors=[frame], options=_options(settings))
    for registration in registrations:
        registration.add(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(info, server)
    if settings.enable_reflection:
        _add_reflection([*names, *own_services], server)
    address = _bind(server, settings.listen, server_credentials(settings))
    unix_address = None
    if settings.unix_socket is not None:  # gRPC wants credentials of its own for each address
        unix_address = _bind(server, f"unix:{settings.unix_socket}", server_credentials(settings))
    try:
        async with _health_server(settings, health) as health_address:
            with _metrics_port(settings) as metrics_port:
                frame.is_ready = ready is None
                await server.start()
                # The process itself lives from now on: what a liveness probe asks for, by this name.
                health.set_serving(RUNTIME_SERVICE)
                getting_ready = asyncio.create_task(_get_ready(ready, frame, health, names))
                running = RunningServer(address, unix_address, health_address, metrics_port, health, getting_ready)
                try:
                    if wait_ready:
                        await getting_ready
                    yield running
                finally:
                    info.is_draining = True
                    await _cancel(getting_ready)
                    await _drain(server, frame, health, settings, hurry or asyncio.Event())
    finally:
        await asyncio.to_thread(close_tracer)


async def _get_ready(
    ready: Callable[[], Awaitable[None]] | None, frame: CallFrame, health: HealthServicer, names: Sequence[str]
) -> None:
    if ready is not None:
        await ready()
    frame.is_ready = True
    health.set_serving("", *names)


async def _drain(
    server: Any, frame: CallFrame, health: HealthServicer, settings: ServerSettings, hurry: asyncio.Event
) -> None:
    health.drain()
    await _wait(hurry, settings.drain_delay_s)
    frame.end_watches()
    # gRPC refuses new calls from here on and would end the others by itself, but without saying why.
    stopping = asyncio.create_task(server.stop(settings.drain_grace_s + _FLUSH_S))
    hurried = asyncio.create_task(_wait(hurry, settings.drain_grace_s))
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    await _cancel(hurried)
    frame.end_all()
    await server.stop(_FLUSH_S)
    await stopping


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it a second time


@asynccontextmanager
async def _health_server(settings: ServerSettings, health: HealthServicer) -> AsyncIterator[str | None]:
    if settings.health_listen is None:
        yield None
        return
    frame = CallFrame(max_send_bytes=settings.max_send_bytes)
    server = grpc.aio.server(interceptors=[frame], options=_options(settings))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = _bind(server, settings.health_listen, None)
    await server.start()
    try:
        yield address
    finally:
        frame.end_all()
        await server.stop(_FLUSH_S)


@contextmanager
def _metrics_port(settings: ServerSettings) -> Iterator[int | None]:
    with ExitStack() as stack:
        try:
            port = stack.enter_context(metrics.exposition(settings.metrics_host, settings.metrics_port))
        except OSError as error:
            where = f"{settings.metrics_host}:{settings.metrics_port}"
            raise StartError(f"cannot open the metrics port {where}: {error.strerror}") from None
        yield port


def _bind(server: Any, listen: str, credentials: grpc.ServerCredentials | None) -> str:
    path = unix_path(listen, field="listen")
    try:
        with nullcontext() if path is None else unix_sockets.binding(Path(path)):
            port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except unix_sockets.SocketTaken as error:
        raise StartError(f"cannot listen on {listen}: {error}") from error
    except RuntimeError:
        why = "the address is in use, or not of this machine" if path is None else "its folder cannot be used"
        raise StartError(f"cannot listen on {listen}: {why}") from None
    return f"{listen.rpartition(':')[0]}:{port}" if path is None else listen


def _add_reflection(names: Sequence[str], server: Any) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection(names, server)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.max_send_message_length", settings.max_send_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.min_client_ping_interval_s * 1000)),
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(settings.max_connection_age_grace_s * 1000)),
        # Two servers on one port would share its connections in silence.
        ("grpc.so_reuseport", 0),
    ]


def _on_signals(stopping: asyncio.Event, hurry: asyncio.Event) -> None:
    def on_signal() -> None:
        (hurry if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, on_signal)
    # Whoever started us may have blocked them for itself, and a process starts with what its parent blocks.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
