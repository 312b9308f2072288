"""Closed and open loops of calls on one event loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vplab.bench.ports import CallFailed, Connection
from vplab.bench.requests import Requests
from vplab.bench.samples import OK, Samples
from vplab.bench.schedules import poisson_arrivals

# A caller that was refused waits before it comes again, as clients do; without it one full queue is a storm of calls.
_PAUSE_AFTER_FAILURE_S: Final = 0.05
_KEPT_ANSWERS: Final = 200
MIN_CALLS: Final = 3
"""A closed loop goes on until each caller has ended so many calls that count, however long they take."""
# An open loop never waits for the server, so this is what bounds its memory. Calls beyond count as failures.
MAX_OPEN_CALLS: Final = 4096
BEYOND_GENERATOR: Final = "GENERATOR_FULL"


@dataclass(frozen=True)
class Step:
    """One thing to measure, as one process does it."""

    num_callers: int
    """Closed loop: callers that each wait for an answer before the next call. Ignored in an open loop."""
    duration_s: float
    warm_up_s: float
    """Time before the window in which calls are made; what of them lies in it is throughput."""
    rate_per_s: float | None = None
    """Open loop: calls per second, arriving as a Poisson process; None is a closed loop."""
    timeout_s: float = 30.0
    """A call without an answer after this has failed."""
    seed: int = 0


class Load:
    """Calls of one process: counts them across steps, so that unique bodies stay unique."""

    def __init__(self, connection: Connection, requests: Requests, first: int = 0, stride: int = 1) -> None:
        """first, stride: this process makes the calls first, first + stride, ...; the others are other processes'."""
        self._connection = connection
        self._requests = requests
        self._next = first
        self._stride = stride

    async def run(self, step: Step, begin: float, stop: asyncio.Event) -> Samples:
        """Measure. begin: when the warm-up begins, on ``time.monotonic()``'s clock. stop: ends the window early."""
        window = _Window(step, begin)
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        ending = asyncio.create_task(stop.wait())
        work = asyncio.create_task(self._open(window) if step.rate_per_s else self._closed(window))
        clock = asyncio.create_task(window.watch())
        await asyncio.wait({ending, clock}, return_when=asyncio.FIRST_COMPLETED)
        window.close(is_cut=stop.is_set())
        ending.cancel()
        clock.cancel()
        await work
        return window.samples()

    async def _closed(self, window: "_Window") -> None:
        await asyncio.gather(*(self._caller(window) for _ in range(window.step.num_callers)))

    async def _caller(self, window: "_Window") -> None:
        num_counted = 0
        while not window.is_over or (num_counted < MIN_CALLS and not window.is_cut):
            due = time.monotonic()
            if await self._call(window, due) != OK:
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            num_counted += window.counts(due)

    async def _open(self, window: "_Window") -> None:
        step = window.step
        assert step.rate_per_s is not None
        arrivals = window.begin + poisson_arrivals(step.rate_per_s, step.warm_up_s + step.duration_s, step.seed)
        calls = set[asyncio.Task[str]]()
        for due in arrivals.tolist():
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            # Calls that were due are made even when the window is over: leaving them out would flatter a busy machine.
            if window.is_cut:
                break
            if len(calls) >= MAX_OPEN_CALLS:
                window.add(due, time.monotonic(), BEYOND_GENERATOR)
                continue
            task = asyncio.create_task(self._call(window, due))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)

    async def _call(self, window: "_Window", due: float) -> str:
        body = self._requests.body(self._next)
        self._next += self._stride
        began = time.monotonic()
        try:
            answer = await self._connection.send(body, window.step.timeout_s)
        except CallFailed as error:
            window.add(due, began, error.code)
            return error.code
        window.add(due, began, OK, answer)
        return OK


class _Window:
    """The part of a step that counts, and what happened in it."""

    def __init__(self, step: Step, begin: float, cpu_clock: Callable[[], float] = time.process_time) -> None:
        self.step = step
        self.begin = begin
        self._start = begin + step.warm_up_s
        self._end = self._start + step.duration_s
        self._cpu_clock = cpu_clock
        self._cpu_start = 0.0
        self._cpu_s = 0.0
        self.is_cut = False
        self._due: list[float] = []
        self._began: list[float] = []
        self._ended: list[float] = []
        self._codes: list[str] = []
        self._answers = deque[bytes](maxlen=_KEPT_ANSWERS)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    async def watch(self) -> None:
        """Return when the window is over."""
        await asyncio.sleep(max(0.0, self._start - time.monotonic()))
        self._cpu_start = self._cpu_clock()
        await asyncio.sleep(max(0.0, self._end - time.monotonic()))

    def close(self, *, is_cut: bool) -> None:
        """End the window now, if it has not ended. is_cut: that was before its time."""
        now = time.monotonic()
        self._end = min(self._end, now)
        self.is_cut = is_cut
        self._read_cpu(now)

    def counts(self, due: float) -> bool:
        """Whether a call that was to start then is one of those that count."""
        return due >= self._start

    def add(self, due: float, began: float, code: str, answer: bytes | None = None) -> None:
        """Take note of a call that has just ended."""
        ended = time.monotonic()
        if ended <= self._start:
            return
        self._due.append(due)
        self._began.append(began)
        self._ended.append(ended)
        self._codes.append(code)
        if answer is not None:
            self._answers.append(answer)

    def samples(self) -> Samples:
        """Return what was seen."""
        due, began, ended = (np.array(times, np.float64) for times in (self._due, self._began, self._ended))
        return Samples(
            latency_s=ended - due,
            end_s=ended - self._start,
            codes=tuple(self._codes),
            window_s=max(0.0, self._end - self._start),
            cpu_s=self._cpu_s,
            lag_s=began - due if self.step.rate_per_s else np.zeros(0),
            answers=tuple(self._answers),
            is_open=self.step.rate_per_s is not None,
        )

    def _read_cpu(self, now: float) -> None:
        if now > self._start:
            self._cpu_s = self._cpu_clock() - self._cpu_start
