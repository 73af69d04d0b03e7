"""Threads that run calls for the loop, without a wake-up of the loop for each.

A call that is handed to another thread costs more than most calls take: two wake-ups, and a queue,
a lock and a future for each. Here the loop is told once of all that is done by the time it looks,
and a thread that is awake takes the next call itself; another one is woken only where many wait, or
where all that are awake are in calls which wait for the disk.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from protocol.codec.values import Value

WAITING_EACH: Final = 16
"""Calls that wait for one awake thread before another is woken; most take a tenth of a ms."""
_Answer = TypeVar("_Answer")


class _Call(Value):
    call: Callable[[], Any]
    future: asyncio.Future[Any]
    slow: bool


class _Done(Value):
    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


class ThreadPool:
    """For one loop, on whose thread its methods are called."""

    def __init__(self, threads: int, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[_Call] = deque()
        self._done: deque[_Done] = deque()
        self._told = False
        self._changed = threading.Condition()
        self._idle = 0
        self._slow = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}")
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, call: Callable[[], _Answer], *, slow: bool = False) -> asyncio.Future[_Answer]:
        """The answer of `call`, which runs on one of the threads. `slow` ones wait for the disk."""
        future = self._future()
        self._put(_Call(call, future, slow))
        return future

    def after(
        self, made: Sequence[Future[int]], call: Callable[[], _Answer]
    ) -> asyncio.Future[_Answer]:
        """The answer of `call`, run on one of the threads once all of `made` are done.

        Whoever cancels the answer does not cancel these, nor the call.
        """
        future = self._future()
        waiting = [_Call(call, future, slow=False)]
        left = len(made)
        counting = threading.Lock()

        def one_is_done(_done: Future[int]) -> None:
            nonlocal left
            with counting:
                left -= 1
                last = left == 0
            if last:
                # Taken out, for what was made keeps this function, and the call what was made: as
                # a cycle, all that a request brought would stay until somebody looks for cycles.
                self._put(waiting.pop())

        for one in made:
            one.add_done_callback(one_is_done)
        return future

    def shutdown(self) -> None:
        """Finish what was put, and end the threads. Blocks; for another thread than the loop's."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _future(self) -> asyncio.Future[Any]:
        self._loop = asyncio.get_running_loop()
        return self._loop.create_future()

    def _put(self, call: _Call) -> None:
        """Any thread."""
        self._calls.append(call)
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Wake a thread where those that are awake are too few. The lock is held."""
        ready = len(self._threads) - self._idle - self._slow
        if self._idle and len(self._calls) > WAITING_EACH * ready:
            self._idle -= 1  # here, so that the next call is not the reason to wake another one
            self._changed.notify()

    def _work(self) -> None:
        while (call := self._take()) is not None:
            try:
                done = _Done(call.future, call.call())
            except BaseException as exc:  # noqa: BLE001 - raised where the answer is awaited
                done = _Done(call.future, error=exc)
            if call.slow:
                with self._changed:
                    self._slow -= 1
            self._tell(done)

    def _take(self) -> _Call | None:
        """The next call; None where there will be none."""
        with self._changed:
            while not self._calls:
                if self._closing:
                    return None
                self._idle += 1
                self._changed.wait()
            call = self._calls.popleft()
            if call.slow:
                self._slow += 1
                if self._calls:
                    self._wake()
            return call

    def _tell(self, done: _Done) -> None:
        """Any thread. One call of the loop delivers all that is done when it runs."""
        self._done.append(done)
        if not self._told and self._loop is not None:
            self._told = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._told = False  # before looking: what is put from now on calls again
        while self._done:
            done = self._done.popleft()
            if done.future.done():
                continue  # nobody waits any more
            if done.error is None:
                done.future.set_result(done.value)
            else:
                done.future.set_exception(done.error)
