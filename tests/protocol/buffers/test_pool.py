from __future__ import annotations

import ctypes
import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from protocol.buffers.pool import PAGE, BufferPool


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_buffers_are_page_aligned_and_writable() -> None:
    view = BufferPool(3 * PAGE, keep=1).acquire()
    assert (len(view), view.format, view.readonly) == (3 * PAGE, "B", False)
    assert address(view) % PAGE == 0
    view[:] = bytes([7]) * len(view)
    assert bytes(view) == bytes([7]) * len(view)


def test_a_buffer_with_a_view_is_not_reused() -> None:
    buffers = BufferPool(PAGE, keep=4)
    first = buffers.acquire()
    first[:4] = b"mine"
    part = first[2:4].toreadonly()  # a view of a view is enough
    del first
    second = buffers.acquire()
    second[:] = bytes(PAGE)
    assert bytes(part) == b"ne"


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="frees views later")
def test_buffers_without_views_are_reused_up_to_the_limit() -> None:
    buffers = BufferPool(PAGE, keep=2)
    acquired = [buffers.acquire() for _ in range(4)]
    places = {address(view) for view in acquired}
    assert len(places) == 4
    acquired.clear()
    gc.collect()
    again = [buffers.acquire() for _ in range(2)]
    assert {address(view) for view in again} < places
    assert not buffers._free
    assert len(buffers._leases) == 2


def test_threads_never_share_a_buffer() -> None:
    buffers = BufferPool(PAGE, keep=3)

    def work(number: int) -> bool:
        held = []
        for turn in range(200):
            view = buffers.acquire()
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
