"""The order within a class: arrival for one client, even shares between several."""

import random

import pytest

from vplab.runtime.fair_queue import FairQueue, Ticket


def add(queue: FairQueue, load: object, client: object = None, key: object = None, seconds: float = 1.0) -> Ticket:
    ticket = Ticket(load, client, key, seconds)
    queue.add(ticket)
    return ticket


def serve(queue: FairQueue, count: int) -> list:
    return [queue.remove(queue.first(), is_served=True) for _ in range(count)]


def test_one_client_is_served_in_order_of_arrival():
    queue = FairQueue()
    for number in range(10):
        add(queue, number)
    assert serve(queue, 10) == list(range(10))
    assert queue.first() is None


def test_whoever_comes_with_one_item_is_served_next_beside_a_flood():
    queue = FairQueue()
    for number in range(100):
        add(queue, f"flood {number}", "flood")
    serve(queue, 5)
    add(queue, "click", "person")
    assert "click" in serve(queue, 2)


def test_clients_share_the_device_by_what_their_items_cost():
    queue = FairQueue()
    for _ in range(300):
        add(queue, "short", "a", seconds=1)
        add(queue, "long", "b", seconds=3)
    served = serve(queue, 200)
    assert abs(served.count("short") - 3 * served.count("long")) <= 6


def test_items_of_unknown_cost_are_shared_by_number():
    queue = FairQueue()
    for _ in range(20):
        add(queue, "a", "a", seconds=0)
    add(queue, "b", "b", seconds=0)
    serve(queue, 1)
    assert "b" in serve(queue, 2)


def test_what_was_cancelled_is_not_charged():
    queue = FairQueue()
    add(queue, "other", "other")
    for ticket in [add(queue, "gone", "a") for _ in range(50)]:
        queue.remove(ticket)
    for number in range(3):
        add(queue, f"other {number}", "other")
    add(queue, "a", "a")
    assert "a" in serve(queue, 2)


def test_a_client_is_not_charged_for_what_it_had_while_nobody_else_came():
    queue = FairQueue()
    for _ in range(50):
        add(queue, "alone", "a")
    serve(queue, 50)
    add(queue, "b", "b")
    add(queue, "a", "a")
    add(queue, "b", "b")
    assert serve(queue, 2) == ["b", "a"]


def test_items_of_a_key_are_found_in_fair_order_and_stay():
    queue = FairQueue()
    for number in range(4):
        add(queue, f"a{number}", "a", key="x")
    add(queue, "other", "a", key="y")
    add(queue, "b0", "b", key="x")
    assert [ticket.load for ticket in queue.next_of("x", 3)] == ["a0", "b0", "a1"]
    assert queue.next_of("z", 3) == []
    assert len(queue) == 6


def test_work_ahead_of_a_client_is_its_own_and_as_much_of_every_other():
    queue = FairQueue()
    for _ in range(50):
        add(queue, "flood", "a", seconds=2)
    assert queue.seconds == 100
    assert queue.seconds_before("a") == 100
    assert queue.seconds_before("b") == 0
    add(queue, "first", "b", seconds=2)
    assert queue.seconds_before("b") == 4


def test_what_left_does_not_stay_in_memory():
    queue = FairQueue()
    add(queue, "stays", "patient")
    for number in range(5000):
        queue.remove(add(queue, number, client=number, key=number))
    assert max(len(queue._heap), len(queue._heaps), len(queue._clients)) < 300
    assert [ticket.load for ticket in queue.all()] == ["stays"]


@pytest.mark.parametrize("seed", range(5))
def test_counts_hold_whatever_comes_and_goes(seed):
    draw, queue, tickets = random.Random(seed), FairQueue(), []
    for _ in range(2000):
        if not tickets or draw.random() < 0.52:
            tickets.append(add(queue, object(), draw.randrange(6), draw.randrange(3), draw.choice([0.0, 0.5, 2.0])))
        elif draw.random() < 0.5:
            queue.remove(tickets.pop(draw.randrange(len(tickets))))
        else:
            first = queue.first()
            assert first.order == min(ticket.order for ticket in tickets)
            tickets.remove(first)
            queue.remove(first, is_served=True)
        sizes = [sum(ticket.client == client for ticket in tickets) for client in range(6)]
        assert [queue.num_of(client) for client in range(6)] == sizes
        assert len(queue) == len(tickets)
        assert queue.seconds == pytest.approx(sum(ticket.seconds for ticket in tickets))
        if tickets:
            largest = queue.newest_of_largest()
            assert sizes[largest.client] == max(sizes)
            assert largest is [t for t in tickets if t.client == largest.client][-1]
    assert [ticket.order for ticket in queue.all()] == sorted(ticket.order for ticket in tickets)
