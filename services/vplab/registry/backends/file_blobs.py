"""Blobs as files below a folder: ``sha256/ab/cdef...``.

Not through obstore, whose local store moves a file into place without syncing it: after a power failure the name can be
there and the bytes not. Here the bytes are synced before they get their name, and the name before the call returns.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vplab.registry.backends.file_uploads import full_disk_named
from vplab.registry.errors import ResourceNotFound

PIECE_BYTES: Final = 1024 * 1024


def blob_path(sha256: str) -> str:
    """Return where a blob lies: 256 folders keep each of them small."""
    return f"sha256/{sha256[:2]}/{sha256[2:]}"


class FileBlobs:
    """Implements ``BlobStore``; staged files must lie on the same file system."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def store(self, staged: Path, sha256: str) -> None:
        target = self._root / blob_path(sha256)
        with full_disk_named():
            _make_durable_folder(target.parent)
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(staged, target)
            sync_folder(target.parent)

    def size_bytes(self, sha256: str) -> int | None:
        try:
            return (self._root / blob_path(sha256)).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, offset_bytes: int) -> Iterator[bytes]:
        try:
            file = (self._root / blob_path(sha256)).open("rb", buffering=0)
        except FileNotFoundError:
            raise ResourceNotFound(f"blob {sha256}") from None
        with file:
            file.seek(offset_bytes)
            while piece := file.read(PIECE_BYTES):
                yield piece

    def delete(self, sha256: str) -> None:
        (self._root / blob_path(sha256)).unlink(missing_ok=True)


def _make_durable_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
