"""How many threads of this process compute at the moment, which decides how many cores a run of a graph may take.

What counts is a thread's whole piece of work and not its run of the graph alone: the one that just reads an image, or
makes a mask of what was computed, needs its core as much. Threads that give way do not count.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vplab.runtime.giving_way import gives_way

_counting = threading.Lock()
_num_at_work = 0
_this_thread = threading.local()


@contextmanager
def at_work() -> Iterator[None]:
    """Count the calling thread, once, however often it says so."""
    global _num_at_work
    if gives_way() or getattr(_this_thread, "is_counted", False):
        yield
        return
    with _counting:
        _num_at_work += 1
    _this_thread.is_counted = True
    try:
        yield
    finally:
        _this_thread.is_counted = False
        with _counting:
            _num_at_work -= 1


def works_alone() -> bool:
    """Say whether the calling thread, which is at work, is the only one."""
    return _num_at_work == 1
