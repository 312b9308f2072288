"""A graph that several threads run: on all cores when it is alone, on one core each when they run side by side.

A run on all cores is the quickest answer, and a waste once others wait: its threads wait for each other at every
operator, and what lies between the operators is done by one of them. So on the CPU a small graph has two sessions, and
each run takes the one that fits. Threads that give way are always content with one core: their priority is their own,
while the threads of a session have that of whoever made it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from vplab.runtime.at_work import at_work, works_alone
from vplab.runtime.giving_way import gives_way
from vplab.runtime.onnx_session import OnnxSettings, create_session, num_cores, runs_on_cpu

_MAX_TWICE_BYTES: Final = 64 << 20
"""Largest graph whose weights may be in memory twice. Larger ones have operators that use all cores well anyway."""


class GraphSessions:
    """The sessions of one graph. Thread-safe."""

    def __init__(self, wide: Any, narrow: Any | None = None) -> None:
        """wide: uses all cores, or the GPU; without a narrow one its runs take turns."""
        self.wide = wide
        self._narrow = narrow
        self._turns = threading.Lock()

    @property
    def num_sessions(self) -> int:
        """How many times the weights are in memory."""
        return 1 if self._narrow is None else 2

    @contextmanager
    def turn(self) -> Iterator[Any]:
        """Give the session for one run."""
        if self._narrow is None:
            with self._turns:
                yield self.wide
        elif gives_way():
            yield self._narrow
        else:
            with at_work():
                yield self.wide if works_alone() else self._narrow


def open_sessions(graph: Path, settings: OnnxSettings) -> GraphSessions:
    """Load a graph. Raises as ``create_session``."""
    wide = create_session(graph, settings)
    if not serves_side_by_side(settings) or _num_bytes(graph) > _MAX_TWICE_BYTES:
        return GraphSessions(wide)
    return GraphSessions(wide, create_session(graph, replace(settings, intra_op_threads=1)))


def serves_side_by_side(settings: OnnxSettings) -> bool:
    """Say whether several runs at a time are of use: on a CPU of several cores."""
    return runs_on_cpu(settings) and (settings.intra_op_threads or num_cores()) > 1


def _num_bytes(graph: Path) -> int:
    """Return the size of a graph with its external data, which lies beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
