"""Threads that compute only when nothing else on the machine wants to: for work that nobody waits for."""

import os
import threading
from typing import Final

# The least of all: beside a thread of ordinary niceness Linux gives it less than a fiftieth of a core.
_NICENESS: Final = 19

_this_thread = threading.local()


def give_way() -> None:
    """Make the calling thread such a one, for good: without privileges there is no way back."""
    _this_thread.gives_way = True
    if hasattr(os, "setpriority"):
        try:
            # On Linux niceness belongs to a thread, and threads it starts later have it too.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        except OSError:
            return  # a sandbox may forbid it; the work is done all the same


def gives_way() -> bool:
    """Say whether the calling thread is such a one."""
    return getattr(_this_thread, "gives_way", False)
