"""Threads that leave the cores to everything else on the machine: for work that nobody waits for."""

import os
import threading
from typing import Final

# So much nicer than the rest of the process, which Linux weighs as a tenth of it: hardly felt, and yet it gets on.
_NICER: Final = 10
_NICEST: Final = 19

_this_thread = threading.local()


def give_way() -> None:
    """Make the calling thread such a one, for good: without privileges there is no way back."""
    _this_thread.gives_way = True
    if hasattr(os, "setpriority"):
        try:
            # On Linux niceness belongs to a thread, and threads it starts later have it too.
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICER
            os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _NICEST))
        except OSError:
            return  # a sandbox may forbid it; the work is done all the same


def gives_way() -> bool:
    """Say whether the calling thread is such a one."""
    return getattr(_this_thread, "gives_way", False)
