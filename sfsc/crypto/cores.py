"""One function called with many things, some at a time, on other cores as well, and answered in
their order.

Cryptography of small things holds the interpreter lock, so threads would take turns; these are
processes of ours, each spoken to over its stdin and stdout. The function, keys and all, gets there
over that pipe and nowhere else: no argument, no environment, no file. A worker ends when the pipe
does, so with us, whatever ends us. The function has no effects, so what a worker did not answer, as
it was killed or the function raised, is called here, and raises here.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar, cast

from protocol.codec.values import Value
from sfsc.closing import Closing
from sfsc.errors import SfscError

ENOUGH: Final = 256
"""Things done here before processes are started: one costs as much as some 500 of them."""
CHUNK: Final = 32
"""Things that the function is called with: about 10 ms of work."""
MOST: Final = 4
"""Workers; who hands out and takes in is not faster than as many."""
_AHEAD: Final = 16
"""Chunks that wait for the answer to the oldest, which may be at a worker that is starting."""
_LENGTH: Final = struct.Struct(">I")
_START: Final = """
import signal, sys, pickle
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:], sys.pycache_prefix, sys.dont_write_bytecode = pickle.load(sys.stdin.buffer)
from sfsc.crypto.cores import serve
serve()
"""
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


def spare() -> int:
    """How many workers have a core that neither we nor a daemon on the same machine want."""
    name = Path(sys.executable or "").stem.lower()
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        return 0  # another program, with Python in it: to start it would be to run that
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(0, min(MOST, count - 2))


class Cores(Closing, Generic[_Item, _Answer]):
    """Calls `function`, which gives an answer for each of the things in a list, can be pickled, has
    no effects and raises `SfscError` only."""

    def __init__(
        self, function: Callable[[list[_Item]], list[_Answer]], workers: int | None = None
    ) -> None:
        """`workers` processes beside this one, `spare` by default; none is started yet."""
        self._function = function
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker() for _ in range(spare() if workers is None else workers)]
        self._begun = 0
        self._threads: ThreadPoolExecutor | None = None

    def map(self, items: Iterable[_Item]) -> Iterator[_Answer]:
        """The answers, in order; of `items`, some hundred are taken ahead of them. Raises what the
        function does, in the place of the answers that it was to give."""
        left = iter(items)
        few = islice(left, None if not self._workers or self._threads else ENOUGH)
        while chunk := list(islice(few, CHUNK)):
            yield from self._function(chunk)
        waiting: deque[_Chunk[_Item, _Answer]] = deque()
        while chunk := list(islice(left, CHUNK)):
            waiting.append(self._begin(chunk))
            while waiting and (waiting[0].done or len(waiting) > _AHEAD):
                yield from self._end(waiting.popleft())
        while waiting:
            yield from self._end(waiting.popleft())

    def close(self) -> None:
        """End the workers, whatever they do. Twice does no harm."""
        for worker in self._workers:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown()

    def _begin(self, items: list[_Item]) -> _Chunk[_Item, _Answer]:
        """To a worker; while all that there are still start, or are lost, it is done here. Once one
        is there nothing is: its answer would wait for the lock while we calculate."""
        starting = self._begun < len(self._workers)
        if not starting and not any(worker.ready for worker in self._workers):
            return _Chunk(items, answers=_called(self._function, items))
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self._workers), "cores")
            for worker in self._workers:
                self._idle.put(worker)
        self._begun += starting
        return _Chunk(items, self._threads.submit(self._ask, items))

    def _ask(self, items: list[_Item]) -> list[_Answer] | None:
        """On one of as many threads as there are workers: what one of them answers, if it does."""
        worker = self._idle.get()
        try:
            return cast("list[_Answer] | None", worker.ask(self._function, items))
        finally:
            self._idle.put(worker)

    def _end(self, chunk: _Chunk[_Item, _Answer]) -> list[_Answer]:
        answers = chunk.answers if chunk.asked is None else chunk.asked.result()
        return self._function(chunk.items) if answers is None else answers


class _Chunk(Value, Generic[_Item, _Answer]):
    """Things whose answers were `asked` for, or are here; None where they are to be made here."""

    items: list[_Item]
    asked: Future[list[_Answer] | None] | None = None
    answers: list[_Answer] | None = None

    @property
    def done(self) -> bool:
        return self.asked is None or self.asked.done()


class _Worker:
    """One process, started when it is first asked, and `ready` once it has answered. One thread
    asks; another may `kill`."""

    def __init__(self) -> None:
        self.ready = False
        self._lost = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, function: Callable[[Any], Any], items: list[Any]) -> list[Any] | None:
        """The answers; None where it has none, or is lost."""
        try:
            process = self._process or self._started(function)
            if process is None or process.stdin is None or process.stdout is None:
                return None
            _write(process.stdin, items)
            answers = cast("list[Any] | None", _read(process.stdout))
        except (OSError, EOFError, ValueError):  # ValueError: a pipe that `kill` has closed
            self.kill()
            return None
        self.ready = not self._lost
        return answers

    def _started(self, function: Callable[[Any], Any]) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._lost:
                return None
            self._process = process = subprocess.Popen(
                # Isolated: it imports what we import, from where we do, and nothing else.
                [sys.executable, "-I", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        if process.stdin is not None:
            setting = sys.path, sys.pycache_prefix, sys.dont_write_bytecode
            pickle.dump(setting, process.stdin)
            _write(process.stdin, function)
        return process

    def kill(self) -> None:
        with self._lock:
            self._lost, process, self._process = True, self._process, None
            self.ready = False
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was not written yet, to nobody
                        pipe.close()


def serve() -> None:
    """What a worker does, until its parent is gone."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        function = _read(stdin)
        while True:
            _write(stdout, _called(function, _read(stdin)))


def _called(
    function: Callable[[list[_Item]], list[_Answer]], items: list[_Item]
) -> list[_Answer] | None:
    """None where it raises for one of them: it will again, where that is to be heard."""
    try:
        return function(items)
    except SfscError:
        return None


def _write(pipe: IO[bytes], value: object) -> None:
    data = pickle.dumps(value)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:  # noqa: ANN401 - what was written
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    # Ours at both ends, and nobody else's: what it says was said by this very program.
    return pickle.loads(data)  # noqa: S301
