"""Sockets in the file system that only the user who serves can connect to."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_ONLY_THE_USER: Final = 0o177
"""As a umask: connecting takes the right to write."""


class SocketTaken(Exception):
    """The path is in use; the message says by what."""


@contextmanager
def binding(path: Path) -> Iterator[None]:
    """Make way for a socket, which is to be bound within the context and then belongs to the user alone.

    What a server that was killed left behind is removed: gRPC would also remove the socket of one that lives.
    Raises SocketTaken where something else is, or somebody listens.
    """
    _remove_stale(path)
    # Of the whole process, but this is its start: nothing else makes files now.
    before = os.umask(_ONLY_THE_USER)
    try:
        yield
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketTaken(f"{path} is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        code = probe.connect_ex(str(path))
    if code in (0, errno.EAGAIN):
        raise SocketTaken(f"another process listens on {path}")
    if code != errno.ECONNREFUSED:
        raise SocketTaken(f"{path} cannot be used: {os.strerror(code)}")
    path.unlink(missing_ok=True)
