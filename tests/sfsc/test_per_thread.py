"""One object for each thread; those of threads that have ended are used again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from sfsc.closing import Closing
from sfsc.errors import UsageError
from sfsc.per_thread import PerThread

_T = TypeVar("_T")


class Thing(Closing):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def in_a_thread(action: Callable[[], _T]) -> _T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result(60)


def test_a_thread_keeps_its_object_and_leaves_it_to_the_next() -> None:
    first = Thing()
    things = PerThread(first, Thing)
    assert things.get() is things.get() is first
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(things.get).result(60)
        assert second is pool.submit(things.get).result(60) is not first
        third = in_a_thread(things.get)
        assert third not in (first, second)
    assert in_a_thread(things.get) in (second, third)
    things.close_others()
    things.close_others()
    assert (first.closed, second.closed, third.closed) == (0, 1, 1)


def test_the_first_object_is_left_to_another_thread_too() -> None:
    things = in_a_thread(lambda: PerThread(Thing(), Thing))
    assert things.get() is things._kept[0][1]


def test_nothing_is_made_once_all_are_closed() -> None:
    first, made = Thing(), list[Thing]()
    going, go_on = threading.Event(), threading.Event()

    def another() -> Thing:
        going.set()
        go_on.wait(60)
        made.append(Thing())
        return made[-1]

    things = PerThread(first, another)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(things.get)
        going.wait(60)
        things.close_others()
        go_on.set()
        with pytest.raises(UsageError, match="closed"):
            late.result(60)
    assert made[0].closed == 1
    assert in_a_thread(things.get) is first, "which says that it is closed"
    assert len(made) == 1
