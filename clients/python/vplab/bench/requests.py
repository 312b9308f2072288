"""The requests of a load: bodies made once, before anything is measured."""

import os
from collections.abc import Sequence

UNIQUE = b"@vplab-bench----"
"""Placeholder in a body that becomes different bytes, equally many, in every call."""


class Requests:
    """Bodies taken in turn; each placeholder in one is filled with something new each time."""

    def __init__(self, bodies: Sequence[bytes]) -> None:
        if not bodies:
            raise ValueError("a load needs at least one request")
        self._parts = [body.split(UNIQUE) for body in bodies]
        self._nonce = b""
        self._count = 0

    def __len__(self) -> int:
        return len(self._parts)

    def body(self, index: int) -> bytes:
        """Return the body of the call with that number. What it is filled with is of this process and this moment."""
        parts = self._parts[index % len(self._parts)]
        if len(parts) == 1:
            return parts[0]
        if not self._nonce:
            self._nonce = os.urandom(4).hex().encode()  # two generators never send the same image
        filled = [parts[0]]
        for part in parts[1:]:
            filled += (self._nonce, b"%08x" % self._count, part)
            self._count += 1
        return b"".join(filled)


def unique_jpeg(data: bytes) -> bytes:
    """Return a JPEG with the placeholder in a comment: equal pixels, and other bytes in every call."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG file")
    comment = b"\xff\xfe" + (2 + len(UNIQUE)).to_bytes(2, "big") + UNIQUE
    return data[:2] + comment + data[2:]
