"""``python -m vplab.cli.child MODULE``: runs a service that does not outlive the command that started it.

A command can be killed without a chance to stop its services. On Linux the kernel then sends them SIGTERM, and they
drain as if they had been told to.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent() -> None:
    """Ask for SIGTERM when the parent dies; leave at once if it died before we could ask."""
    parent = os.environ.pop("VPLAB_CLI_PARENT", "")
    if sys.platform != "linux" or not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit(0)


if __name__ == "__main__":
    follow_parent()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
