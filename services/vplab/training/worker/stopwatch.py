"""Where a job's time goes: seconds by the clock, and of this process's processor time, for stages and parts of them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Instant(NamedTuple):
    """A moment on both clocks."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "Instant":
        """Return the present moment; processor time is that of all threads of this process."""
        return cls(time.monotonic(), time.process_time())


class Stopwatch:
    """Adds up what was measured under each name."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Measure what is done in the context, also where it fails."""
        began = Instant.now()
        try:
            yield
        finally:
            self.add(name, began, Instant.now())

    def add(self, name: str, began: Instant, ended: Instant) -> None:
        """Count the time between two moments."""
        wall_s, cpu_s = self._spent.get(name, (0.0, 0.0))
        self._spent[name] = (wall_s + ended.wall_s - began.wall_s, cpu_s + ended.cpu_s - began.cpu_s)

    def metrics(self) -> dict[str, float]:
        """Return ``seconds_NAME`` and ``cpu_seconds_NAME`` for each name."""
        wall = {f"seconds_{name}": wall_s for name, (wall_s, _) in self._spent.items()}
        return wall | {f"cpu_seconds_{name}": cpu_s for name, (_, cpu_s) in self._spent.items()}
