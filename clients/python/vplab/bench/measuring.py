"""Measuring one step after the other, and keeping what was measured when a run is cut short."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from vplab.bench.generators import Generators
from vplab.bench.load import Step
from vplab.bench.samples import Samples, figures
from vplab.bench.stages import gained, read_series
from vplab.bench.works import Work
from vplab.errors import Internal

_MAX: Final = 8

Row = dict[str, Any]


class Stopped(Exception):
    """Ctrl-C ended a step; ``row`` is what was measured of it until then, empty if nothing was."""

    def __init__(self, row: Row) -> None:
        """Keep the row."""
        super().__init__("stopped")
        self.row = row


@dataclass
class Measuring:
    """Runs steps against a deployment."""

    num_processes: int | None
    """Generator processes; None begins with one and doubles them while the busiest is saturated."""
    metrics_urls: Mapping[str, str]
    """Service to the page of its Prometheus series."""
    warm_up_s: float
    duration_s: float
    timeout_s: float
    seed: int = 0
    _open: Generators | None = field(default=None, init=False)
    _work: Work | None = field(default=None, init=False)

    @contextmanager
    def calling(self, work: Work) -> Iterator["Measuring"]:
        """Have generators for one kind of call, for as long as the context lasts."""
        self._work = work
        self._open = Generators(work.target, work.requests, self.num_processes or 1).__enter__()
        try:
            yield self
        finally:
            self._open.__exit__()
            self._open = self._work = None

    def closed(self, num_callers: int, about: Row | None = None) -> Row:
        """Measure callers that each wait for their answer. about: what else the row says.

        Raises Stopped, with the row so far, and as Generators.
        """
        return self._measure(
            {**(about or {}), "num_callers": num_callers}, Step(num_callers, self.duration_s, self.warm_up_s)
        )

    def arriving(self, rate_per_s: float, about: Row | None = None) -> Row:
        """Measure calls that arrive at random at a rate, whatever becomes of those before. Raises as ``closed``."""
        step = Step(0, self.duration_s, self.warm_up_s, rate_per_s=rate_per_s)
        return self._measure({**(about or {}), "rate_per_s": rate_per_s}, step)

    def _measure(self, what: Row, step: Step) -> Row:
        assert self._open is not None
        assert self._work is not None
        step = replace(step, timeout_s=self.timeout_s, seed=self.seed)
        while True:
            row, is_whole = self._once(what, step, self._open, self._work)
            if not is_whole:
                raise Stopped(row)
            more = 2 * self._open.num_processes
            is_helped = step.rate_per_s is not None or more <= step.num_callers
            if self.num_processes is not None or not row["generator"]["is_saturated"] or more > _MAX or not is_helped:
                return row
            self._open.__exit__()
            self._open = Generators(self._work.target, self._work.requests, more).__enter__()

    def _once(self, what: Row, step: Step, generators: Generators, work: Work) -> tuple[Row, bool]:
        before = {area: read_series(url) for area, url in self.metrics_urls.items()}
        parts, is_whole = generators.run(step)
        servers = {area: gained(before[area], read_series(url)) for area, url in self.metrics_urls.items()}
        row = {**what, **figures(parts), **_of_answers(parts, work), "servers": servers}
        return {**row, "cpu_s_per_call": _cpu_s_per_call(servers, work.target.method)}, is_whole


def _of_answers(parts: Sequence[Samples], work: Work) -> Row:
    answers = [answer for part in parts for answer in part.answers]
    if work.num_failed is not None and (failed := sum(map(work.num_failed, answers))):
        raise Internal(f"{failed} parts of {len(answers)} answers failed")
    if work.server_times is None or not answers:
        return {}
    times = [work.server_times(answer) for answer in answers]
    means = {stage: float(np.mean([one[stage] for one in times])) for stage in times[0]}
    return {"answers_say_s": {"num_answers": len(times), **means}}


def _cpu_s_per_call(servers: Mapping[str, Any], method: str) -> float | None:
    """Return the processor time of all services for one call; None where they do not tell."""
    name = f"grpc_server_handling_seconds({method.rpartition('/')[2]},"
    calls = sum(
        found["count"]
        for server in servers.values()
        for label, found in server["mean"].items()
        if label.startswith(name)
    )
    spent = [server["cpu_s"] for server in servers.values()]
    return sum(spent) / calls if calls and None not in spent else None
