"""Runs the code of this package, which is plain calls, for an event loop of asyncio.

A call runs on a thread of its store until it waits for the network. There it is suspended, as a
greenlet, and the event loop waits for the socket; no thread does. So the loop is never held by
cryptography or by a disk, and everything has only one implementation.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from greenlet import getcurrent, greenlet

from sfsc.errors import UsageError

if TYPE_CHECKING:
    import socket

    from sfsc.session.waiting import SocketWait

_Result = TypeVar("_Result")
Wait = Callable[[], Awaitable[_Result]]
"""Begins what a suspended call waits for; called and awaited on the event loop."""


class Core:
    """The thread on which the calls of one store run, one at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "sfsc-aio")

    async def run(
        self,
        call: Callable[[], _Result],
        *,
        whole: bool = False,
        between: Callable[[], object] = lambda: None,
    ) -> _Result:
        """Return the result of `call`, which is suspended wherever it uses `suspend`. `between` is
        called on the event loop whenever that happens, and at the end.

        If the task is cancelled, `CancelledError` is raised where `call` waits, which undoes what
        it has begun; what waits for that is not interrupted again. With `whole`, `call` is not
        interrupted at all. `CancelledError` is raised here in either case, at the end.
        """
        running, loop = _Running(call), asyncio.get_running_loop()
        cancelled: asyncio.CancelledError | None = None
        step = running.begin
        while True:
            stepping = loop.run_in_executor(self._thread, step)
            cancelled = await finished(stepping) or cancelled
            between()
            try:
                wait = stepping.result()
            except BaseException:
                if cancelled is None:
                    raise
                raise cancelled  # noqa: B904  # the error is its context
            if wait is None:
                if cancelled is not None:
                    raise cancelled
                return running.result
            if cancelled is not None and not whole:
                whole, step = True, functools.partial(running.throw, cancelled)
                continue
            waiting = asyncio.ensure_future(wait())
            stopped = await finished(waiting, cancel=not whole)
            cancelled = stopped or cancelled
            if stopped is not None and not whole:
                whole, step = True, functools.partial(running.throw, stopped)
            else:
                step = functools.partial(running.go_on, waiting)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._thread.shutdown(wait=False)


class _Running(Generic[_Result]):
    """A call under way. Its methods run on the thread of the core, and return what the call waits
    for, None once it has a `result`. They raise what it raises."""

    result: _Result

    def __init__(self, call: Callable[[], _Result]) -> None:
        self._call = call
        self._context = contextvars.copy_context()
        self._greenlet: greenlet

    def begin(self) -> Wait[object] | None:
        self._greenlet = greenlet(self._call)
        self._greenlet.gr_context = self._context
        return self._stepped(self._greenlet.switch())

    def go_on(self, waited: asyncio.Future[object]) -> Wait[object] | None:
        """Go on with the result, or the error, of what the call waited for."""
        error = asyncio.CancelledError() if waited.cancelled() else waited.exception()
        if error is not None:
            return self.throw(error)
        return self._stepped(self._greenlet.switch(waited.result()))

    def throw(self, error: BaseException) -> Wait[object] | None:
        """Raise `error` where the call waits."""
        return self._stepped(self._greenlet.throw(error))

    def _stepped(self, outcome: object) -> Wait[object] | None:
        if not self._greenlet.dead:
            return cast(Wait[object], outcome)
        self.result = cast(_Result, outcome)
        return None


async def finished(
    future: asyncio.Future[Any], *, cancel: bool = False
) -> asyncio.CancelledError | None:
    """Wait until `future` is done, even if this task is cancelled: return that error then. With
    `cancel`, cancel `future` too."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as exc:
            cancelled = exc
            if cancel:
                future.cancel()
    return cancelled


def suspend(wait: Wait[_Result]) -> _Result:
    """Suspend the call that `Core.run` runs, until `wait` is done; return the result of that.

    Raises `UsageError` outside such a call.
    """
    parent = getcurrent().parent
    if parent is None:
        cause = "this object is used by asyncio, and was called without it"
        raise UsageError(cause, "use the methods of `sfsc.aio`")
    return cast(_Result, parent.switch(wait))


class OnLoop:
    """Waits on the event loop, and suspends the call meanwhile (`sfsc.session.waiting`)."""

    def for_socket(self, connected: socket.socket) -> SocketWait:
        return _SocketOnLoop(connected.fileno())

    def pause(self, seconds: float) -> None:
        suspend(functools.partial(asyncio.sleep, seconds))


class _SocketOnLoop:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, *, writing: bool, seconds: float) -> bool:
        return suspend(functools.partial(self._ready, writing, seconds))

    async def _ready(self, writing: bool, seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        try:
            loop.add_reader(self._descriptor, wake)
        except NotImplementedError:
            cause = "this event loop cannot wait for sockets"
            raise UsageError(cause, "use asyncio.SelectorEventLoop") from None
        try:
            if writing:
                loop.add_writer(self._descriptor, wake)
            done, _ = await asyncio.wait((ready,), timeout=max(0.0, seconds))
            return bool(done)
        finally:
            loop.remove_reader(self._descriptor)
            loop.remove_writer(self._descriptor)

    def close(self) -> None:
        """Do nothing: between waits the loop does not know the socket."""
