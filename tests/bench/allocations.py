"""What Python code allocates while it runs, large pieces only, by the line that was running.

``tracemalloc`` knows how much memory Python's objects, ``bytes`` and numpy's arrays have at any moment, and how much
they had at most since one last asked; a trace function asks at every line of the packages that are looked at. What the
peak rose by within a line is what the line, and whatever it called elsewhere, had allocated together, also where it was
freed before the line ended: a copy that lives for a microsecond is seen. What fits into memory that the same line had
given back before is not seen, and what another thread does is charged to the line that ran last: one call at a time.
"""

import sys
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

OUTSIDE = ("", 0, "gRPC and asyncio")
Site = tuple[str, int, str]
"""File, line, function."""


@dataclass
class Seen:
    """What was allocated while a context lasted."""

    by_site: dict[Site, int] = field(default_factory=dict)
    """Bytes of pieces above the least that counts."""
    peak: int = 0
    """Most bytes at a time beyond those at the start."""


class Allocations:
    """Traces every thread that begins while the context lasts, and the one that entered it."""

    def __init__(self, roots: Sequence[Path], least_bytes: int = 64 << 10) -> None:
        """roots: folders whose lines are told apart. least_bytes: a line that allocates less is not noted."""
        self._roots = tuple(f"{root}/" for root in roots)
        self._least = least_bytes
        self._is_ours: dict[CodeType, bool] = {}
        self._lock = threading.Lock()
        self._seen: Seen | None = None
        self._site: Site = OUTSIDE
        self._before = 0
        self._start = 0

    def __enter__(self) -> "Allocations":
        tracemalloc.start()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]  # which is what undoes it
        tracemalloc.stop()

    @contextmanager
    def recording(self) -> Iterator[Seen]:
        """Note what is allocated until the context ends."""
        seen = Seen()
        with self._lock:
            tracemalloc.reset_peak()
            self._start = self._before = tracemalloc.get_traced_memory()[0]
            self._site, self._seen = OUTSIDE, seen
        try:
            yield seen
        finally:
            with self._lock:
                self._step(OUTSIDE)
                self._seen = None

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self._looks_at(frame.f_code):
            return None
        if self._seen is not None and event != "exception":
            with self._lock:
                self._step(self._caller(frame) if event == "return" else _site(frame))
        return self._trace

    def _step(self, site: Site) -> None:
        """Charge what was allocated since the last step to the line of that step, and go on at another."""
        seen = self._seen
        if seen is None:
            return
        now, peak = tracemalloc.get_traced_memory()
        if peak - self._before >= self._least:
            seen.by_site[self._site] = seen.by_site.get(self._site, 0) + peak - self._before
        seen.peak = max(seen.peak, peak - self._start)
        self._site, self._before = site, now
        tracemalloc.reset_peak()

    def _caller(self, frame: FrameType) -> Site:
        """Return where a function of ours goes on once this one returns, or hands over to the event loop."""
        back = frame.f_back
        while back is not None and not self._looks_at(back.f_code):
            back = back.f_back
        return OUTSIDE if back is None else _site(back)

    def _looks_at(self, code: CodeType) -> bool:
        found = self._is_ours.get(code)
        if found is None:
            found = self._is_ours[code] = code.co_filename.startswith(self._roots)
        return found


def _site(frame: FrameType) -> Site:
    return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname
