"""Frames of a stream: answered in order, held within a bound, dropped as the caller chose."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, TypeVar

from vplab.segmentation import metrics

Frame = TypeVar("Frame")
Answer = TypeVar("Answer")

MAX_NOTICES: Final = 256
"""Dropped frames whose notices may wait to be taken; then no frame is read until some are. Without it a fast sender and
a slow taker would gather notices for ever."""


class DropPolicy(Enum):
    """What happens to a frame that arrives while the stream holds as many as it may."""

    WAIT = "wait"
    OLDEST = "oldest"
    NEWEST = "newest"


@dataclass(frozen=True)
class Dropped(Generic[Frame]):
    """The answer to a frame that was not worked on."""

    frame_id: str
    num_dropped: int


class _Slot(Generic[Frame, Answer]):
    """One frame's place in the order of answers."""

    def __init__(self, frame_id: str, frame: Frame | None) -> None:
        self.frame_id = frame_id
        self.frame = frame
        """None once it was begun or dropped, so that its picture is not kept."""
        self.answer: Answer | Dropped[Frame] | None = None
        self.is_dropped = False


class FrameStream(Generic[Frame, Answer]):
    """Works on a stream's frames.

    It holds at most ``max_in_flight`` frames, counting those whose answers are not taken yet; at most ``num_at_once``
    are worked on at a time. ``work`` must not raise: a frame's failure is its answer.
    """

    def __init__(
        self,
        work: Callable[[Frame], Awaitable[Answer]],
        frame_id: Callable[[Frame], str],
        policy: DropPolicy,
        *,
        max_in_flight: int,
        num_at_once: int,
    ) -> None:
        self._work = work
        self._frame_id = frame_id
        self._policy = policy
        self._max_in_flight = max_in_flight
        self._num_at_once = num_at_once
        self._slots: deque[_Slot[Frame, Answer]] = deque()
        self._answered = asyncio.Event()
        self._room = asyncio.Event()
        self._working: set[asyncio.Task[None]] = set()
        self._num_dropped = 0
        self._num_reported = 0
        self._has_ended = False
        self._failure: BaseException | None = None

    @property
    def num_held(self) -> int:
        """Frames that are waiting, worked on, or answered and not taken."""
        return sum(not slot.is_dropped for slot in self._slots)

    @property
    def num_notices(self) -> int:
        """Notices of dropped frames that are not taken."""
        return len(self._slots) - self.num_held

    async def answers(self, frames: AsyncIterator[Frame]) -> AsyncIterator[Answer | Dropped[Frame]]:
        """Yield one answer for each frame, in their order. A failure of ``frames`` is raised after the answers."""
        reader = asyncio.create_task(self._read(frames))
        try:
            while True:
                while self._slots and self._slots[0].answer is not None:
                    slot = self._slots[0]
                    answer = slot.answer
                    assert answer is not None
                    yield answer
                    # Held until the taker asked for more: what it has not taken yet still counts.
                    self._slots.popleft()
                    self._note()
                if self._has_ended and not self._slots:
                    if self._failure is not None:
                        raise self._failure
                    return
                self._answered.clear()
                await self._answered.wait()
        finally:
            tasks = [reader, *self._working]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._slots.clear()
            self._note()

    async def _read(self, frames: AsyncIterator[Frame]) -> None:
        try:
            while True:
                while not self._may_read():
                    self._room.clear()
                    await self._room.wait()
                frame = await anext(frames, None)
                if frame is None:
                    break
                self._admit(frame)
        except Exception as error:
            self._failure = error
        self._has_ended = True
        self._note()

    def _may_read(self) -> bool:
        if self._policy is DropPolicy.WAIT:
            return self.num_held < self._max_in_flight
        return self.num_notices < MAX_NOTICES

    def _admit(self, frame: Frame) -> None:
        slot: _Slot[Frame, Answer] = _Slot(self._frame_id(frame), frame)
        self._slots.append(slot)
        if self.num_held > self._max_in_flight:
            oldest = next(s for s in self._slots if s.frame is not None)
            self._drop(oldest if self._policy is DropPolicy.OLDEST else slot)
        self._begin()
        self._note()

    def _drop(self, slot: "_Slot[Frame, Answer]") -> None:
        self._num_dropped += 1
        slot.frame = None
        slot.is_dropped = True
        slot.answer = Dropped(slot.frame_id, self._num_dropped)
        metrics.FRAMES.labels("dropped").inc()

    def _begin(self) -> None:
        for slot in self._slots:
            if len(self._working) >= self._num_at_once:
                return
            if slot.frame is not None:
                frame, slot.frame = slot.frame, None
                task = asyncio.create_task(self._answer(slot, frame))
                self._working.add(task)
                task.add_done_callback(self._done)

    async def _answer(self, slot: "_Slot[Frame, Answer]", frame: Frame) -> None:
        slot.answer = await self._work(frame)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._working.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._has_ended = True
            self._slots.clear()
        self._begin()
        self._note()

    def _note(self) -> None:
        self._answered.set()
        self._room.set()
        metrics.FRAMES_HELD.inc(self.num_held - self._num_reported)
        self._num_reported = self.num_held
