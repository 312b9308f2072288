"""Servers without a network, for what calls them: they answer after a while, refuse, or stand still."""

import asyncio
import os
import time
from dataclasses import dataclass, field

from vplab.bench.ports import CallFailed, Connection


@dataclass
class Answering:
    """Implements Connection: every call is answered with its own body."""

    wait_s: float = 0.0
    fails_every: int = 0
    """Every call of that number is refused; 0 for none."""
    stands_still_s: float = 0.0
    """How long the first call keeps everybody from being served."""
    bodies: list[bytes] = field(default_factory=list)

    async def send(self, body: bytes, timeout_s: float) -> bytes:
        self.bodies.append(body)
        if self.stands_still_s and len(self.bodies) == 1:
            time.sleep(self.stands_still_s)
        await asyncio.sleep(self.wait_s)
        if self.fails_every and len(self.bodies) % self.fails_every == 0:
            raise CallFailed("RESOURCE_EXHAUSTED")
        return body

    async def close(self) -> None:
        return


@dataclass(frozen=True)
class AnsweringTarget:
    """Implements Target. ``dies``: the process ends when it connects; ``breaks``: connecting raises."""

    wait_s: float = 0.001
    dies: bool = False
    breaks: bool = False

    async def open(self) -> Connection:
        if self.dies:
            os._exit(3)
        if self.breaks:
            raise RuntimeError("no way")
        return Answering(self.wait_s)
