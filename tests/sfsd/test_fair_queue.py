"""Users take turns in the queue, and wait at their limit without holding up others."""

from __future__ import annotations

import pytest

from sfsd.fair_queue import FairQueue


def filled(limit: int | None, **items: int) -> FairQueue[str, str]:
    """Return a queue with that many items of each key: ``key0``, ``key1`` …"""
    limit_of = None if limit is None else lambda _key: limit
    queue = FairQueue[str, str](limit_of)
    for key, count in items.items():
        for number in range(count):
            queue.put(key, f"{key}{number}")
    return queue


def taken(queue: FairQueue[str, str]) -> list[str]:
    return [queue.take() for _ in range(len(queue))]


def test_each_key_is_first_in_first_out() -> None:
    assert taken(filled(None, a=3)) == ["a0", "a1", "a2"]


def test_keys_take_turns_in_order_of_their_first_item() -> None:
    assert taken(filled(None, a=4, b=2, c=1)) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_key_that_comes_later_waits_for_one_item_of_each_other() -> None:
    queue = filled(None, a=9, b=9)
    assert queue.take() == "a0"
    queue.put("c", "c0")
    assert [queue.take() for _ in range(3)] == ["b0", "a1", "c0"]


def test_a_key_whose_item_does_not_fit_keeps_its_turn() -> None:
    queue = filled(None, a=2, b=3)
    assert [queue.take(lambda item: item != "a0") for _ in range(2)] == ["b0", "b1"]
    with pytest.raises(StopIteration):
        queue.take(lambda _item: False)
    assert taken(queue) == ["a0", "b2", "a1"]


def test_a_key_at_its_limit_waits_until_one_is_done() -> None:
    queue = filled(1, a=2, b=1)
    assert [queue.take(), queue.take()] == ["a0", "b0"]
    assert (queue.ready, len(queue)) == (0, 1)
    queue.done("b")
    assert queue.ready == 0
    queue.done("a")
    assert queue.ready == 1
    assert queue.take() == "a1"


def test_items_put_at_the_limit_wait_too() -> None:
    queue = filled(2, a=2)
    assert taken(queue) == ["a0", "a1"]
    queue.put("a", "a2")
    queue.put("a", "a3")
    assert (queue.ready, len(queue)) == (0, 2)
    queue.done("a")
    assert queue.take() == "a2"
    assert queue.ready == 0


def test_an_empty_queue_has_nothing_to_take() -> None:
    queue = filled(None)
    assert not queue.ready
    with pytest.raises(StopIteration):
        queue.take()
