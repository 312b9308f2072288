"""The ``vplab`` command as a real process, and what it leaves running."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# Whatever the machine that runs the tests has set must not decide where they connect.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("VPLAB_")}
# A shell that starts the tests in the background has them ignore SIGINT, and a child inherits that; one that is handled
# here is the default again there, as for a command in a terminal.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
QUIET = {"OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200"}


@dataclass(frozen=True)
class Vplab:
    """Runs commands on one home."""

    home: Path
    variables: dict[str, str]

    def run(
        self, *arguments: object, timeout_s: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        with self.start(*arguments, cwd=cwd) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"vplab {arguments} did not end:\n{out}\n{err}") from None
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: object, cwd: Path | None = None) -> "subprocess.Popen[str]":
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "vplab.cli.main", "--home", str(self.home), *map(str, arguments)],
            env={**CLEAN, **QUIET, **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )

    def services(self) -> dict[str, psutil.Process]:
        """Return the services of this home that are running now, whoever started them."""
        found = {}
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                if process.environ().get("VPLAB_HOME") != str(self.home) or process.status() == psutil.STATUS_ZOMBIE:
                    continue
            except psutil.Error:
                continue
            names = [
                part.removeprefix("vplab.") for part in command if part.startswith("vplab.") and part.count(".") == 1
            ]
            if names:
                found[names[0]] = process
        return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until a condition holds; fail the test when it does not come true."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.05)


def free_port_base() -> int:
    """Return a port with 20 free ones from it on, below those that the system gives to outgoing connections."""
    while True:
        base = random.randrange(20_000, 32_000, 20)
        if all(_is_free(base + offset) for offset in range(20)):
            return base


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """Make sure that a process is gone in the end, and its pipes closed."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()
