"""Rows of a bank: placed, kept while they are needed, evicted, and never written under work that needs them."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vplab.errors import Unavailable
from vplab.runtime.device_queue import Priority
from vplab.segmentation import metrics
from vplab.segmentation.adapter_bank import AdapterBank, BankedAdapter
from vplab.segmentation.decode_queue import DecodeItem, DecodeQueue, Urgency, decode, decode_batch
from vplab.segmentation.ports import Decoded, Row
from vplab.segmentation.values import AdapterVersion, ModelRef
from vplab.vision.adapters.bank_layout import BankLayout, BankTensor
from vplab.vision.prompts import PromptTokens
from vplab.vision.specs import SegmenterSpec

SPEC = SegmenterSpec(family="t", architecture="t", input_size=64, embedding_shape=(2, 4, 4), low_res_hw=(16, 16))
BASE = ModelRef("artifacts/s/versions/1", "base")
EMBEDDING = np.zeros((2, 4, 4), np.float32)


class FakeBank:
    """Implements LoadedBank: an adapter of one number, which is every logit."""

    device = "cpu"
    num_bytes = 0
    layout = BankLayout(tensors=(BankTensor(name="a", shape=(1,), neutral=0.0),))

    def __init__(self, capacity: int, run_s: float = 0.0) -> None:
        self.capacity = capacity
        self.run_s = run_s
        self.rows = np.zeros(1 + capacity)
        self.batches: list[list[float]] = []

    def write(self, index: int, row: Row) -> None:
        assert 1 <= index <= self.capacity
        self.rows[index] = row[0]

    def run(self, adapter_index: Sequence[int], *values: Any) -> Decoded:
        time.sleep(self.run_s)
        found = self.rows[list(adapter_index)].astype(np.float32)
        self.batches.append(found.tolist())
        return np.broadcast_to(found[:, None, None, None], (len(found), 4, 16, 16)).copy(), np.ones((len(found), 4))


def version(number: int) -> AdapterVersion:
    return AdapterVersion(ModelRef(f"artifacts/a/versions/{number}", f"digest {number}"), SPEC, BASE)


async def take(bank: AdapterBank, number: int) -> BankedAdapter:
    async def read() -> Row:
        await asyncio.sleep(0)
        return np.array([number], np.float16)

    return await bank.take(version(number), read)


def item(adapter: BankedAdapter, num_prompts: int = 1) -> DecodeItem:
    token = PromptTokens(np.zeros((2, 2), np.float32), np.ones(2, np.float32), None)
    return DecodeItem(adapter, SPEC, EMBEDDING, [token] * num_prompts)


def answers(decoded: Sequence[Decoded]) -> list[float]:
    return [float(logits[0, 0, 0, 0]) for logits, _ in decoded]


async def test_a_batch_answers_each_call_with_its_adapter() -> None:
    graph = FakeBank(8)
    bank = AdapterBank(graph)
    adapters = [await take(bank, number) for number in (7, 3, 5)]
    items = [item(adapters[0], 2), item(adapters[1]), item(adapters[2]), item(adapters[1])]
    assert len({one.batch_key for one in items}) == 1
    assert answers(decode_batch(items)) == [7, 3, 5, 3]
    assert graph.batches == [[7, 7, 3, 5, 3]]


async def test_the_least_recently_used_that_nobody_needs_makes_room() -> None:
    bank, evictions = AdapterBank(FakeBank(3)), metrics.BANK_EVICTIONS._value.get()
    adapters = {number: await take(bank, number) for number in (1, 2, 3)}
    for number in (1, 2, 3):
        bank.give_back(adapters[number])
    bank.give_back(await take(bank, 1))
    kept = await take(bank, 2)
    new = await take(bank, 4)
    assert [v.model.name[-1] for v in bank.resident()] == ["1", "2", "4"]
    assert not bank.holds(version(3))
    assert metrics.BANK_EVICTIONS._value.get() == evictions + 1
    assert answers(decode_batch([item(new), item(kept)])) == [4, 2]


async def test_a_row_in_use_is_waited_for_and_not_overwritten() -> None:
    bank = AdapterBank(FakeBank(2))
    one, two = await take(bank, 1), await take(bank, 2)
    again = await take(bank, 1)
    waiting = asyncio.create_task(take(bank, 3))
    bank.give_back(one)  # another call still needs it
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert answers(decode_batch([item(again), item(two)])) == [1, 2]
    bank.give_back(two)
    three = await asyncio.wait_for(waiting, 5)
    assert answers(decode_batch([item(again), item(three)])) == [1, 3]


async def test_all_that_wait_get_a_row_in_turn_and_one_who_leaves_holds_up_nobody() -> None:
    bank = AdapterBank(FakeBank(1))
    held = await take(bank, 0)
    seen: list[int] = []

    async def call(number: int) -> None:
        adapter = await take(bank, number)
        seen.append(int(answers(decode_batch([item(adapter)]))[0]))
        bank.give_back(adapter)

    calls = [asyncio.create_task(call(number)) for number in (1, 2, 3, 4)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    bank.give_back(held)
    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
    assert sorted(seen) == [2, 3, 4]


async def test_an_abandoned_call_that_still_runs_does_not_write_over_who_came_next() -> None:
    graph = FakeBank(1)
    bank = AdapterBank(graph)
    abandoned = await take(bank, 1)
    left_in_queue = item(abandoned)
    bank.give_back(abandoned)
    new = await take(bank, 2)
    decode_batch([item(new), left_in_queue])
    decode_batch([left_in_queue])
    assert graph.rows[1] == 2
    assert answers(decode_batch([item(new)])) == [2]


async def test_callers_share_one_reading_and_a_failed_one_can_be_tried_again() -> None:
    bank, reads = AdapterBank(FakeBank(2)), 0

    async def read() -> Row:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0.01)
        if reads == 1:
            raise Unavailable("the registry is away")
        return np.array([9], np.float16)

    found = await asyncio.gather(*(bank.take(version(9), read) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable] * 3
    places = {id((await bank.take(version(9), read)).place) for _ in range(3)}
    assert (reads, len(places)) == (2, 1)


@pytest.mark.parametrize("num_threads", [1, 3])
async def test_many_adapters_share_few_rows_under_load_and_each_gets_its_own_answer(num_threads: int) -> None:
    graph = FakeBank(5, run_s=0.0005)
    bank = AdapterBank(graph)
    queue = DecodeQueue(
        decode_batch,
        name="rows",
        capacity=1000,
        max_batch_size=4,
        batch_key=lambda i: i.batch_key,
        num_threads=num_threads,
    )
    queue.start()
    random = np.random.default_rng(0)

    async def call(number: int) -> None:
        for _ in range(20):
            adapter = await take(bank, number)
            try:
                tokens = item(adapter).tokens
                call = decode(queue, adapter, SPEC, EMBEDDING, tokens, Urgency(Priority.INTERACTIVE, None))
                if random.random() < 0.2:
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(call, 0)
                else:
                    assert answers([await call]) == [number]
            finally:
                bank.give_back(adapter)

    try:
        await asyncio.wait_for(asyncio.gather(*(call(number) for number in range(1, 41))), 60)
    finally:
        await queue.close()
    assert len(bank.resident()) == 5
    # Five rows are five calls at most; several threads leave so few to each other.
    assert (max(len(batch) for batch in graph.batches) > 1) == (num_threads == 1)
