"""One service as a child process, with its log."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vplab.client.options import Area

STOP_GRACE_S = 35.0
"""A service drains for up to 25 s by default; then it is killed."""
_MAX_LOG_BYTES = 10 << 20
_TAIL_LINES = 15


@dataclass
class ServiceProcess:
    """A service that can be started, watched and stopped."""

    area: Area
    address: str
    environment: Mapping[str, str]
    """Variables beside those of this process."""
    log: Path | None
    """Where its output goes; None means to this terminal."""
    _process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    async def start(self) -> None:
        """Start the process."""
        self._remove_stale_socket()
        output = None if self.log is None else self._open_log()
        try:
            # In a session of its own: Ctrl-C reaches this command alone, which then stops the services in order.
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "vplab.cli.child",
                f"vplab.{self.area}",
                env={**os.environ, **self.environment, "VPLAB_CLI_PARENT": str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                os.close(output)

    @property
    def pid(self) -> int | None:
        """Process id; None before the start."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while it runs."""
        return None if self._process is None else self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and return the exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Let it drain, then kill it."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log; empty where the output went to the terminal."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-_TAIL_LINES:])

    def _open_log(self) -> int:
        assert self.log is not None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            os.replace(self.log, self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _remove_stale_socket(self) -> None:
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)
