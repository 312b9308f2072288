"""Write a file past the page cache.

Through the page cache an embedding costs several times the processor time, mostly for pages that nobody reads again:
what was just written is in memory anyway. Handed to the disk as it is, it costs little more than a copy.
"""

import errno
import mmap
import os
import threading
import uuid
from pathlib import Path
from typing import Final

_ALIGNMENT: Final = 4096
"""Largest block size of disks in use; a buffer, an offset and a length have to be multiples of the disk's own."""
_O_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
"""0 where the system has none, as macOS."""
_UNSUPPORTED: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


class DirectWriter:
    """Writes whole files in one step each. Thread-safe; each thread keeps a buffer as large as its largest file."""

    def __init__(self) -> None:
        self._buffers = threading.local()
        self._is_supported = bool(_O_DIRECT)

    def write(self, path: Path, data: bytes) -> bool:
        """Write a file whose folder may be missing, or answer False where the file system knows no such writes.

        Never seen half written: the file gets its name when it is complete. As with any cache, a power failure may
        leave it without its content, which a checksum then tells. Raises OSError.
        """
        if not self._is_supported or not data:
            return False
        # Named as obstore names what it is writing, so that its listings leave it out.
        part = path.with_name(f"{path.name}#{uuid.uuid4().int}")
        try:
            try:
                file = self._create(part)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = self._create(part)
            try:
                self._write(file, data)
            finally:
                os.close(file)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in _UNSUPPORTED:
                self._is_supported = False
                return False
            raise
        return True

    def _create(self, part: Path) -> int:
        return os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _O_DIRECT, 0o644)

    def _write(self, file: int, data: bytes) -> None:
        num_bytes = -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffer(num_bytes)
        buffer[: len(data)] = data
        view = memoryview(buffer)
        try:
            written = 0
            while written < num_bytes:
                # A full disk may take a part, down to a block, before it refuses the rest.
                written += os.write(file, view[written:num_bytes])
        finally:
            view.release()
        os.ftruncate(file, len(data))

    def _buffer(self, num_bytes: int) -> mmap.mmap:
        """Return memory that begins at a page and stays with the thread: new pages cost more than copying into old."""
        buffer: mmap.mmap | None = getattr(self._buffers, "buffer", None)
        if buffer is None or len(buffer) < num_bytes:
            buffer = mmap.mmap(-1, num_bytes)
            self._buffers.buffer = buffer
        return buffer
