"""The thread pool runs every call once, and keeps a thread free beside slow calls."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial

import pytest

from sfsd.net.thread_pool import ThreadPool

SECONDS = 10.0


@asynccontextmanager
async def open_pool(threads: int = 3) -> AsyncIterator[ThreadPool]:
    made = ThreadPool(threads, "test")
    try:
        yield made
    finally:
        await asyncio.to_thread(made.shutdown)


def test_each_call_gets_its_own_result() -> None:
    async def many() -> list[int]:
        async with open_pool() as pool:
            return await asyncio.gather(*(pool.run(partial(pow, n, 2)) for n in range(500)))

    assert asyncio.run(many()) == [n * n for n in range(500)]


def test_error_is_raised_at_the_await_and_the_thread_survives() -> None:
    async def failing() -> int:
        async with open_pool(1) as pool:
            with pytest.raises(ZeroDivisionError):
                await pool.run(lambda: 1 // 0)
            return await pool.run(lambda: 7)

    assert asyncio.run(failing()) == 7


def test_one_thread_is_left_beside_slow_calls() -> None:
    async def beside() -> int:
        held = threading.Event()
        async with open_pool(3) as pool:
            slow = [pool.run(lambda: held.wait(SECONDS), slow=True) for _ in range(2)]
            answer = await asyncio.wait_for(pool.run(lambda: 7), SECONDS)
            held.set()
            assert await asyncio.gather(*slow) == [True, True]
            return answer

    assert asyncio.run(beside()) == 7


def test_slow_calls_run_in_parallel() -> None:
    async def together() -> None:
        barrier = threading.Barrier(3)
        async with open_pool(3) as pool:
            calls = (pool.run(lambda: barrier.wait(SECONDS), slow=True) for _ in range(3))
            assert sorted(await asyncio.gather(*calls)) == [0, 1, 2]

    asyncio.run(together())


def test_run_after_runs_once_all_futures_are_done_or_failed() -> None:
    async def waiting() -> None:
        async with open_pool() as pool:
            seq, failed = Future[int](), Future[int]()
            answer = pool.run_after([seq, failed], lambda: (seq.result(), failed.exception()))
            one = pool.run_after([seq], seq.result)
            seq.set_result(41)
            assert await one == 41
            assert not answer.done()
            failed.set_exception(OSError("no"))
            number, error = await answer
            assert number == 41
            assert isinstance(error, OSError)

    asyncio.run(waiting())


def test_cancelling_a_result_cancels_neither_future_nor_call() -> None:
    async def cancelled() -> bool:
        ran = threading.Event()
        async with open_pool() as pool:
            seq = Future[int]()
            answer = pool.run_after([seq], ran.set)
            answer.cancel()
            seq.set_result(1)
            return await asyncio.to_thread(ran.wait, SECONDS)

    assert asyncio.run(cancelled())


def test_futures_are_freed_without_a_cycle_collection(request: pytest.FixtureRequest) -> None:
    gc.disable()
    request.addfinalizer(gc.enable)

    async def answered() -> weakref.ref[Future[int]]:
        async with open_pool(1) as pool:
            seq: Future[int] = Future()
            answer = pool.run_after([seq], seq.result)
            seq.set_result(7)
            assert await answer == 7
            await pool.run(lambda: None)  # so that the thread drops its reference to the call
            return weakref.ref(seq)

    assert asyncio.run(answered())() is None
