"""Load generators in processes of their own, so that several can be used, and each is measured by itself."""

import asyncio
import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any, Final

from vplab.bench.load import MIN_CALLS, Load, Step
from vplab.bench.ports import Target
from vplab.bench.requests import Requests
from vplab.bench.samples import Samples
from vplab.errors import Internal, Unavailable

_GRACE_S: Final = 60.0
_LEAD_S: Final = 0.1  # all have the message before the first begins
_READY, _STOP = "ready", "stop"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Generators:
    """Processes that call one target; a context manager. Not for use by several threads at a time."""

    def __init__(self, target: Target, requests: Requests, num_processes: int = 1) -> None:
        self._target = target
        self._requests = requests
        self.num_processes = num_processes
        self._pipes: list[Pipe] = []
        self._processes: list[Any] = []
        self._timeout_s = 0.0

    def __enter__(self) -> "Generators":
        try:
            with _signals_later():
                for rank in range(self.num_processes):
                    self._start(rank)
            self._answers(_GRACE_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _start(self, rank: int) -> None:
        # Not fork: a copy of a process with gRPC's threads may hang.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._target, self._requests, rank, self.num_processes)
        process = context.Process(target=_main, args=arguments, name=f"vplab-bench-{rank}", daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def run(self, step: Step) -> tuple[list[Samples], bool]:
        """Measure a step whose callers, or rate, are shared among the processes.

        Returns what each saw, and whether the step went to its end: Ctrl-C ends it early.
        Raises Unavailable if a generator dies, Internal if one fails.
        """
        self.begin(step)
        planned_s = _LEAD_S + step.warm_up_s + step.duration_s + (1 + MIN_CALLS) * step.timeout_s
        try:
            return self._answers(planned_s + _GRACE_S), True
        except KeyboardInterrupt:
            return self.stop()

    def begin(self, step: Step) -> None:
        """Begin a step; ``stop`` ends it."""
        self._timeout_s = step.timeout_s
        begin = time.monotonic() + _LEAD_S
        for pipe, share in zip(self._pipes, _shares(step, self.num_processes), strict=True):
            pipe.send((share, begin))

    def stop(self) -> tuple[list[Samples], bool]:
        """End a step early, unless it has ended; returns as ``run``, and raises as it does."""
        is_whole = all(pipe.poll() for pipe in self._pipes)
        for pipe in self._pipes:
            pipe.send(_STOP)
        return self._answers(self._timeout_s + _GRACE_S), is_whole

    def _answers(self, timeout_s: float) -> list[Any]:
        """Wait for one message of each process; those that arrived before a Ctrl-C are kept for the next call."""
        give_up = time.monotonic() + timeout_s
        pending = {pipe for pipe in self._pipes if not pipe.poll()}
        while pending:
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                raise Unavailable("a load generator does not answer")
            pending -= set(wait(list(pending), min(left_s, 1.0)))  # type: ignore[arg-type]
        return [_received(pipe) for pipe in self._pipes]


def _received(pipe: Pipe) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise Unavailable("a load generator ended") from None
    if isinstance(answer, str) and answer != _READY:
        raise Internal(f"a load generator failed:\n{answer}")
    return answer


def _shares(step: Step, num_processes: int) -> Sequence[Step]:
    """Divide callers, or the rate: a sum of independent Poisson processes is one of the summed rate."""
    whole, rest = divmod(step.num_callers, num_processes)
    return [
        replace(
            step,
            num_callers=whole + (rank < rest),
            rate_per_s=step.rate_per_s and step.rate_per_s / num_processes,
            seed=step.seed + rank,
        )
        for rank in range(num_processes)
    ]


@contextmanager
def _signals_later() -> Iterator[None]:
    """Have processes that are started here ignore Ctrl-C and SIGTERM: this one tells them what to do about those.

    Signals that come meanwhile are heard at the end: an exception while a process is being started would leave it with
    half of what it is to read, and it would say so with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda signum, _: came.append(signum)) for number in _SIGNALS}
    is_masked = hasattr(signal, "pthread_sigmask")  # not on Windows
    if is_masked:
        # A new process inherits what is blocked. The tracker comes first because starting it lifts the block.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        if is_masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, action in before.items():
            signal.signal(number, action)
    for signum in came:
        signal.raise_signal(signum)


def _main(pipe: Pipe, target: Target, requests: Requests, rank: int, num_processes: int) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        asyncio.run(_serve(pipe, target, requests, rank, num_processes))
    except (BrokenPipeError, EOFError):
        return  # whoever wanted the figures has left
    except Exception:
        with suppress(OSError):  # nobody is there to be told
            pipe.send(traceback.format_exc())


async def _serve(pipe: Pipe, target: Target, requests: Requests, rank: int, num_processes: int) -> None:
    messages: asyncio.Queue[Any] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        message: Any = _READY
        while message is not None:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                message = None
            try:
                loop.call_soon_threadsafe(messages.put_nowait, message)
            except RuntimeError:
                return  # the loop has ended

    connection = await target.open()
    threading.Thread(target=read, name="control", daemon=True).start()
    try:
        load = Load(connection, requests, rank, num_processes)
        pipe.send(_READY)
        while (message := await messages.get()) is not None:
            if message == _STOP:
                continue  # it came after the step's end
            step, begin = message
            await _measure(pipe, load, step, begin, messages)
    finally:
        await connection.close()


async def _measure(pipe: Pipe, load: Load, step: Step, begin: float, messages: "asyncio.Queue[Any]") -> None:
    stop = asyncio.Event()
    measuring = asyncio.create_task(load.run(step, begin, stop))
    message = asyncio.create_task(messages.get())
    await asyncio.wait({measuring, message}, return_when=asyncio.FIRST_COMPLETED)
    if message.done():
        stop.set()
        if message.result() is None:
            messages.put_nowait(None)
    else:
        message.cancel()
    pipe.send(await measuring)
