"""The thread pool runs every call once, and keeps a thread free beside slow calls."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial

import pytest

from sfsd.net.thread_pool import BULK_SPARE, ThreadPool

SECONDS = 10.0
USER = "alice"


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
            return await asyncio.gather(*(pool.run(USER, partial(pow, n, 2)) for n in range(500)))

    assert asyncio.run(many()) == [n * n for n in range(500)]


def test_error_is_raised_at_the_await_and_the_thread_survives() -> None:
    async def failing() -> int:
        async with open_pool(1) as pool:
            with pytest.raises(ZeroDivisionError):
                await pool.run(USER, lambda: 1 // 0)
            return await pool.run(USER, lambda: 7)

    assert asyncio.run(failing()) == 7


def test_one_thread_is_left_beside_slow_calls() -> None:
    async def beside() -> int:
        held = threading.Event()
        async with open_pool(3) as pool:
            slow = [pool.run(one, lambda: held.wait(SECONDS), slow=True) for one in ("ada", USER)]
            answer = await asyncio.wait_for(pool.run(USER, lambda: 7), SECONDS)
            held.set()
            assert await asyncio.gather(*slow) == [True, True]
            return answer

    assert asyncio.run(beside()) == 7


def test_calls_with_bulk_of_one_user_run_in_parallel_and_leave_threads_to_others() -> None:
    async def together() -> None:
        threads, most = 7, 7 - BULK_SPARE
        async with open_pool(threads) as pool:
            barrier = threading.Barrier(most + 1)  # the calls that may run, and this test
            held = threading.Event()

            def call() -> None:
                barrier.wait(SECONDS)
                held.wait(SECONDS)

            bulk = [pool.run(USER, call, bulk=True) for _ in range(most)]
            late = pool.run(USER, held.is_set, bulk=True)
            await asyncio.to_thread(barrier.wait, SECONDS)
            others = [pool.run(f"user{n}", lambda: 7, slow=True) for n in range(BULK_SPARE)]
            assert await asyncio.wait_for(asyncio.gather(*others), SECONDS) == [7] * BULK_SPARE
            held.set()
            await asyncio.gather(*bulk)
            assert await late is True  # it did not run before: one thread was not even needed

    asyncio.run(together())


@pytest.mark.parametrize("slow", [False, True])
def test_a_user_with_many_calls_delays_others_by_one(*, slow: bool) -> None:
    async def flooded() -> list[str]:
        order: list[str] = []
        first = threading.Event()
        async with open_pool(1) as pool:
            many = [
                pool.run(
                    "mallory", lambda: order.clear() if first.wait(SECONDS) else None, slow=slow
                )
            ]
            many += [
                pool.run("mallory", partial(order.append, "mallory"), slow=slow) for _ in range(50)
            ]
            few = [pool.run(user, partial(order.append, user), slow=slow) for user in "ab"]
            first.set()
            await asyncio.gather(*many, *few)
        return order

    order = asyncio.run(flooded())
    assert len(order) == 52
    assert {*order[:4]} == {"a", "b", "mallory"}


@pytest.mark.parametrize("slow", [False, True])
def test_one_call_of_a_user_runs_at_a_time(*, slow: bool) -> None:
    async def counted() -> int:
        running = most = 0
        lock = threading.Lock()

        def call() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.0005)
            with lock:
                running -= 1

        async with open_pool(4) as pool:
            await asyncio.gather(*(pool.run(USER, call, slow=slow) for _ in range(100)))
        return most

    assert asyncio.run(counted()) == 1


def test_results_of_one_user_are_delivered_apart() -> None:
    """Others' requests are read between them."""

    async def turns() -> list[int]:
        turn = 0
        found: list[int] = []

        async def count() -> None:
            nonlocal turn
            while len(found) < 20:
                turn += 1
                await asyncio.sleep(0)

        def note(_: object) -> None:
            found.append(turn)

        async with open_pool(1) as pool:
            done = threading.Semaphore(0)
            calls = [pool.run(USER, done.release) for _ in range(20)]
            for one in calls:
                one.add_done_callback(note)
            for _ in range(20):
                done.acquire(timeout=SECONDS)  # the loop stands still until all are done
            await count()
        return found

    found = asyncio.run(turns())
    assert all(after - before > 2 for before, after in itertools.pairwise(found))


def test_results_of_several_users_are_delivered_together() -> None:
    async def together() -> None:
        async with open_pool(1) as pool:
            done = threading.Semaphore(0)
            many = [pool.run("mallory", done.release) for _ in range(20)]
            for _ in range(20):
                done.acquire(timeout=SECONDS)
            other = pool.run(USER, done.release)
            done.acquire(timeout=SECONDS)
            await other
            assert sum(one.done() for one in many) <= 1
            await asyncio.gather(*many)

    asyncio.run(together())


def test_slow_calls_run_in_parallel() -> None:
    async def together() -> None:
        barrier = threading.Barrier(3)
        async with open_pool(3) as pool:
            calls = (
                pool.run(user, lambda: barrier.wait(SECONDS), slow=True)
                for user in ("ada", "bob", "cleo")
            )
            assert sorted(await asyncio.gather(*calls)) == [0, 1, 2]

    asyncio.run(together())


def test_run_after_runs_once_the_future_is_done_or_failed() -> None:
    async def waiting() -> None:
        async with open_pool() as pool:
            seq, failed = Future[int](), Future[int]()
            answer = pool.run_after(USER, failed, failed.exception)
            one = pool.run_after(USER, seq, seq.result)
            seq.set_result(41)
            assert await one == 41
            assert not answer.done()
            failed.set_exception(OSError("no"))
            assert isinstance(await answer, OSError)

    asyncio.run(waiting())


def test_cancelling_a_result_cancels_neither_future_nor_call() -> None:
    async def cancelled() -> bool:
        ran = threading.Event()
        async with open_pool() as pool:
            seq = Future[int]()
            answer = pool.run_after(USER, seq, ran.set)
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
            answer = pool.run_after(USER, seq, seq.result)
            seq.set_result(7)
            assert await answer == 7
            await pool.run(USER, lambda: None)  # so that the thread drops its reference to the call
            return weakref.ref(seq)

    assert asyncio.run(answered())() is None
