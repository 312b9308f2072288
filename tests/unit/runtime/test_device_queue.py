"""The queue in front of a device: order, batches, refusals, deadlines, cancellation and the end."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from vplab.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from vplab.runtime.at_work import at_work, works_alone
from vplab.runtime.device_queue import DeviceQueue, Priority, open_queues
from vplab.runtime.giving_way import gives_way


class Device:
    """A computation that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.began = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)
        self.answer: Callable[[object], object] = lambda item: item

    def __call__(self, items: Sequence[object]) -> list[object]:
        self.batches.append(list(items))
        self.began.release()
        assert self.permits.acquire(timeout=20)
        return [self.answer(item) for item in items]

    async def wait_begun(self) -> None:
        await asyncio.to_thread(self.began.acquire)

    def let_go(self, runs: int = 1) -> None:
        self.permits.release(runs)


@asynccontextmanager
async def open_queue(run, **options) -> AsyncIterator[DeviceQueue]:
    queue = DeviceQueue(run, **{"name": "test", "capacity": 8, **options})
    queue.start()
    try:
        yield queue
    finally:
        await queue.close(grace_s=5)
        assert not queue.is_alive


async def begin(queue, *items, **options) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(queue.submit(item, **options)) for item in items]
    await asyncio.sleep(0)
    return tasks


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_result_comes_back_to_its_caller():
    async with open_queue(lambda items: [item * 2 for item in items]) as queue:
        assert await asyncio.gather(*(queue.submit(i) for i in range(5))) == [0, 2, 4, 6, 8]


async def test_work_runs_on_the_devices_own_thread():
    async with open_queue(lambda items: [threading.current_thread().name for _ in items], name="gpu0") as queue:
        assert await queue.submit(None) == "device-gpu0"


async def test_urgent_work_overtakes_waiting_work():
    device = Device()
    async with open_queue(device) as queue:
        tasks = await begin(queue, "first")
        await device.wait_begun()
        tasks += await begin(queue, "batch", priority=Priority.BATCH)
        tasks += await begin(queue, "inline", priority=Priority.INLINE)
        tasks += await begin(queue, "interactive")
        device.let_go(4)
        await asyncio.gather(*tasks)
    assert [batch[0] for batch in device.batches] == ["first", "interactive", "inline", "batch"]


async def test_waiting_work_of_one_key_is_batched():
    device = Device()
    async with open_queue(device, max_batch_size=3, batch_key=lambda item: item[0]) as queue:
        tasks = await begin(queue, "a1")
        await device.wait_begun()
        tasks += await begin(queue, "a2", "b1", "a3", "b2", "a4", "a5")
        device.let_go(4)
        assert await asyncio.gather(*tasks) == ["a1", "a2", "b1", "a3", "b2", "a4", "a5"]
    assert device.batches == [["a1"], ["a2", "a3", "a4"], ["b1", "b2"], ["a5"]]


async def test_a_batch_waits_for_company_until_it_is_full():
    batches = []
    async with open_queue(lambda items: batches.append(list(items)) or items, max_batch_size=2, max_wait_s=30) as queue:
        assert await asyncio.gather(queue.submit(1), queue.submit(2)) == [1, 2]
    assert batches == [[1, 2]]


async def test_a_lonely_item_runs_after_the_wait():
    async with open_queue(list, max_batch_size=2, max_wait_s=0.02) as queue:
        assert await queue.submit(1) == 1


async def test_waiting_for_company_does_not_cost_the_deadline():
    async with open_queue(list, max_batch_size=2, max_wait_s=60) as queue:
        await asyncio.gather(queue.submit(0), queue.submit(0))
        queue._item_seconds[None] = 0.5
        assert await queue.submit(1, deadline=time.monotonic() + 1.0) == 1


async def test_a_full_queue_refuses_with_a_time_to_come_back():
    device = Device()
    async with open_queue(device, name="full", capacity=1) as queue:
        tasks = await begin(queue, 1)
        await device.wait_begun()
        tasks += await begin(queue, 2)
        with pytest.raises(ResourceExhausted, match="full") as refusal:
            await queue.submit(3)
        assert refusal.value.retry_after_s > 0
        assert metric("vplab_queue_refused_total", queue="full", priority="INTERACTIVE", cause="full") == 1
        device.let_go(2)
        assert await asyncio.gather(*tasks) == [1, 2]
    assert [1] in device.batches
    assert [3] not in device.batches


async def test_urgent_work_displaces_the_newest_waiting_work_of_the_lowest_class():
    device = Device()
    async with open_queue(device, capacity=2) as queue:
        (running,) = await begin(queue, "running")
        await device.wait_begun()
        older, newer = await begin(queue, "older", "newer", priority=Priority.BATCH)
        (urgent,) = await begin(queue, "urgent", priority=Priority.INLINE)
        with pytest.raises(ResourceExhausted, match="more urgent"):
            await newer
        device.let_go(3)
        assert await asyncio.gather(running, urgent, older) == ["running", "urgent", "older"]


async def test_a_client_that_floods_does_not_hold_up_another():
    device = Device()
    async with open_queue(device, capacity=100) as queue:
        tasks = await begin(queue, *range(50), client="flood")
        await device.wait_begun()
        tasks += await begin(queue, "click", client="person")
        device.let_go(51)
        await asyncio.gather(*tasks)
    assert ["click"] in device.batches[:3]


async def test_when_the_queue_is_full_whoever_has_most_in_it_makes_room():
    device = Device()
    async with open_queue(device, capacity=3) as queue:
        (running,) = await begin(queue, "running", client="flood")
        await device.wait_begun()
        oldest, older, newest = await begin(queue, 1, 2, 3, client="flood")
        (click,) = await begin(queue, "click", client="person")
        with pytest.raises(ResourceExhausted, match="work of others"):
            await newest
        with pytest.raises(ResourceExhausted, match="is full"):
            await queue.submit(4, client="flood")
        device.let_go(4)
        assert await asyncio.gather(running, oldest, older, click) == ["running", 1, 2, "click"]


async def test_classes_do_not_share_a_batch():
    device = Device()
    async with open_queue(device, max_batch_size=4) as queue:
        tasks = await begin(queue, "first")
        await device.wait_begun()
        tasks += await begin(queue, "bulk", priority=Priority.BATCH)
        tasks += await begin(queue, "click")
        device.let_go(3)
        await asyncio.gather(*tasks)
    assert device.batches == [["first"], ["click"], ["bulk"]]


async def test_several_batches_run_at_a_time_where_that_is_allowed():
    device = Device()
    async with open_queue(device, num_threads=2) as queue:
        tasks = await begin(queue, 1, 2, 3)
        await device.wait_begun()
        await device.wait_begun()
        assert (queue.num_running, queue.depth) == (2, 1)
        device.let_go(3)
        assert await asyncio.gather(*tasks) == [1, 2, 3]


async def test_a_thread_is_at_work_for_the_whole_of_its_run():
    device, alone = Device(), []
    device.answer = lambda item: alone.append((item, works_alone())) or item
    async with open_queue(device, num_threads=2) as queue:
        tasks = await begin(queue, 1)
        await device.wait_begun()
        with at_work():
            device.let_go()
            await asyncio.gather(*tasks)
        device.let_go()
        await queue.submit(2)
    assert alone == [(1, False), (2, True)]


@pytest.mark.parametrize(("num_waiting", "size"), [(1, 1), (7, 1), (8, 2), (12, 3), (80, 4)])
async def test_a_batch_of_several_threads_is_a_small_part_of_what_waits(num_waiting, size):
    device = Device()
    async with open_queue(device, num_threads=2, max_batch_size=4, capacity=100) as queue:
        tasks = await begin(queue, "a", "b")
        await device.wait_begun()
        await device.wait_begun()
        tasks += await begin(queue, *range(num_waiting))
        device.let_go(num_waiting + 2)
        await asyncio.gather(*tasks)
    assert [len(batch) for batch in device.batches[:3]] == [1, 1, size]


async def test_what_nobody_waits_for_has_threads_of_its_own_that_give_way():
    device, ways = Device(), []
    device.answer = lambda item: ways.append((item, gives_way())) or item
    async with open_queue(device, num_background_threads=1) as queue:
        (bulk,) = await begin(queue, "bulk", priority=Priority.BATCH)
        await device.wait_begun()
        (click,) = await begin(queue, "click")
        await device.wait_begun()  # though the bulk is not done
        assert {waiting.name for waiting in open_queues()} >= {"test", "test-batch"}
        device.let_go(2)
        assert await asyncio.gather(bulk, click) == ["bulk", "click"]
    assert dict(ways) == {"bulk": True, "click": False}


async def test_what_ran_does_not_stay_in_memory():
    class Image:
        pass

    images = [Image(), Image()]
    gone = [weakref.ref(image) for image in images]
    async with open_queue(lambda items: [None for _ in items]) as queue:
        await queue.submit(images.pop(), deadline=time.monotonic() + 60)
        await queue.submit(images.pop(), deadline=time.monotonic() + 60)
        await queue.submit(None)  # the thread has let go of what came before
        assert [ref() for ref in gone] == [None, None]


async def test_a_passed_deadline_is_refused_before_work():
    ran = []
    async with open_queue(lambda items: ran.append(items) or items) as queue:
        with pytest.raises(DeadlineExceeded):
            await queue.submit(1, deadline=time.monotonic() - 0.001)
    assert ran == []


async def test_a_deadline_that_cannot_be_met_is_refused_before_work():
    device = Device()
    async with open_queue(device) as queue:
        queue._item_seconds[None] = 10.0
        tasks = await begin(queue, 1)
        await device.wait_begun()
        with pytest.raises(ResourceExhausted, match="before its deadline") as refusal:
            await queue.submit(2, deadline=time.monotonic() + 5)
        assert 5 < refusal.value.retry_after_s <= 10
        device.let_go()
        await asyncio.gather(*tasks)
    assert device.batches == [[1]]


async def test_less_urgent_work_ahead_does_not_count_against_a_deadline():
    device = Device()
    async with open_queue(device) as queue:
        queue._item_seconds[None] = 1.0
        tasks = await begin(queue, 1)
        await device.wait_begun()
        tasks += await begin(queue, *range(5), priority=Priority.BATCH)
        tasks += await begin(queue, "urgent", deadline=time.monotonic() + 4)
        device.let_go(7)
        await asyncio.gather(*tasks)
    assert device.batches[1] == ["urgent"]


async def test_an_idle_device_tries_even_when_the_average_says_no():
    async with open_queue(list) as queue:
        queue._item_seconds[None] = 100.0
        assert await queue.submit(1, deadline=time.monotonic() + 10) == 1
        assert queue._item_seconds[None] < 80


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait_and_the_work_never_runs():
    device = Device()
    async with open_queue(device) as queue:
        tasks = await begin(queue, 1)
        await device.wait_begun()
        with pytest.raises(DeadlineExceeded):
            await queue.submit(2, deadline=time.monotonic() + 0.05)
        assert queue.depth == 0
        device.let_go()
        await asyncio.gather(*tasks)
    assert device.batches == [[1]]


async def test_a_timeout_of_the_computation_itself_is_not_called_a_deadline():
    def run(items):
        raise TimeoutError("camera")

    async with open_queue(run) as queue:
        with pytest.raises(TimeoutError, match="camera"):
            await queue.submit(1, deadline=time.monotonic() + 30)


async def test_cancelled_work_leaves_the_queue():
    device = Device()
    async with open_queue(device, name="cancel") as queue:
        (running,) = await begin(queue, 1)
        await device.wait_begun()
        (waiting,) = await begin(queue, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert queue.depth == 0
        assert metric("vplab_queue_cancelled_total", queue="cancel", stage="waiting") == 1
        device.let_go()
        assert await running == 1
    assert device.batches == [[1]]


async def test_the_result_of_running_work_that_was_cancelled_is_dropped():
    device = Device()
    async with open_queue(device, name="drop") as queue:
        (running,) = await begin(queue, 1)
        await device.wait_begun()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert metric("vplab_queue_cancelled_total", queue="drop", stage="running") == 1
        device.let_go(2)
        assert await queue.submit(2) == 2


async def test_one_items_failure_is_its_own():
    def run(items):
        return [ValueError(item) if item == 2 else item for item in items]

    async with open_queue(run, max_batch_size=3, max_wait_s=30) as queue:
        results = await asyncio.gather(*(queue.submit(i) for i in (1, 2, 3)), return_exceptions=True)
    assert (results[0], results[2]) == (1, 3)
    assert isinstance(results[1], ValueError)


@pytest.mark.parametrize("failure", [RuntimeError("broken"), SystemExit(3), StopIteration("odd")])
async def test_a_failed_run_fails_its_items_and_the_device_goes_on(failure):
    def run(items):
        if items == [1]:
            raise failure
        return items

    async with open_queue(run) as queue:
        with pytest.raises((RuntimeError, Internal)):
            await queue.submit(1)
        assert await queue.submit(2) == 2


async def test_a_run_that_returns_too_few_results_is_an_internal_fault():
    async with open_queue(lambda items: []) as queue:
        with pytest.raises(Internal, match="0 results for 1"):
            await queue.submit(1)


async def test_closing_finishes_waiting_work_and_refuses_new_work():
    device = Device()
    queue = DeviceQueue(device, name="closing", capacity=4)
    queue.start()
    tasks = await begin(queue, 1, 2)
    await device.wait_begun()
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await queue.submit(3)
    device.let_go(2)
    assert await asyncio.gather(*tasks) == [1, 2]
    await closing
    assert not queue.is_alive


async def test_closing_with_a_grace_fails_what_still_waits():
    device = Device()
    queue = DeviceQueue(device, name="grace", capacity=4)
    queue.start()
    running, waiting = await begin(queue, 1, 2)
    await device.wait_begun()
    await queue.close(grace_s=0.05)
    with pytest.raises(Unavailable):
        await waiting
    assert queue.is_alive
    device.let_go()
    assert await running == 1


async def test_the_event_loop_stays_free_while_the_device_works():
    device = Device()
    async with open_queue(device) as queue:
        (running,) = await begin(queue, 1)
        await device.wait_begun()
        for _ in range(100):
            await asyncio.sleep(0)
        assert not running.done()
        device.let_go()
        assert await running == 1


async def test_open_queues_are_listed_until_they_close():
    async with open_queue(list, name="listed") as queue:
        assert queue in open_queues()
    assert queue not in open_queues()


async def test_series_of_a_queue_exist_before_anything_happened():
    async with open_queue(list, name="fresh"):
        for cause in ("full", "displaced", "deadline"):
            labels = {"queue": "fresh", "priority": "BATCH", "cause": cause}
            assert REGISTRY.get_sample_value("vplab_queue_refused_total", labels) == 0


@pytest.mark.parametrize("options", [{"capacity": 0}, {"max_batch_size": 0}, {"max_wait_s": -1}, {"num_threads": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least"):
        DeviceQueue(list, **{"name": "bad", "capacity": 1, **options})
