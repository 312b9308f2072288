"""What reaches the queues of a process, and as what: for tests of how urgent a call is and for whom it is made."""

from dataclasses import dataclass
from typing import Any

import pytest

from vplab.runtime.device_queue import DeviceQueue, Priority


@dataclass(frozen=True)
class Seen:
    """One piece of work."""

    queue: str
    priority: Priority
    client: str


class QueueRecord:
    """Notes what is submitted to any queue, while the test lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Seen] = []
        submit = DeviceQueue.submit

        async def noting(queue: DeviceQueue[Any, Any], item: Any, **about: Any) -> Any:
            self.seen.append(Seen(queue.name, about["priority"], about["client"]))
            return await submit(queue, item, **about)

        monkeypatch.setattr(DeviceQueue, "submit", noting)

    def take(self, *queues: str) -> list[Seen]:
        """Return what was seen of some queues, and forget everything."""
        taken = [seen for seen in self.seen if seen.queue in queues]
        self.seen.clear()
        return taken
