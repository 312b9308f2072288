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


class QueueMetrics:
    """The series of one queue: all of them exist from the start, and none is looked up again."""

    def __init__(self, queue: str, priorities: Iterable[str]) -> None:
        names = list(priorities)
        self._depth = {name: QUEUE_DEPTH.labels(queue, name) for name in names}
        self._wait = {name: QUEUE_WAIT_SECONDS.labels(queue, name) for name in names}
        self._refused = {(n, cause): QUEUE_REFUSED.labels(queue, n, cause) for n in names for cause in REFUSAL_CAUSES}
        self._cancelled = {stage: QUEUE_CANCELLED.labels(queue, stage) for stage in CANCEL_STAGES}
        self._run = QUEUE_RUN_SECONDS.labels(queue)
        self._batch = QUEUE_BATCH_SIZE.labels(queue)

    def depth(self, priority: str, num_waiting: int) -> None:
        """Note how many wait."""
        self._depth[priority].set(num_waiting)

    def waited(self, priority: str, seconds: float) -> None:
        """Note that an item's batch began."""
        self._wait[priority].observe(seconds)

    def ran(self, seconds: float, num_items: int) -> None:
        """Note that a batch ended."""
        self._run.observe(seconds)
        self._batch.observe(num_items)

    def refused(self, priority: str, cause: str) -> None:
        """Note an item that was refused."""
        self._refused[priority, cause].inc()

    def cancelled(self, stage: str) -> None:
        """Note an item whose caller went away."""
        self._cancelled[stage].inc()


class CallMetrics:
    """The series of one method: all of them exist from the start, and none is looked up again."""

    def __init__(self, kind: str, service: str, method: str, codes: Iterable[str]) -> None:
        labels = (kind, service, method)
        self._in_flight = CALLS_IN_FLIGHT.labels(*labels)
        self._seconds = CALL_SECONDS.labels(*labels)
        self._handled = {code: CALLS_HANDLED.labels(*labels, code) for code in codes}

    def began(self) -> None:
        """Note a call."""
        self._in_flight.inc()

    def ended(self, code: str, seconds: float) -> None:
        """Note how a call ended."""
        self._in_flight.dec()
        self._handled[code].inc()
        self._seconds.observe(seconds)


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
