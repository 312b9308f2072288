"""Noticing that a file was replaced."""

import os
from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return something that differs when one of the files was written or replaced. Raises OSError if one is missing.

    The inode is part of it because Kubernetes swaps a symbolic link and may keep the times.
    """
    found = [os.stat(path) for path in paths]
    return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)
