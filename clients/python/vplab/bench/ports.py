"""What the load generator needs of whatever it calls."""

from typing import Protocol


class CallFailed(Exception):
    """A call ended without an answer, or with one that says no."""

    def __init__(self, code: str) -> None:
        """code: a short word to count failures by, such as RESOURCE_EXHAUSTED or HTTP_503."""
        super().__init__(code)
        self.code = code


class Connection(Protocol):
    """An open way to a server, used by many calls at a time on one event loop."""

    async def send(self, body: bytes, timeout_s: float) -> bytes:
        """Return the answer to a request. Raises CallFailed."""
        ...

    async def close(self) -> None:
        """Let go of the server."""
        ...


class Target(Protocol):
    """Where calls go. Goes to another process by pickle, so it holds plain values."""

    async def open(self) -> Connection:
        """Connect; called once in each process."""
        ...
