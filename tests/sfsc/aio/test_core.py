"""Calls that are suspended while an event loop waits for them."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from sfsc.aio.core import Core, OnLoop, suspend
from sfsc.errors import UsageError

Body = Callable[[Core], Coroutine[Any, Any, None]]


@contextmanager
def core() -> Iterator[Core]:
    opened = Core()
    try:
        yield opened
    finally:
        opened.close()


def on_core(body: Body) -> None:
    with core() as opened:
        asyncio.run(asyncio.wait_for(body(opened), 30))


async def value_of(value: object) -> object:
    await asyncio.sleep(0)
    return value


async def fails() -> object:
    raise ValueError("waited in vain")


def test_a_call_runs_on_the_thread_and_what_it_waits_for_on_the_loop() -> None:
    async def body(opened: Core) -> None:
        async def waited() -> int:
            return threading.get_ident()

        def call() -> tuple[int, int, int]:
            before = threading.get_ident()
            return before, suspend(waited), threading.get_ident()

        before, waiting, after = await opened.run(call)
        assert before == after != threading.get_ident() == waiting

    on_core(body)


def test_errors_are_raised_where_they_belong() -> None:
    async def body(opened: Core) -> None:
        def call() -> str:
            with pytest.raises(ValueError, match="in vain"):
                suspend(fails)
            raise KeyError("of the call")

        with pytest.raises(KeyError, match="of the call"):
            await opened.run(call)
        with pytest.raises(ValueError, match="in vain"):
            await opened.run(partial(suspend, fails))

    on_core(body)


def test_calls_that_are_suspended_do_not_hold_up_others() -> None:
    async def body(opened: Core) -> None:
        gate = asyncio.Event()
        first = asyncio.create_task(opened.run(partial(suspend, gate.wait)))
        await opened.run(partial(suspend, partial(value_of, 1)))
        assert not first.done()
        gate.set()
        assert await first

    on_core(body)


def test_a_call_sees_the_variables_of_its_task() -> None:
    variable = contextvars.ContextVar[int]("variable")

    async def body(opened: Core) -> None:
        variable.set(7)
        assert await opened.run(variable.get) == 7

    on_core(body)


def test_cancelling_interrupts_the_wait_and_lets_the_call_clean_up() -> None:
    async def body(opened: Core) -> None:
        steps: list[object] = []
        waiting = asyncio.Event()

        async def never() -> None:
            waiting.set()
            await asyncio.Event().wait()

        def call() -> None:
            try:
                suspend(never)
            except asyncio.CancelledError:
                steps.append("interrupted")
                steps.append(suspend(partial(value_of, "cleaned up")))
                raise

        task = asyncio.create_task(opened.run(call))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == ["interrupted", "cleaned up"]

    on_core(body)


@pytest.mark.parametrize("whole", [False, True])
def test_cancelling_between_waits_interrupts_the_next_one(whole: bool) -> None:
    async def body(opened: Core) -> None:
        loop, began, cancelled = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
        reached: list[object] = []

        def call() -> None:
            loop.call_soon_threadsafe(began.set)
            cancelled.wait(30)
            reached.append(suspend(partial(value_of, "waited")))

        task = asyncio.create_task(opened.run(call, whole=whole))
        await began.wait()
        task.cancel()
        await asyncio.sleep(0)
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reached == (["waited"] if whole else [])

    on_core(body)


def test_a_call_that_swallows_the_interruption_is_cancelled_all_the_same() -> None:
    async def body(opened: Core) -> None:
        waiting = asyncio.Event()

        async def never() -> None:
            waiting.set()
            await asyncio.Event().wait()

        def call() -> str:
            try:
                suspend(never)
            except asyncio.CancelledError:
                return "done"
            return "never"

        task = asyncio.create_task(opened.run(call))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    on_core(body)


def test_suspending_outside_a_call_is_refused() -> None:
    with pytest.raises(UsageError, match="without it"):
        suspend(fails)


def test_waits_for_sockets_and_pauses() -> None:
    async def body(opened: Core) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            waits = OnLoop().for_socket(ours)
            wait = partial(waits.wait, writing=False, seconds=0.01)
            assert not await opened.run(wait)
            assert await opened.run(partial(waits.wait, writing=True, seconds=30.0))
            asyncio.get_running_loop().call_later(0.01, theirs.send, b"x")
            assert await opened.run(partial(waits.wait, writing=False, seconds=30.0))
            assert await opened.run(partial(waits.wait, writing=False, seconds=-1.0))
            await opened.run(partial(OnLoop().pause, 0.0))
            waits.close()

    on_core(body)


def test_a_loop_that_cannot_wait_for_sockets_is_refused() -> None:
    class Proactor(asyncio.SelectorEventLoop):
        def add_reader(self, *_arguments: object) -> None:
            raise NotImplementedError

    async def body() -> None:
        with core() as opened, socket.socket() as ours:
            waits = OnLoop().for_socket(ours)
            with pytest.raises(UsageError, match="cannot wait for sockets"):
                await opened.run(partial(waits.wait, writing=False, seconds=1.0))

    with asyncio.Runner(loop_factory=Proactor) as runner:
        runner.run(body())
