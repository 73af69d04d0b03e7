"""Concurrent calls are refused, before replies can be mixed up and the server blamed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import pytest

from sfsc.errors import UsageError
from sfsc.threadguard import ThreadGuard, single_threaded

_T = TypeVar("_T")


@single_threaded
class Worker:
    def __init__(self) -> None:
        self.thread_guard = ThreadGuard()
        self.let_go = 0

    def for_thread(self) -> Self:
        return self

    def both(self, action: Callable[[], _T]) -> _T:
        """Calls back."""
        return action()

    def many(self, action: Callable[[], object]) -> Iterator[object]:
        try:
            yield 1
            yield action()
        finally:
            self.let_go += 1

    def file(self) -> io.BytesIO:
        return io.BytesIO(b"content")

    def close(self) -> str:
        self.thread_guard.ended = True
        return "closed"


def elsewhere(action: Callable[[], object]) -> object:
    """Return what `action` returns in another thread, or raise what it raises."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(action())
        except UsageError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def test_one_thread_at_a_time() -> None:
    worker = Worker()
    refused = worker.both(lambda: elsewhere(lambda: worker.both(lambda: "mixed up")))
    assert isinstance(refused, UsageError)
    assert "the thread that made them" in refused.hint
    # One after the other may, and one may call again within.
    assert elsewhere(lambda: worker.both(lambda: "done")) == "done"
    assert worker.both(lambda: worker.both(lambda: "within")) == "within"
    assert Worker.both.__doc__ == "Calls back."


def test_each_iterator_step_takes_the_guard() -> None:
    worker = Worker()
    steps = worker.many(lambda: elsewhere(lambda: worker.both(lambda: "mixed up")))
    assert next(steps) == 1
    assert elsewhere(lambda: worker.both(lambda: "between")) == "between"
    assert isinstance(next(steps), UsageError)
    assert list(steps) == []
    assert worker.let_go == 1


def test_leaving_the_loop_early_ends_the_generator() -> None:
    worker = Worker()
    steps = worker.many(lambda: None)
    next(steps)
    worker.close()
    del steps
    assert worker.let_go == 1


def test_file_objects_are_not_wrapped() -> None:
    assert Worker().file().read() == b"content"


def test_calls_after_the_end_are_refused() -> None:
    worker = Worker()
    steps = worker.many(lambda: None)
    assert worker.close() == worker.close() == "closed"
    with pytest.raises(UsageError, match="closed"):
        worker.both(lambda: None)
    with pytest.raises(UsageError, match="closed"):
        next(steps)
