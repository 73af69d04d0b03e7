"""Guards the steps of the work over one connection: refuses concurrent use, and reports errors.

A store has a connection for each thread. What belongs to one of them, such as an iterator, may be
given to another thread; if both use the connection at once, the second call fails before it changes
anything. Replies mixed up between two threads
look like those of a lying server, and would be kept as evidence against it. So concurrent use is
checked, not only documented.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, GeneratorType
from typing import Any, Protocol, Self, TypeVar

from sfsc.errors import SfscError, UsageError

_Skip = Callable[[str, SfscError], None]
_Class = TypeVar("_Class", bound=type)


class ThreadGuard:
    """Context manager around each step of the work. Raises `UsageError` if another thread is inside
    one, or the work has ended."""

    __slots__ = ("_lock", "_report", "ended")

    def __init__(self, report: Callable[[BaseException], None] = lambda _error: None) -> None:
        """`report` is called with each error that ends a step, or that a caller is told of."""
        self._lock = threading.RLock()
        self._report = report
        self.ended: bool = False

    def reporting(self, skip: _Skip) -> _Skip:
        """Return a function like `skip` that reports the errors that it is called with."""

        def reported(what: str, error: SfscError) -> None:
            self._report(error)
            skip(what, error)

        return reported

    def __enter__(self) -> None:
        # Never block: two threads that wait for each other, as at the ends of a pipe, would
        # deadlock without an error.
        if not self._lock.acquire(blocking=False):
            cause = "another thread is using this connection"
            raise UsageError(cause, "use iterators and files on the thread that made them")
        if self.ended:
            self._lock.release()
            raise UsageError("the store is closed", "connect again")

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if error is not None:
                self._report(error)
        finally:
            self._lock.release()


class _Guarded(Protocol):
    @property
    def thread_guard(self) -> ThreadGuard: ...

    def for_thread(self) -> Self:
        """Return the object that this thread uses instead of this one, or this one."""


def single_threaded(kind: _Class) -> _Class:
    """Class decorator: every public method runs on the object of its thread (`for_thread`), inside
    the `thread_guard` of that. If a method returns an iterator, each step of the iterator does.
    `close` is exempt: it ends the work under way. Errors that are passed to the argument `skip` are
    reported as those that are raised."""
    for name, method in list(vars(kind).items()):
        exempt = name.startswith("_") or name in ("close", "for_thread")
        if isinstance(method, FunctionType) and not exempt:
            setattr(kind, name, _guarded(method))
    return kind


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(given: _Guarded, *arguments: object, **options: Any) -> object:
        self = given.for_thread()
        if options.get("skip") is not None:
            options["skip"] = self.thread_guard.reporting(options["skip"])
        with self.thread_guard:
            result = method(self, *arguments, **options)
        # A file object is an iterator too; it enters the guard when it reads.
        if isinstance(result, Iterator) and not isinstance(result, io.IOBase):
            return _guarded_steps(self.thread_guard, result)
        return result

    return called


def _guarded_steps(guard: ThreadGuard, items: Iterator[object]) -> Iterator[object]:
    try:
        while True:
            with guard:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        # A caller that leaves the loop early ends the generator, even if the store is closed.
        if isinstance(items, GeneratorType):
            items.close()
