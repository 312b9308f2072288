"""Advisory locks between processes, on files that are never removed."""

import asyncio
import os
from pathlib import Path
from types import TracebackType

from vplab.errors import Unimplemented

_POLL_S = 0.05


class FileLock:
    """One holder's handle on a lock file; two handles exclude each other even inside one process.

    The lock ends with ``release`` or with the process, however that ends. POSIX only: the operating system's ``flock``.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the lock file. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)

    def try_acquire(self, *, exclusive: bool) -> bool:
        """Take the lock, or turn the one that is held into the other kind, unless somebody is in the way.

        A failed or even a successful change of kind lets others in for a moment: check again what the lock protects.
        """
        try:
            import fcntl
        except ImportError:
            raise Unimplemented("this platform has no flock, so processes cannot share a cache safely") from None
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def acquire(self, *, exclusive: bool) -> None:
        """Wait until the lock is taken."""
        while not self.try_acquire(exclusive=exclusive):
            await asyncio.sleep(_POLL_S)

    def release(self) -> None:
        """Let go of the lock; doing it twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "FileLock":
        """Return the handle."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the lock."""
        self.release()
