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
async def pool(threads: int = 3) -> AsyncIterator[ThreadPool]:
    made = ThreadPool(threads, "test")
    try:
        yield made
    finally:
        await asyncio.to_thread(made.shutdown)


def test_many_calls_are_each_answered_their_own() -> None:
    async def many() -> list[int]:
        async with pool() as made:
            return await asyncio.gather(*(made.run(partial(pow, n, 2)) for n in range(500)))

    assert asyncio.run(many()) == [n * n for n in range(500)]


def test_an_error_is_raised_where_it_is_awaited_and_the_thread_goes_on() -> None:
    async def failing() -> int:
        async with pool(1) as made:
            with pytest.raises(ZeroDivisionError):
                await made.run(lambda: 1 // 0)
            return await made.run(lambda: 7)

    assert asyncio.run(failing()) == 7


def test_a_call_gets_on_while_slow_ones_hold_all_threads_but_one() -> None:
    async def beside() -> int:
        held = threading.Event()
        async with pool(3) as made:
            slow = [made.run(lambda: held.wait(SECONDS), slow=True) for _ in range(2)]
            answer = await asyncio.wait_for(made.run(lambda: 7), SECONDS)
            held.set()
            assert await asyncio.gather(*slow) == [True, True]
            return answer

    assert asyncio.run(beside()) == 7


def test_slow_calls_run_side_by_side() -> None:
    async def together() -> None:
        barrier = threading.Barrier(3)
        async with pool(3) as made:
            calls = (made.run(lambda: barrier.wait(SECONDS), slow=True) for _ in range(3))
            assert sorted(await asyncio.gather(*calls)) == [0, 1, 2]

    asyncio.run(together())


def test_after_runs_once_all_are_done_whatever_became_of_them() -> None:
    async def waiting() -> None:
        async with pool() as made:
            seq, failed = Future[int](), Future[int]()
            answer = made.after([seq, failed], lambda: (seq.result(), failed.exception()))
            one = made.after([seq], seq.result)
            seq.set_result(41)
            assert await one == 41
            assert not answer.done()
            failed.set_exception(OSError("no"))
            made_it, error = await answer
            assert made_it == 41
            assert isinstance(error, OSError)

    asyncio.run(waiting())


def test_who_cancels_an_answer_cancels_neither_the_seq_nor_the_call() -> None:
    async def cancelled() -> bool:
        ran = threading.Event()
        async with pool() as made:
            seq = Future[int]()
            answer = made.after([seq], ran.set)
            answer.cancel()
            seq.set_result(1)
            return await asyncio.to_thread(ran.wait, SECONDS)

    assert asyncio.run(cancelled())


def test_what_was_made_goes_with_its_answer(request: pytest.FixtureRequest) -> None:
    gc.disable()  # nobody looks for cycles
    request.addfinalizer(gc.enable)

    async def answered() -> weakref.ref[Future[int]]:
        async with pool(1) as made:
            seq: Future[int] = Future()
            answer = made.after([seq], seq.result)
            seq.set_result(7)
            assert await answer == 7
            await made.run(lambda: None)  # so that the thread lets go of the call before
            return weakref.ref(seq)

    assert asyncio.run(answered())() is None
