"""Works on jobs in warm processes of this machine, one for each device."""

import asyncio
import contextlib
import importlib.util
import multiprocessing
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import structlog

from vplab.errors import Internal, Unavailable, VPLabError
from vplab.training import metrics
from vplab.training.errors import TrainerMissing, WorkerDied
from vplab.training.ports import WorkReports
from vplab.training.values import Checkpoint, Claim, Preview, Progress, Stage, TuningResult
from vplab.training.worker import process as worker_process
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

_NEEDED: Final = ("torch", "segment_anything", "onnx", "onnxscript", "torchvision")
_INBOX: Final = 64
"""Messages of a worker that wait to be stored; then the worker waits."""
_END_S: Final = 5.0
_WARM_UP_TRIES: Final = 5
_WARM_UP_PAUSE_S: Final = 1.0
_spawning = multiprocessing.get_context("spawn")  # a fork would inherit gRPC's threads and CUDA's state

_log = structlog.get_logger(__name__)


class LocalExecutor:
    """Implements Executor. Processes start at their first job and stay, with torch and the last segmenters loaded."""

    def __init__(self, settings: Sequence[WorkerSettings], *, silence_s: float, idle_s: float | None = None) -> None:
        """settings: one for each worker. silence_s: after which a worker is taken for hung. idle_s: after which one
        that has nothing to do ends and frees its memory; None lets it stay."""
        self._workers = [_Worker(each, silence_s, idle_s) for each in settings]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put_nowait(worker)

    @property
    def num_slots(self) -> int:
        """One job for each worker."""
        return len(self._workers)

    @staticmethod
    def missing_package() -> str | None:
        """Return a package that workers need and that is not installed; none is loaded to find out."""
        return next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)

    def check_available(self) -> None:
        """Refuse where a package is missing."""
        missing = self.missing_package()
        if missing is not None:
            raise TrainerMissing(missing)

    async def run(self, claim: Claim, reports: WorkReports) -> TuningResult:
        """Give a job to an idle worker. One whose job is cancelled is killed, since torch cannot be interrupted."""
        worker = await self._idle.get()
        try:
            result = await worker.do(claim, reports)
        finally:
            self._idle.put_nowait(worker)
        if result is None:
            raise Internal("the worker ended the job without a result")
        return result

    async def warm_up(self, segmenter: str) -> None:
        """Start every worker, have it load torch and a segmenter, and export the default adapter's graph if need be.

        A job that comes meanwhile waits for the loading and not for the export, which it may not need. What fails is
        tried again by the first job.
        """
        first = self._workers[0]
        loading = asyncio.gather(*(_warm(worker, WarmUp(segmenter)) for worker in self._workers))
        export = WarmUp(segmenter, exports=True)
        if any(first.settings.graphs.glob("*")):  # it is most likely there, and need not be exported
            await loading
            await _warm(first, export)
            return
        # The first start here: in a process of its own, for a job may need both the worker and the graph soon.
        exporter = _Worker(first.settings, first.silence_s, None)
        try:
            await asyncio.gather(loading, _warm(exporter, export))
        finally:
            await exporter.end("idle")

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(worker.end("shutdown") for worker in self._workers))

    @property
    def pids(self) -> list[int]:
        """Return the processes that run."""
        return [pid for worker in self._workers if (pid := worker.pid) is not None]


@dataclass
class _Running:
    process: BaseProcess
    connection: "Connection[Any, Any]"
    inbox: "asyncio.Queue[FromWorker | None]"
    """What the worker says; None once its end of the pipe is closed."""
    reader: threading.Thread
    is_waiting: bool = False
    """Whether it has done what it was told last."""


@dataclass
class _Worker:
    """One process, started when needed and again after it died."""

    settings: WorkerSettings
    silence_s: float
    idle_s: float | None
    _running: _Running | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _idle_timer: asyncio.TimerHandle | None = None
    _ending: "asyncio.Task[None] | None" = None

    @property
    def pid(self) -> int | None:
        return None if self._running is None else self._running.process.pid

    async def do(self, task: Claim | WarmUp, reports: WorkReports | None) -> TuningResult | None:
        """Have a task done. Raises WorkerDied, what the worker raised, and what ``reports`` raises."""
        async with self._turn:
            if self._idle_timer is not None:
                self._idle_timer.cancel()
            running = await self._start()
            running.is_waiting = False
            try:
                await _send(running, task)
                answer = await self._follow(running, reports)
            except BaseException as error:
                # Whatever it was: the process is in the middle of something that nobody wants any more.
                await self.end("silent" if isinstance(error, WorkerDied) else "cancelled")
                raise
            running.is_waiting = True
            self._schedule_end()
            if isinstance(answer, Failed):
                raise answer.error()
            return answer.result

    async def end(self, cause: str) -> None:
        """End the process, if there is one: one that waits for a task leaves by itself, any other is killed."""
        running, self._running = self._running, None
        if running is None:
            return
        if running.process.is_alive() and running.is_waiting:
            with contextlib.suppress(WorkerDied):
                await _send(running, None)
            await asyncio.shield(asyncio.to_thread(running.process.join, _END_S))
        if running.process.is_alive():
            metrics.WORKERS_KILLED.labels(cause).inc()
            running.process.kill()
        await asyncio.shield(_ended(running))

    async def _start(self) -> _Running:
        if self._running is not None and not self._running.process.is_alive():
            await self.end("silent")
        if self._running is None:
            ours, theirs = _spawning.Pipe()
            process = _spawning.Process(
                target=worker_process.main, args=(theirs, self.settings), name="vplab-training-worker", daemon=True
            )
            await _started(process)
            theirs.close()  # so that ours ends when the process does
            inbox: asyncio.Queue[FromWorker | None] = asyncio.Queue(_INBOX)
            arguments = (ours, inbox, asyncio.get_running_loop())
            running = _Running(process, ours, inbox, threading.Thread(target=_read, args=arguments, daemon=True))
            running.reader.start()
            metrics.WORKERS_STARTED.inc()
            _log.info("worker_started", pid=process.pid, device=self.settings.device)
            self._running = running
        return self._running

    async def _follow(self, running: _Running, reports: WorkReports | None) -> Done | Failed:
        """Pass on what the worker says until it is done."""
        while True:
            try:
                async with asyncio.timeout(self.silence_s):
                    messages = [await running.inbox.get()]
            except TimeoutError:
                raise WorkerDied(f"the worker said nothing for {self.silence_s:g} s and was killed") from None
            while not running.inbox.empty():
                messages.append(running.inbox.get_nowait())
            told: list[Stage | Progress | Preview] = []
            for message in messages:
                match message:
                    case Stage() | Progress() | Preview():
                        told.append(message)
                        continue
                    case Alive():
                        continue
                if reports is not None and told:
                    await reports.report(told)
                    told = []
                match message:
                    case Checkpoint() if reports is not None:
                        await reports.checkpoint(message)
                    case CommitAsked() if reports is not None:
                        await reports.commit()
                        await _send(running, CommitGranted())
                    case Done() | Failed():
                        return message
                    case None:
                        await asyncio.to_thread(running.process.join, _END_S)
                        raise WorkerDied(f"the worker ended with code {running.process.exitcode}")
            if reports is not None and told:
                await reports.report(told)

    def _schedule_end(self) -> None:
        if self.idle_s is not None and self._running is not None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self.idle_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._turn.locked():
            self._ending = asyncio.create_task(self.end("idle"))


async def _warm(worker: _Worker, task: WarmUp) -> None:
    """Have a worker warm up, again while the registry, which may start together with this service, is not there."""
    for _ in range(_WARM_UP_TRIES):
        try:
            await worker.do(task, None)
            return
        except Unavailable as error:
            _log.info("worker_waits", error=error.message)
            await asyncio.sleep(_WARM_UP_PAUSE_S)
        except VPLabError as error:
            _log.warning("worker_not_warm", error=error.message)
            return


async def _started(process: BaseProcess) -> None:
    """Start a process beside the loop; one that is no longer wanted meanwhile does not stay."""
    starting = asyncio.ensure_future(asyncio.to_thread(process.start))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(lambda _: process.kill())
        raise


async def _ended(running: _Running) -> None:
    """Return once the process is gone and its pipe read to the end."""
    await asyncio.to_thread(running.process.join, _END_S)
    while running.reader.is_alive():  # it may wait for room in the inbox
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await running.inbox.get()
    running.connection.close()


async def _send(running: _Running, message: Claim | WarmUp | CommitGranted | None) -> None:
    try:
        await asyncio.to_thread(running.connection.send, message)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WorkerDied("the worker ended before it took its task") from error


def _read(
    connection: "Connection[Any, Any]",
    inbox: "asyncio.Queue[FromWorker | None]",
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Move what a worker says to the loop, as fast as it is taken; a pipe cannot be awaited."""
    message: FromWorker | None = Alive()
    while message is not None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = None
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
            future = asyncio.run_coroutine_threadsafe(inbox.put(message), loop)
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                future.result()
