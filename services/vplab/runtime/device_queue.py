"""A bounded, deadline-aware queue in front of the one thread that may use a device.

The event loop admits, cancels and settles; the thread takes the next batch by itself, so a busy loop does not leave the
device idle and a long computation does not hold up the loop. Work that is refused is refused before it costs anything.
"""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from vplab.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from vplab.runtime import metrics

Item = TypeVar("Item")
Result = TypeVar("Result")

# Weight of the newest run in the moving average: a tenfold change is followed to within 10 % in about eight runs.
_NEWEST_WEIGHT: Final = 0.25
_MAX_KEYS: Final = 1024
_RETRY_RANGE_S: Final = (0.05, 30.0)
_RETRY_UNKNOWN_S: Final = 1.0

_open_queues: "weakref.WeakSet[DeviceQueue[Any, Any]]" = weakref.WeakSet()


class Priority(IntEnum):
    """Who waits for the result; a lower value is served first, always."""

    INTERACTIVE = 0
    """A person at a screen."""
    INLINE = 1
    """A machine on a line, with its own cycle time."""
    BATCH = 2
    """Nobody: precomputation, folders, evaluation. Starves while the others keep the device busy."""


class _Entry(Generic[Item, Result]):
    __slots__ = ("deadline", "enqueued", "future", "item", "key", "priority")

    def __init__(self, item: Item, key: Hashable, priority: Priority, deadline: float | None) -> None:
        self.item = item
        self.key = key
        self.priority = priority
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def fail_soon(self, error: Exception) -> None:
        """Settle from the device thread."""
        _call_soon(self.future.get_loop(), _settle, self.future, error)


class DeviceQueue(Generic[Item, Result]):
    """Runs submitted items on one thread, in batches, by priority and then in order of arrival.

    ``run`` gets 1 to ``max_batch_size`` items of equal ``batch_key`` and returns as many results in the same order; a
    result that is an Exception instance is raised for its item alone, an exception raised by ``run`` for all of them.
    A batch that is not full waits until its first item is ``max_wait_s`` old. ``capacity`` bounds the items that wait.
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
    ) -> None:
        if capacity < 1 or max_batch_size < 1 or max_wait_s < 0:
            raise ValueError("capacity and max_batch_size must be at least 1 and max_wait_s at least 0")
        self.name = name
        self.capacity = capacity
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_wait_s = max_wait_s
        self._batch_key = batch_key or (lambda _item: None)
        self._changed = threading.Condition()
        self._waiting: dict[Priority, dict[_Entry[Item, Result], None]] = {priority: {} for priority in Priority}
        self._running: Sequence[_Entry[Item, Result]] = ()
        self._running_since = 0.0
        self._item_seconds: dict[Hashable, float] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name=f"device-{name}", daemon=True)
        metrics.precreate_queue(name, (priority.name for priority in Priority))

    @property
    def depth(self) -> int:
        """Number of items that wait."""
        return sum(len(entries) for entries in self._waiting.values())

    @property
    def num_running(self) -> int:
        """Number of items on the device."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether the thread still runs: true after ``close`` when a computation would not end in time."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread. Items submitted earlier wait for this."""
        self._thread.start()
        _open_queues.add(self)

    async def submit(
        self, item: Item, *, priority: Priority = Priority.INTERACTIVE, deadline: float | None = None
    ) -> Result:
        """Wait for the item's result. ``deadline`` is on ``time.monotonic()``'s clock, in seconds.

        Cancelling takes a waiting item out of the queue; the result of a running one is dropped.

        Raises ResourceExhausted (with the seconds to wait) if the queue is full of work that is as urgent, or cannot
        serve the item by its deadline; DeadlineExceeded if the deadline has passed or passes meanwhile; Unavailable
        once the queue closes.
        """
        entry = _Entry[Item, Result](item, self._batch_key(item), priority, deadline)
        self._admit(entry)
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()) as limit:
                return await entry.future
        except TimeoutError:
            if not limit.expired():
                raise  # it is the computation's own
            raise DeadlineExceeded(f"the deadline passed while the {self.name} queue had the work") from None
        finally:
            self._withdraw(entry)

    async def close(self, grace_s: float | None = 5.0) -> None:
        """Refuse new items, finish the waiting ones within ``grace_s`` (None: however long), fail the rest."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        until = None if grace_s is None else time.monotonic() + grace_s
        while self._thread.is_alive() and (until is None or time.monotonic() < until):
            await asyncio.sleep(0.01)
        with self._changed:
            left = list(self._in_order())
            for entry in left:
                self._forget(entry)
        for entry in left:
            _settle(entry.future, Unavailable(f"the {self.name} queue is closing"))
        if not self._thread.is_alive():
            _open_queues.discard(self)

    def _admit(self, entry: _Entry[Item, Result]) -> None:
        now = time.monotonic()
        if entry.deadline is not None and entry.deadline <= now:
            self._refused(entry, "deadline")
            raise DeadlineExceeded("the deadline passed before any work began")
        displaced = None
        with self._changed:
            if self._is_closing:
                raise Unavailable(f"the {self.name} queue is closing")
            retry_after_s = self._retry_after_s(now)
            if not self._meets_deadline(entry, now):
                self._refused(entry, "deadline")
                message = f"the {self.name} queue cannot serve the request before its deadline"
                raise ResourceExhausted(message, retry_after_s=retry_after_s)
            if self.depth >= self.capacity:
                displaced = self._less_urgent_than(entry.priority)
                if displaced is None:
                    self._refused(entry, "full")
                    raise ResourceExhausted(f"the {self.name} queue is full", retry_after_s=retry_after_s)
                self._forget(displaced)
            self._waiting[entry.priority][entry] = None
            self._note_depth(entry.priority)
            self._changed.notify()
        if displaced is not None:
            self._refused(displaced, "displaced")
            error = ResourceExhausted(f"more urgent work filled the {self.name} queue", retry_after_s=retry_after_s)
            _settle(displaced.future, error)

    def _withdraw(self, entry: _Entry[Item, Result]) -> None:
        with self._changed:
            if entry in self._waiting[entry.priority]:
                self._forget(entry)
                metrics.QUEUE_CANCELLED.labels(self.name, "waiting").inc()
            elif entry in self._running and entry.future.cancelled():
                metrics.QUEUE_CANCELLED.labels(self.name, "running").inc()

    def _work(self) -> None:
        while batch := self._next_batch():
            began = time.monotonic()
            for entry in batch:
                metrics.QUEUE_WAIT_SECONDS.labels(self.name, entry.priority.name).observe(began - entry.enqueued)
            outcomes = self._outcomes([entry.item for entry in batch])
            seconds = time.monotonic() - began
            metrics.QUEUE_RUN_SECONDS.labels(self.name).observe(seconds)
            metrics.QUEUE_BATCH_SIZE.labels(self.name).observe(len(batch))
            with self._changed:
                self._learn(batch[0].key, seconds / len(batch))
                self._running = ()
            _call_soon(batch[0].future.get_loop(), _settle_all, batch, outcomes)

    def _next_batch(self) -> Sequence[_Entry[Item, Result]]:
        """Block until a batch is due and take it; empty once the queue closes and is drained."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._drop_expired(now)
                head = next(self._in_order(), None)
                if head is None:
                    if self._is_closing:
                        return ()
                    self._changed.wait()
                    continue
                batch = [entry for entry in self._in_order() if entry.key == head.key][: self._max_batch_size]
                wait_s = self._wait_s(batch, head, now)
                if wait_s <= 0:
                    break
                self._changed.wait(wait_s)
            for entry in batch:
                self._forget(entry)
            self._running, self._running_since = batch, now
            return batch

    def _wait_s(self, batch: Sequence[_Entry[Item, Result]], head: _Entry[Item, Result], now: float) -> float:
        if len(batch) >= self._max_batch_size or self._is_closing:
            return 0.0
        run_s = self._item_seconds.get(head.key, 0.0) * len(batch)
        latest = [entry.deadline - run_s for entry in batch if entry.deadline is not None]
        return min([head.enqueued + self._max_wait_s, *latest]) - now

    def _drop_expired(self, now: float) -> None:
        expired = [entry for entry in self._in_order() if entry.deadline is not None and entry.deadline <= now]
        for entry in expired:
            self._forget(entry)
            self._refused(entry, "deadline")
            entry.fail_soon(DeadlineExceeded("the deadline passed before any work began"))

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

    def _meets_deadline(self, entry: _Entry[Item, Result], now: float) -> bool:
        """Say whether the moving averages leave hope. An idle device always tries.

        Without that exception one slow first run (a graph being compiled) would make every later call be refused, and a
        refused call never corrects the average. Items that run in one batch are counted by their share of it.
        """
        if entry.deadline is None or (not self._running and not self.depth):
            return True
        ahead = [e for e in self._in_order() if e.priority <= entry.priority]
        return now + self._drain_s([*ahead, entry], now) <= entry.deadline

    def _retry_after_s(self, now: float) -> float:
        drain_s = self._drain_s(list(self._in_order()), now)
        return min(max(drain_s, _RETRY_RANGE_S[0]), _RETRY_RANGE_S[1]) if drain_s else _RETRY_UNKNOWN_S

    def _drain_s(self, entries: Sequence[_Entry[Item, Result]], now: float) -> float:
        running_s = sum(self._item_seconds.get(entry.key, 0.0) for entry in self._running)
        left_s = max(0.0, self._running_since + running_s - now) if self._running else 0.0
        return left_s + sum(self._item_seconds.get(entry.key, 0.0) for entry in entries)

    def _learn(self, key: Hashable, item_seconds: float) -> None:
        known = self._item_seconds.pop(key, None)  # popped, so that the order is by last use
        if known is None and len(self._item_seconds) >= _MAX_KEYS:
            del self._item_seconds[next(iter(self._item_seconds))]
        self._item_seconds[key] = item_seconds if known is None else known + _NEWEST_WEIGHT * (item_seconds - known)

    def _less_urgent_than(self, priority: Priority) -> _Entry[Item, Result] | None:
        """Return the newest item of the least urgent class below ``priority``."""
        for lower in sorted(Priority, reverse=True):
            if lower > priority and self._waiting[lower]:
                return next(reversed(self._waiting[lower]))
        return None

    def _in_order(self) -> Iterator[_Entry[Item, Result]]:
        for priority in Priority:
            yield from self._waiting[priority]

    def _forget(self, entry: _Entry[Item, Result]) -> None:
        del self._waiting[entry.priority][entry]
        self._note_depth(entry.priority)

    def _note_depth(self, priority: Priority) -> None:
        metrics.QUEUE_DEPTH.labels(self.name, priority.name).set(len(self._waiting[priority]))

    def _refused(self, entry: _Entry[Item, Result], cause: str) -> None:
        metrics.QUEUE_REFUSED.labels(self.name, entry.priority.name, cause).inc()


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
