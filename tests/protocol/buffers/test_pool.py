from __future__ import annotations

import ctypes
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from protocol.buffers.pool import PAGE, BufferPool


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_begins_at_a_page_and_can_be_written() -> None:
    view = BufferPool(3 * PAGE, keep=1).acquire()
    assert (len(view), view.format, view.readonly) == (3 * PAGE, "B", False)
    assert address(view) % PAGE == 0
    view[:] = bytes([7]) * len(view)
    assert bytes(view) == bytes([7]) * len(view)


def test_what_somebody_looks_at_is_not_lent_again() -> None:
    lender = BufferPool(PAGE, keep=4)
    first = lender.acquire()
    first[:4] = b"mine"
    part = first[2:4].toreadonly()  # a view of a view is enough
    del first
    second = lender.acquire()
    second[:] = bytes(PAGE)
    assert bytes(part) == b"ne"


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="elsewhere views go later")
def test_what_nobody_looks_at_is_lent_again_and_no_more_than_some_is_kept() -> None:
    lender = BufferPool(PAGE, keep=2)
    lent = [lender.acquire() for _ in range(4)]
    places = {address(view) for view in lent}
    assert len(places) == 4
    lent.clear()
    gc.collect()
    again = [lender.acquire() for _ in range(2)]
    assert {address(view) for view in again} < places
    assert not lender._free
    assert len(lender._leases) == 2


def test_many_threads_never_share() -> None:
    lender = BufferPool(PAGE, keep=3)

    def work(number: int) -> bool:
        held = []
        for turn in range(200):
            view = lender.acquire()
            mark = number.to_bytes(2, "big") + turn.to_bytes(2, "big")
            view[:4] = mark
            held.append((view, mark))
            if len(held) > 3:
                old, expected = held.pop(0)
                if old[:4] != expected:
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
