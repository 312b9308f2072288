"""Unfinished uploads as files in a local folder, each locked by whoever writes it.

A file is named after its blob and a random part, so that two uploads of one blob never write to the same file. The lock
is the kernel's, so it goes with the process that held it, and what a killed process left can be continued.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from vplab.registry.errors import StorageFull, WrongOffset

READ_BYTES: Final = 1024 * 1024
FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FileUploads:
    """Implements ``StagedUploads``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, sha256: str, offset_bytes: int) -> "FileUpload":
        if offset_bytes == 0:
            path = self._folder / f"{sha256}.{uuid.uuid4().hex}.part"
            with full_disk_named():
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            return FileUpload(path, fd)
        held = self._lock_largest(sha256)
        if held is None:
            raise WrongOffset(f"nothing of {sha256} is kept; start at 0", 0)
        upload = FileUpload(*held)
        if upload.size_bytes != offset_bytes:
            expected = upload.size_bytes
            upload.keep()
            raise WrongOffset(f"{expected} bytes of {sha256} are kept, not {offset_bytes}", expected)
        return upload

    def kept_bytes(self, sha256: str) -> int:
        held = self._lock_largest(sha256)
        if held is None:
            return 0
        size = os.fstat(held[1]).st_size
        os.close(held[1])
        return size

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def remove_older(self, before: datetime, *, dry_run: bool) -> int:
        freed = 0
        for path in list(self._folder.glob("*.part")):
            fd = lock_file(path)
            if fd is None:
                continue
            status = os.fstat(fd)
            if status.st_mtime <= before.timestamp():
                freed += status.st_size
                if not dry_run:
                    path.unlink(missing_ok=True)
            os.close(fd)
        return freed

    def _lock_largest(self, sha256: str) -> tuple[Path, int] | None:
        """Lock the longest upload that nobody writes to, and drop the shorter ones: nobody continues those."""
        held: list[tuple[int, Path, int]] = []
        for path in self._folder.glob(f"{sha256}.*.part"):
            fd = lock_file(path)
            if fd is not None:
                held.append((os.fstat(fd).st_size, path, fd))
        held.sort()
        for _, path, fd in held[:-1]:
            path.unlink(missing_ok=True)
            os.close(fd)
        return held[-1][1:] if held else None


class FileUpload:
    """Implements ``StagedUpload``; safe to ``keep`` while another thread still writes."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd: int | None = fd
        self._mutex = threading.Lock()
        self._digest = hashlib.sha256()
        self._size = 0
        while piece := os.read(fd, READ_BYTES):
            self._digest.update(piece)
            self._size += len(piece)

    @property
    def size_bytes(self) -> int:
        return self._size

    def write(self, chunk: bytes) -> None:
        with self._mutex, full_disk_named():
            view = memoryview(chunk)
            while view and self._fd is not None:
                written = os.write(self._fd, view)
                self._digest.update(view[:written])
                self._size += written
                view = view[written:]

    def finish(self) -> tuple[Path, str]:
        with self._mutex:
            return self._path, self._digest.hexdigest()

    def keep(self) -> None:
        with self._mutex:
            if self._size == 0:
                self._path.unlink(missing_ok=True)
            self._close()

    def discard(self) -> None:
        with self._mutex:
            self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)  # and with it the lock
            self._fd = None


def lock_file(path: Path) -> int | None:
    """Open and lock a file; None if somebody has it, or it went away."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink > 0:
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


@contextmanager
def full_disk_named() -> Iterator[None]:
    """Turn the system's "no space left" into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull("the disk takes no more") from error
        raise
