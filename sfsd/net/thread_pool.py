"""Thread pool for calls of an event loop, with few wake-ups.

Handing a call to another thread costs more than most calls take: two wake-ups, and a queue, a lock
and a future for each. This pool tells the loop once about all calls that are done by the time it
looks. A thread that is awake takes the next call itself. Another thread is woken only if many calls
wait, or if all awake threads are in calls that wait for the disk.
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
    """Pool of one loop; its methods are called on that loop's thread unless they say otherwise."""

    def __init__(self, threads: int, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[_Call] = deque()
        self._done: deque[_Done] = deque()
        self._delivery_scheduled = False
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
        """Run `call` on a thread; the future is its result. `slow` calls wait for the disk."""
        future = self._new_future()
        self._put(_Call(call, future, slow))
        return future

    def run_after(
        self, futures: Sequence[Future[int]], call: Callable[[], _Answer]
    ) -> asyncio.Future[_Answer]:
        """Run `call` on a thread once all of `futures` are done; the future is its result.

        Cancelling the result cancels neither `futures` nor the call.
        """
        result = self._new_future()
        waiting = [_Call(call, result, slow=False)]
        left = len(futures)
        lock = threading.Lock()

        def one_is_done(_done: Future[int]) -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                # Popped, because the futures keep this function alive and the call keeps the
                # futures: in a cycle, all memory of a request would stay until a cycle collection.
                self._put(waiting.pop())

        for one in futures:
            one.add_done_callback(one_is_done)
        return result

    def shutdown(self) -> None:
        """Finish all calls and end the threads. Blocks, so never call it on the loop's thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _new_future(self) -> asyncio.Future[Any]:
        self._loop = asyncio.get_running_loop()
        return self._loop.create_future()

    def _put(self, call: _Call) -> None:
        """Queue a call; on any thread."""
        self._calls.append(call)
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        """Wake a thread if too few are awake. The caller holds the lock."""
        ready = len(self._threads) - self._idle - self._slow
        if self._idle and len(self._calls) > WAITING_EACH * ready:
            self._idle -= 1  # here, so that the next call does not wake another thread too
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
            self._schedule_delivery(done)

    def _take(self) -> _Call | None:
        """Wait for the next call; return None once the pool is closing and empty."""
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

    def _schedule_delivery(self, done: _Done) -> None:
        """Have the loop deliver `done`, with all that is done when it runs; on any thread."""
        self._done.append(done)
        if not self._delivery_scheduled and self._loop is not None:
            self._delivery_scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._delivery_scheduled = False  # first: what is appended from now on schedules again
        while self._done:
            done = self._done.popleft()
            if done.future.done():
                continue  # cancelled
            if done.error is None:
                done.future.set_result(done.value)
            else:
                done.future.set_exception(done.error)
