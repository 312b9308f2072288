"""Addresses of unix sockets: ``unix:/path`` as gRPC writes them."""

import os
import sys
from typing import Final

from vplab.errors import InvalidInput

SCHEME: Final = "unix:"
MAX_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107
"""What ``sun_path`` holds, without the zero at its end."""


def unix_path(address: str, *, field: str) -> str | None:
    """Return the path of a socket's address, None for an address of another kind.

    Raises InvalidInput for a path that is empty or longer than the system can take: connecting would only fail later,
    and say less.
    """
    if not address.startswith(SCHEME):
        return None
    path = address.removeprefix(SCHEME)
    path = path.removeprefix("//") if path.startswith("///") else path
    length = len(os.fsencode(path))
    if not 1 <= length <= MAX_PATH_BYTES:
        message = f"the path of a unix socket has 1 to {MAX_PATH_BYTES} bytes, not {length}: choose a shorter folder"
        raise InvalidInput(message, field=field)
    return path
