"""One thread at a time: whoever comes while another is at it is refused before he touches anything.

Answers that two threads have mixed up look like those of a server that lies, and would be kept as
evidence against it. So this is checked, not only written down.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Iterator
from types import FunctionType, GeneratorType, TracebackType
from typing import Any, Protocol, TypeVar

from sfsc.errors import UsageError

_Class = TypeVar("_Class", bound=type)


class ThreadGuard:
    """A context around each step of the work. Raises `UsageError` where another thread is in one,
    or the work has ended."""

    __slots__ = ("_lock", "ended")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.ended = False

    def __enter__(self) -> None:
        # Not waited for: of two threads that wait for each other, as at the ends of a pipe,
        # neither would ever learn why.
        if not self._lock.acquire(blocking=False):
            hint = "connect once in each thread"
            raise UsageError("another thread is using this store at this moment", hint)
        if self.ended:
            self._lock.release()
            raise UsageError("the store is closed", "connect again")

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class _Guarded(Protocol):
    @property
    def turn(self) -> ThreadGuard: ...


def single_threaded(kind: _Class) -> _Class:
    """The class, each public method of which takes its `turn`; of one that returns an iterator
    each step does. Not `close`: it ends what is under way."""
    for name, method in list(vars(kind).items()):
        if isinstance(method, FunctionType) and not name.startswith("_") and name != "close":
            setattr(kind, name, _guarded(method))
    return kind


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(self: _Guarded, *arguments: object, **options: object) -> object:
        with self.turn:
            result = method(self, *arguments, **options)
        # A file is an iterator too; it takes its turn where it reads.
        if isinstance(result, Iterator) and not isinstance(result, io.IOBase):
            return _guarded_steps(self.turn, result)
        return result

    return called


def _guarded_steps(turn: ThreadGuard, items: Iterator[object]) -> Iterator[object]:
    try:
        while True:
            with turn:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
    finally:
        # Who leaves the loop early lets go of what is under way, also of a store that is closed.
        if isinstance(items, GeneratorType):
            items.close()
