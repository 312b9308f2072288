"""The Prometheus series of the frame, and the port they are read from.

The call series carry the names and labels that go-grpc-prometheus made customary, so existing dashboards work. Label
values come from the contract and from fixed lists only, and every series exists from the start: a rate over a series
that appears with its first failure misses that failure.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server

_CALL_LABELS: Final = ("grpc_type", "grpc_service", "grpc_method")
# From a cache hit to a tiled 40-megapixel image on a CPU.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

CALLS_IN_FLIGHT: Final = Gauge("grpc_server_in_flight", "Calls being handled.", _CALL_LABELS)
CALLS_HANDLED: Final = Counter("grpc_server_handled", "Calls that ended, by code.", (*_CALL_LABELS, "grpc_code"))
CALL_SECONDS: Final = Histogram(
    "grpc_server_handling_seconds", "Seconds from the start of a call to its end.", _CALL_LABELS, buckets=_SECONDS
)

QUEUE_DEPTH: Final = Gauge("vplab_queue_depth", "Items that wait for the device.", ("queue", "priority"))
QUEUE_WAIT_SECONDS: Final = Histogram(
    "vplab_queue_wait_seconds",
    "Seconds an item waited before its batch began.",
    ("queue", "priority"),
    buckets=_SECONDS,
)
QUEUE_RUN_SECONDS: Final = Histogram(
    "vplab_queue_run_seconds", "Seconds a batch kept the device.", ("queue",), buckets=_SECONDS
)
QUEUE_BATCH_SIZE: Final = Histogram(
    "vplab_queue_batch_size", "Items in a batch.", ("queue",), buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
QUEUE_REFUSED: Final = Counter(
    "vplab_queue_refused", "Items refused before any work: full, displaced, deadline.", ("queue", "priority", "cause")
)
QUEUE_CANCELLED: Final = Counter(
    "vplab_queue_cancelled",
    "Items whose caller or deadline went away: waiting (no work done) or running.",
    ("queue", "stage"),
)
REFUSAL_CAUSES: Final = ("full", "displaced", "deadline")
CANCEL_STAGES: Final = ("waiting", "running")

SERVER_INFO: Final = Info("vplab_server", "What this process is.")


def precreate_queue(queue: str, priorities: Iterable[str]) -> None:
    """Make every series of a queue exist."""
    for priority in priorities:
        QUEUE_DEPTH.labels(queue, priority)
        QUEUE_WAIT_SECONDS.labels(queue, priority)
        for cause in REFUSAL_CAUSES:
            QUEUE_REFUSED.labels(queue, priority, cause)
    QUEUE_RUN_SECONDS.labels(queue)
    QUEUE_BATCH_SIZE.labels(queue)
    for stage in CANCEL_STAGES:
        QUEUE_CANCELLED.labels(queue, stage)


def precreate_call(kind: str, service: str, method: str, codes: Iterable[str]) -> None:
    """Make every series of a method exist."""
    CALLS_IN_FLIGHT.labels(kind, service, method)
    CALL_SECONDS.labels(kind, service, method)
    for code in codes:
        CALLS_HANDLED.labels(kind, service, method, code)


@contextmanager
def exposition(host: str, port: int | None) -> Iterator[int | None]:
    """Answer ``GET /metrics`` from a thread while the context lasts; yield the port, None if there is none to open.

    Port 0 takes a free one. Raises OSError if the port cannot be opened.
    """
    if port is None:
        yield None
        return
    server, thread = start_http_server(port, addr=host)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
