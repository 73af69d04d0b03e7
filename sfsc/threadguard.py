"""Refuse concurrent use: a call from a second thread fails before it changes anything.

Replies mixed up between two threads look like those of a lying server, and would be kept as
evidence against it. So concurrent use is checked, not only documented.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, GeneratorType
from typing import Any, Protocol, TypeVar

from sfsc.errors import UsageError

_Class = TypeVar("_Class", bound=type)


class ThreadGuard:
    """Context manager around each step of the work. Raises `UsageError` if another thread is inside
    one, or the work has ended."""

    __slots__ = ("_lock", "ended")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.ended = False

    def __enter__(self) -> None:
        # Never block: two threads that wait for each other, as at the ends of a pipe, would
        # deadlock without an error.
        if not self._lock.acquire(blocking=False):
            cause = "another thread is using this store"
            raise UsageError(cause, "open a connection in each thread")
        if self.ended:
            self._lock.release()
            raise UsageError("the store is closed", "connect again")

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


class _Guarded(Protocol):
    @property
    def thread_guard(self) -> ThreadGuard: ...


def single_threaded(kind: _Class) -> _Class:
    """Class decorator: every public method runs inside the object's `thread_guard`. If a method
    returns an iterator, each step of the iterator does. `close` is exempt: it ends the work under
    way."""
    for name, method in list(vars(kind).items()):
        if isinstance(method, FunctionType) and not name.startswith("_") and name != "close":
            setattr(kind, name, _guarded(method))
    return kind


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(self: _Guarded, *arguments: object, **options: object) -> object:
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
