"""Thread pool for calls of an event loop, with few wake-ups.

Handing a call to another thread costs more than most calls take: two wake-ups, and a queue, a lock
and a future for each. This pool tells the loop once about all calls that are done by the time it
looks. A thread that is awake takes the next call itself. Another thread is woken only if many calls
wait, or if all awake threads are in calls that wait for the disk.

Users take turns. One slow call and one other call of a user run at the same time, and some that
move bulk: so others find a free thread, and wait for Python's lock behind few. More threads would
not be faster: of two calls that read many small files, each system call hands the lock to the
other.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from protocol.codec.values import Value
from sfsd.fair_queue import FairQueue

WAITING_EACH: Final = 16
"""Calls that wait for one awake thread before another is woken; most take a tenth of a ms."""
BULK_SPARE: Final = 4
"""Threads that calls with bulk of one user leave to others."""
TURNS: Final = 2
"""Turns of the loop between two results of one user. With both in one turn, the requests of others
would wait for both."""
_Answer = TypeVar("_Answer")


class _Kind(NamedTuple):
    """Calls of a user that share a queue, and with it a turn and a limit."""

    user: str
    slow: bool
    bulk: bool


class _Call(Value):
    kind: _Kind
    call: Callable[[], Any]
    future: asyncio.Future[Any]


class _Done(Value):
    user: str
    future: asyncio.Future[Any]
    value: Any = None
    error: BaseException | None = None


class ThreadPool:
    """Pool of one loop; its methods are called on that loop's thread unless they say otherwise."""

    def __init__(self, threads: int, name: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        bulk = max(1, threads - BULK_SPARE)
        self._calls = FairQueue[_Kind, _Call](lambda kind: bulk if kind.bulk else 1)
        self._done: deque[_Done] = deque()
        self._undelivered = FairQueue[str, _Done]()
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

    def run(
        self, user: str, call: Callable[[], _Answer], *, slow: bool = False, bulk: bool = False
    ) -> asyncio.Future[_Answer]:
        """Run `call` on a thread in a turn of `user`; the future is its result.

        `slow` calls wait for the disk, those with `bulk` for many bytes of it; they compute little.
        """
        future = self._new_future()
        self._put(_Call(_Kind(user, slow or bulk, bulk), call, future))
        return future

    def run_after(
        self, user: str, before: Future[Any], call: Callable[[], _Answer]
    ) -> asyncio.Future[_Answer]:
        """Run `call` on a thread once `before` is done; the future is its result.

        Cancelling the result cancels neither `before` nor the call.
        """
        result = self._new_future()
        waiting = [_Call(_Kind(user, slow=False, bulk=False), call, result)]
        # Popped, because `before` keeps this function alive and the call keeps `before`: in a
        # cycle, all memory of a request would stay until a cycle collection.
        before.add_done_callback(lambda _done: self._put(waiting.pop()))
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
        with self._changed:
            self._calls.put(call.kind, call)
            self._wake()

    def _wake(self) -> None:
        """Wake a thread if too few are awake. The caller holds the lock."""
        ready = len(self._threads) - self._idle - self._slow
        if self._idle and self._calls.ready and len(self._calls) > WAITING_EACH * ready:
            self._idle -= 1  # here, so that the next call does not wake another thread too
            self._changed.notify()

    def _work(self) -> None:
        call = self._take(None)
        while call is not None:
            try:
                done = _Done(call.kind.user, call.future, call.call())
            except BaseException as exc:  # noqa: BLE001 - raised where the answer is awaited
                done = _Done(call.kind.user, call.future, error=exc)
            self._schedule_delivery(done)
            call = self._take(call)

    def _take(self, before: _Call | None) -> _Call | None:
        """End the call `before`, and wait for the next; None once the pool is closing and empty."""
        with self._changed:
            if before is not None:
                self._calls.done(before.kind)
                self._slow -= before.kind.slow
            while not self._calls.ready:
                if self._closing:
                    return None
                self._idle += 1
                self._changed.wait()
            call = self._calls.take()
            if call.kind.slow:
                self._slow += 1
                self._wake()
            return call

    def _schedule_delivery(self, done: _Done) -> None:
        """Have the loop deliver `done`, with all that is done when it runs; on any thread."""
        self._done.append(done)
        if not self._delivery_scheduled and self._loop is not None:
            self._delivery_scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Deliver one result of each user, and schedule the delivery of what is left."""
        self._delivery_scheduled = False  # first: what is appended from now on schedules again
        while self._done:
            done = self._done.popleft()
            self._undelivered.put(done.user, done)
        for _ in range(self._undelivered.ready):
            done = self._undelivered.take()
            if done.future.done():
                continue  # cancelled
            if done.error is None:
                done.future.set_result(done.value)
            else:
                done.future.set_exception(done.error)
        if self._undelivered and not self._delivery_scheduled:
            self._delivery_scheduled = True
            self._pass_turns(TURNS)

    def _pass_turns(self, left: int) -> None:
        """Deliver after `left` turns of the loop, in which the earlier results are answered."""
        loop = asyncio.get_running_loop()
        if left:
            loop.call_soon(self._pass_turns, left - 1)
        else:
            loop.call_soon(self._deliver)
