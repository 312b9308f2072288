"""The worker process: waits for jobs on its pipe and works on one at a time.

It leaves when the service is gone, and at once when the service dies, so that no job has two workers for longer than it
takes the system to say so; what it does afterwards would be fenced off all the same.
"""

import importlib
import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import structlog
from threadpoolctl import threadpool_limits

from vplab.errors import Internal, VPLabError
from vplab.runtime.logs import configure_logging
from vplab.training.values import Checkpoint, Claim, Report, TuningResult
from vplab.training.worker.messages import (
    Alive,
    CommitAsked,
    CommitGranted,
    Done,
    Failed,
    FromWorker,
    WarmUp,
    WorkerSettings,
)

_log = structlog.get_logger(__name__)


class Link:
    """The worker's end of the pipe."""

    def __init__(self, connection: "Connection[FromWorker, Any]") -> None:
        self._connection = connection

    def tell(self, *messages: Report | Checkpoint | Alive) -> None:
        """Tell the service; returns once it is on its way."""
        for message in messages:
            self._connection.send(message)

    def commit(self) -> None:
        """Wait for leave to publish; the service ends this process where there is none."""
        self._connection.send(CommitAsked())
        granted = self._connection.recv()
        if not isinstance(granted, CommitGranted):
            raise Internal(f"the service answered {type(granted).__name__} instead of a leave to publish")


class Worker(Protocol):
    """Works on jobs; ``vplab.training.worker.job.TuningWorker``."""

    def warm_up(self, segmenter: str, *, exports: bool) -> None:
        """Load what every job needs; ``exports`` makes the graph that adapters of the default method are put into."""
        ...

    def work_on(self, claim: Claim, link: Link) -> TuningResult:
        """Bring a job to a published adapter. Raises kinds of ``vplab.errors``."""
        ...


def main(connection: "Connection[FromWorker, Any]", settings: WorkerSettings) -> None:
    """Work until the service sends None or closes the pipe; the target of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's to deal with
    threading.Thread(target=_leave_with_the_service, daemon=True).start()
    if settings.niceness and hasattr(os, "nice"):
        os.nice(settings.niceness)
    # Read by torch's libraries when they are loaded. numpy's BLAS came with this module's imports and has one thread:
    # its matrices are small, and a second one would mostly spin.
    for library in ("OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(settings.num_threads)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    threadpool_limits(1, user_api="blas")
    configure_logging(service="training-worker", level=settings.log_level, format=settings.log_format)  # type: ignore[arg-type]
    worker: Worker | None = None
    while True:
        try:
            task: Claim | WarmUp | None = connection.recv()
            if task is None:
                return
            if worker is None:
                worker = _load(settings)
            connection.send(_answer(worker, task, Link(connection)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _load(settings: WorkerSettings) -> Worker:
    """Import what works by its name, so that the service does not load it with this module."""
    module, _, name = settings.worker_class.partition(":")
    return cast(Worker, getattr(importlib.import_module(module), name)(settings))


def _answer(worker: Worker, task: Claim | WarmUp, link: Link) -> Done | Failed:
    try:
        if isinstance(task, WarmUp):
            worker.warm_up(task.segmenter, exports=task.exports)
            return Done(None)
        return Done(worker.work_on(task, link))
    except VPLabError as error:
        return Failed.of(error)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception:
        _log.exception("worker_failed")
        return Failed.of(Internal("internal error; the log of the worker says more"))


def _leave_with_the_service() -> None:
    service = parent_process()
    if service is not None:
        service.join()
        os._exit(1)
