"""A bounded, deadline-aware queue in front of the threads that may use a device.

The event loop admits, cancels and settles; a thread takes the next batch by itself, so a busy loop does not leave the
device idle and a long computation does not hold up the loop. Work that is refused is refused before it costs anything.
"""

import asyncio
import heapq
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from vplab.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from vplab.runtime import metrics
from vplab.runtime.at_work import at_work
from vplab.runtime.fair_queue import FairQueue, Ticket
from vplab.runtime.giving_way import give_way

Item = TypeVar("Item")
Result = TypeVar("Result")

# Weight of the newest run in the moving average: a tenfold change is followed to within 10 % in about eight runs.
_NEWEST_WEIGHT: Final = 0.25
_BATCHES_LEFT: Final = 2
_MAX_KEYS: Final = 1024
_SLACK: Final = 64
_RETRY_RANGE_S: Final = (0.05, 30.0)
_RETRY_UNKNOWN_S: Final = 1.0

_open_queues: "weakref.WeakSet[DeviceQueue[Any, Any]]" = weakref.WeakSet()


class Priority(IntEnum):
    """Who waits for the result; a lower value is served first, always. Classes never share a batch."""

    INTERACTIVE = 0
    """A person at a screen."""
    INLINE = 1
    """A machine on a line, with its own cycle time."""
    BATCH = 2
    """Nobody: precomputation, and calls that say so, as for folders and evaluation. Starves while the others keep the
    device busy."""


class _Entry(Generic[Item, Result]):
    __slots__ = ("deadline", "enqueued", "future", "item", "priority", "ticket")

    def __init__(self, item: Item, priority: Priority, deadline: float | None) -> None:
        self.item = item
        self.priority = priority
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def fail_soon(self, error: Exception) -> None:
        """Settle from a device thread."""
        _call_soon(self.future.get_loop(), _settle, self.future, error)


@dataclass(eq=False)
class _Run(Generic[Item, Result]):
    """A batch on the device."""

    key: Hashable
    entries: Sequence[_Entry[Item, Result]]
    began: float
    expected_s: float


_Place = Ticket[_Entry[Item, Result]]


class DeviceQueue(Generic[Item, Result]):
    """Runs submitted items on its threads, in batches, by priority and then fairly between clients.

    ``run`` gets 1 to ``max_batch_size`` items of one class and of equal ``batch_key`` and returns as many results in
    the same order; a result that is an Exception instance is raised for its item alone, an exception raised by ``run``
    for all of them. A batch that is not full waits until its first item is ``max_wait_s`` old. ``capacity`` bounds the
    items that wait. ``num_threads`` is how many batches run at a time, for a ``run`` that may be called so; none takes
    more than half of its share of what waits, so that the others, and it itself afterwards, have something to do.

    ``num_background_threads``: the class BATCH gets a queue and threads of its own, which give way to everything else
    on the machine. For a CPU: nobody has to wait there for a run of BATCH to end, in this process or another.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        name: str,
        capacity: int,
        max_batch_size: int = 1,
        max_wait_s: float = 0.0,
        batch_key: Callable[[Item], Hashable] | None = None,
        num_threads: int = 1,
        num_background_threads: int = 0,
        gives_way: bool = False,
    ) -> None:
        if capacity < 1 or max_batch_size < 1 or max_wait_s < 0 or num_threads < 1:
            message = "capacity, max_batch_size and num_threads must be at least 1 and max_wait_s at least 0"
            raise ValueError(message)
        self.name = name
        self.capacity = capacity
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._batch_key = batch_key or (lambda _item: None)
        self._changed = threading.Condition()
        self._waiting: dict[Priority, FairQueue[_Entry[Item, Result]]] = {p: FairQueue() for p in Priority}
        self._deadlines: list[tuple[float, int, _Place[Item, Result]]] = []
        self._num_admitted = 0
        self._running: list[_Run[Item, Result]] = []
        self._item_seconds: dict[Hashable, float] = {}
        self._is_closing = False
        self._gives_way = gives_way
        self._background: DeviceQueue[Item, Result] | None = None
        if num_background_threads:
            self._background = DeviceQueue(
                run,
                name=f"{name}-batch",
                capacity=capacity,
                max_batch_size=max_batch_size,
                max_wait_s=max_wait_s,
                batch_key=batch_key,
                num_threads=num_background_threads,
                gives_way=True,
            )
        self._threads = [
            threading.Thread(target=self._work, name=f"device-{name}" + (f"-{i}" if i else ""), daemon=True)
            for i in range(num_threads)
        ]
        self._metrics = metrics.QueueMetrics(name, [priority.name for priority in Priority])

    @property
    def depth(self) -> int:
        """Number of items that wait."""
        return sum(len(waiting) for waiting in self._waiting.values())

    @property
    def num_running(self) -> int:
        """Number of items on the device."""
        return sum(len(run.entries) for run in self._running)

    @property
    def is_alive(self) -> bool:
        """Whether a thread still runs: true after ``close`` when a computation would not end in time."""
        return any(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        """Start the threads. Items submitted earlier wait for this."""
        for thread in self._threads:
            thread.start()
        _open_queues.add(self)
        if self._background is not None:
            self._background.start()

    async def submit(
        self,
        item: Item,
        *,
        priority: Priority = Priority.INTERACTIVE,
        deadline: float | None = None,
        client: Hashable = None,
    ) -> Result:
        """Wait for the item's result. ``deadline`` is on ``time.monotonic()``'s clock, in seconds.

        client: on whose behalf; clients of a class share the device evenly, however much each of them submits.

        Cancelling takes a waiting item out of the queue; the result of a running one is dropped.

        Raises ResourceExhausted (with the seconds to wait) if the queue is full of work that is as urgent and of
        clients with no more in it, or cannot serve the item by its deadline; DeadlineExceeded if the deadline has
        passed or passes meanwhile; Unavailable once the queue closes.
        """
        if self._background is not None and priority is Priority.BATCH:
            return await self._background.submit(item, priority=priority, deadline=deadline, client=client)
        entry = _Entry[Item, Result](item, priority, deadline)
        key = self._batch_key(item)
        place = Ticket(entry, client, key, self._item_seconds.get(key, 0.0))
        future = entry.future
        self._admit(place, entry)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()) as limit:
                return await future
        except TimeoutError:
            if not limit.expired():
                raise  # it is the computation's own
            raise DeadlineExceeded(f"the deadline passed while the {self.name} queue had the work") from None
        finally:
            self._withdraw(place, entry)

    async def close(self, grace_s: float | None = 5.0) -> None:
        """Refuse new items, finish the waiting ones within ``grace_s`` (None: however long), fail the rest."""
        if self._background is not None:
            # What nobody waits for can be done again; it must not take from the time of the others.
            await self._background.close(0.0 if grace_s is not None else None)
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        until = None if grace_s is None else time.monotonic() + grace_s
        while self.is_alive and (until is None or time.monotonic() < until):
            await asyncio.sleep(0.01)
        with self._changed:
            left = [self._take(p, place) for p, waiting in self._waiting.items() for place in waiting.all()]
        for entry in left:
            _settle(entry.future, Unavailable(f"the {self.name} queue is closing"))
        if not self.is_alive:
            _open_queues.discard(self)

    def _admit(self, place: _Place[Item, Result], entry: _Entry[Item, Result]) -> None:
        now, priority = time.monotonic(), entry.priority
        if entry.deadline is not None and entry.deadline <= now:
            self._metrics.refused(priority.name, "deadline")
            raise DeadlineExceeded("the deadline passed before any work began")
        displaced = None
        with self._changed:
            if self._is_closing:
                raise Unavailable(f"the {self.name} queue is closing")
            if not self._meets_deadline(place, entry, now):
                self._metrics.refused(priority.name, "deadline")
                message = f"the {self.name} queue cannot serve the request before its deadline"
                raise ResourceExhausted(message, retry_after_s=self._retry_after_s(now))
            if self.depth >= self.capacity:
                displaced = self._displaced_by(place, priority)
                if displaced is None:
                    self._metrics.refused(priority.name, "full")
                    raise ResourceExhausted(f"the {self.name} queue is full", retry_after_s=self._retry_after_s(now))
            self._waiting[priority].add(place)
            if entry.deadline is not None:
                self._num_admitted += 1
                heapq.heappush(self._deadlines, (entry.deadline, self._num_admitted, place))
            self._note_depth(priority)
            self._changed.notify()
        if displaced is not None:
            self._metrics.refused(displaced.priority.name, "displaced")
            why = "more urgent work" if displaced.priority > priority else "work of others"
            error = ResourceExhausted(f"{why} filled the {self.name} queue", retry_after_s=self._retry_after_s(now))
            _settle(displaced.future, error)

    def _withdraw(self, place: _Place[Item, Result], entry: _Entry[Item, Result]) -> None:
        if entry.future.done() and not entry.future.cancelled():
            return  # it was settled, so it has left
        with self._changed:
            if place.load is not None:
                self._take(entry.priority, place)
                self._metrics.cancelled("waiting")
            elif entry.future.cancelled() and any(entry in run.entries for run in self._running):
                self._metrics.cancelled("running")

    def _work(self) -> None:
        if self._gives_way:
            give_way()
        while run := self._next_run():
            for entry in run.entries:
                self._metrics.waited(entry.priority.name, run.began - entry.enqueued)
            with at_work():
                outcomes = self._outcomes([entry.item for entry in run.entries])
            seconds = time.monotonic() - run.began
            with self._changed:
                self._learn(run.key, seconds / len(run.entries))
                self._running.remove(run)
            _call_soon(run.entries[0].future.get_loop(), _settle_all, run.entries, outcomes)
            self._metrics.ran(seconds, len(run.entries))
            # What ran must not stay in memory while the thread waits for more.
            del run, outcomes, entry

    def _next_run(self) -> _Run[Item, Result] | None:
        """Block until a batch is due and take it; None once the queue closes and is drained."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._drop_expired(now)
                priority = next((p for p, waiting in self._waiting.items() if len(waiting)), None)
                if priority is None:
                    if self._is_closing:
                        return None
                    self._changed.wait()
                    continue
                batch = self._batch(priority)
                wait_s = self._wait_s(batch, now)
                if wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            expected_s = sum(place.seconds for place in batch)
            entries = [self._take(priority, place, is_served=True) for place in batch]
            run = _Run(batch[0].key, entries, now, expected_s)
            self._running.append(run)
            return run

    def _batch(self, priority: Priority) -> Sequence[_Place[Item, Result]]:
        """Return whose turn it is in a class, with what may share the run."""
        waiting = self._waiting[priority]
        first = waiting.first()
        assert first is not None, "the class has something that waits"
        # One thread takes what there is. Of several that each do a batch as slowly as its items one by one, a batch of
        # b items delays its first by b - 1 runs; with half of a thread's share that is half of its wait.
        num_threads = len(self._threads)
        share = len(waiting) if num_threads == 1 else max(1, len(waiting) // (_BATCHES_LEFT * num_threads))
        most = min(self._max_batch_size, share)
        return [first] if most == 1 else waiting.next_of(first.key, most)

    def _wait_s(self, batch: Sequence[_Place[Item, Result]], now: float) -> float:
        if len(batch) >= self._max_batch_size or self._is_closing or not self._max_wait_s:
            return 0.0
        run_s = self._item_seconds.get(batch[0].key, 0.0) * len(batch)
        entries = [place.load for place in batch if place.load is not None]
        latest = [entry.deadline - run_s for entry in entries if entry.deadline is not None]
        return min([entries[0].enqueued + self._max_wait_s, *latest]) - now

    def _drop_expired(self, now: float) -> None:
        heap = self._deadlines
        while heap and (heap[0][2].load is None or heap[0][0] <= now):
            _, _, place = heapq.heappop(heap)
            if place.load is not None:
                entry = self._take(place.load.priority, place)
                self._metrics.refused(entry.priority.name, "deadline")
                entry.fail_soon(DeadlineExceeded("the deadline passed before any work began"))
        if len(heap) > 2 * self.depth + _SLACK:
            self._deadlines = [item for item in heap if item[2].load is not None]
            heapq.heapify(self._deadlines)

    def _outcomes(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            results = self._run(items)
        except Exception as error:
            return [error] * len(items)
        except BaseException as error:
            # SystemExit and its like must not end the device's thread and leave every caller waiting.
            failure = Internal(f"the {self.name} computation was ended by {type(error).__name__}")
            failure.__cause__ = error
            return [failure] * len(items)
        if len(results) != len(items):
            return [Internal(f"the {self.name} computation returned {len(results)} results for {len(items)}")] * len(
                items
            )
        return results

    def _meets_deadline(self, place: _Place[Item, Result], entry: _Entry[Item, Result], now: float) -> bool:
        """Say whether the moving averages leave hope. An idle device always tries.

        Without that exception one slow first run (a graph being compiled) would make every later call be refused, and a
        refused call never corrects the average. Items that run in one batch are counted by their share of it.
        """
        if entry.deadline is None or (not self._running and not self.depth):
            return True
        ahead_s = sum(waiting.seconds for p, waiting in self._waiting.items() if p < entry.priority)
        ahead_s += self._waiting[entry.priority].seconds_before(place.client)
        return now + self._drain_s(ahead_s + place.seconds, now) <= entry.deadline

    def _retry_after_s(self, now: float) -> float:
        drain_s = self._drain_s(sum(waiting.seconds for waiting in self._waiting.values()), now)
        return min(max(drain_s, _RETRY_RANGE_S[0]), _RETRY_RANGE_S[1]) if drain_s else _RETRY_UNKNOWN_S

    def _drain_s(self, waiting_s: float, now: float) -> float:
        left_s = sum(max(0.0, run.began + run.expected_s - now) for run in self._running)
        return (left_s + waiting_s) / len(self._threads)

    def _learn(self, key: Hashable, item_seconds: float) -> None:
        known = self._item_seconds.pop(key, None)  # popped, so that the order is by last use
        if known is None and len(self._item_seconds) >= _MAX_KEYS:
            del self._item_seconds[next(iter(self._item_seconds))]
        self._item_seconds[key] = item_seconds if known is None else known + _NEWEST_WEIGHT * (item_seconds - known)

    def _displaced_by(self, place: _Place[Item, Result], priority: Priority) -> _Entry[Item, Result] | None:
        """Take out the newest item of the least urgent class below, else of a client of this one that has more."""
        for lower in sorted(Priority, reverse=True):
            waiting = self._waiting[lower]
            found = waiting.newest_of_largest() if lower >= priority else None
            if found is None:
                continue
            if lower > priority or waiting.num_of(found.client) > waiting.num_of(place.client) + 1:
                return self._take(lower, found)
        return None

    def _take(
        self, priority: Priority, place: _Place[Item, Result], *, is_served: bool = False
    ) -> _Entry[Item, Result]:
        entry = self._waiting[priority].remove(place, is_served=is_served)
        self._note_depth(priority)
        return entry

    def _note_depth(self, priority: Priority) -> None:
        self._metrics.depth(priority.name, len(self._waiting[priority]))


def open_queues() -> list[DeviceQueue[Any, Any]]:
    """Return the queues of this process whose thread runs, by name."""
    return sorted(_open_queues, key=lambda queue: queue.name)


def _settle_all(batch: Sequence[_Entry[Item, Result]], outcomes: Sequence[Result | Exception]) -> None:
    for entry, outcome in zip(batch, outcomes, strict=True):
        _settle(entry.future, outcome)


def _settle(future: "asyncio.Future[Any]", outcome: object) -> None:
    if future.done():
        return  # its caller went away
    if isinstance(outcome, StopIteration):
        outcome = Internal("the computation raised StopIteration")  # a future refuses to hold one
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise
