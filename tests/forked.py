"""Runs `sfsc` and `sfsd` in processes that are forked from one that has imported them.

Importing takes most of the processor time of a short command. A forked process is a separate one
all the same: it has its own arguments, environment, folder and streams, and can be killed.

A `ForkServer` starts ``python -m tests.forked DESCRIPTOR`` when it is first used. That process has
one thread. A request is one packet with a JSON array, and with the descriptors of stdin, stdout,
stderr and of a pipe to which the process's number and then its exit code are written.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import NoReturn

MAX_REQUEST = 100_000
"""Bytes of a request, fewer than the buffer of a socket takes as one packet."""
_AT_START = ("PYTHON", "LC_", "LANG", "LD_")
"""Environment variables that begin so are read when an interpreter starts."""
_WHAT = "a forked program"


class Forked:
    """A process; its attributes and methods are those of `subprocess.Popen`."""

    def __init__(self, told: int) -> None:
        self._told = told
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        with self._lock:
            if self.returncode is None:
                if not select.select([self._told], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(_WHAT, timeout or 0.0)
                self.returncode = self._number()
                os.close(self._told)
            return self.returncode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._told, 1)
            assert byte, "the process that forks has ended"
            line += byte
        return int(line)


class ForkServer:
    """Starts programs by forking. May be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._at_start: dict[str, str] = {}

    def serves(self, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Return whether a forked process would do the same as a new one."""
        self._connection(environment)
        size = len(json.dumps([*arguments, dict(environment)]))
        return size < MAX_REQUEST and _at_start(environment) == self._at_start

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        cwd: Path | None = None,
    ) -> Forked:
        """Start a program with these descriptors as its streams, which stay the caller's."""
        request = [program, list(arguments), dict(environment), str(cwd or Path.cwd())]
        connection = self._connection(environment)
        told, telling = os.pipe()
        try:
            socket.send_fds(connection, [json.dumps(request).encode()], [*streams, telling])
        finally:
            os.close(telling)
        return Forked(told)

    def run(
        self,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdin: bytes,
        cwd: Path | None,
        seconds: float,
    ) -> tuple[int, bytes, bytes]:
        """Run a program; return its exit code, and what it wrote to stdout and stderr.

        Raises `subprocess.TimeoutExpired` after `seconds`, and kills the process.
        """
        (fed, feeding), (out, outwards), (err, errwards) = (os.pipe() for _ in range(3))
        with ThreadPoolExecutor(3) as pool:
            pool.submit(_write, feeding, stdin)
            stdout, stderr = pool.submit(_read, out), pool.submit(_read, err)
            try:
                streams = (fed, outwards, errwards)
                process = self.start(program, arguments, environment, streams, cwd)
            finally:
                for end in (fed, outwards, errwards):
                    os.close(end)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return code, stdout.result(), stderr.result()

    def _connection(self, environment: Mapping[str, str]) -> socket.socket:
        with self._lock:
            if self._socket is None:
                self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._at_start = _at_start(environment)
                with its:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "tests.forked", str(its.fileno())],
                        pass_fds=[its.fileno()],
                        env=dict(environment),
                        cwd=Path(__file__).parent.parent,
                        start_new_session=True,  # without a terminal, which a command could ask
                    )
                atexit.register(self._stop)
            return self._socket

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._process.wait()


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_AT_START)}


def _write(end: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(end, "wb", buffering=0) as pipe:
        while data:
            data = data[pipe.write(data) :]


def _read(end: int) -> bytes:
    with open(end, "rb") as pipe:
        return pipe.read()


# --- the process that forks


def serve(connection: socket.socket) -> None:
    """Fork a process for each request until the other side closes."""
    for package in ("protocol", "sfsc", "sfsd"):
        paths = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(paths, f"{package}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    waking, woken = socket.socketpair()
    for one in (waking, woken):
        one.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection, waking], [], [])
        with contextlib.suppress(BlockingIOError):
            waking.recv(4096)
        _tell_ended(running)
        if connection not in ready:
            continue
        packet, given, _, _ = socket.recv_fds(connection, 2 * MAX_REQUEST, 4)
        if not packet:
            return
        *streams, telling = given
        number = os.fork()
        if number == 0:
            for one in (connection, waking, woken):
                one.detach()
            _become(packet, streams)
        for stream in streams:
            os.close(stream)
        running[number] = telling
        os.write(telling, b"%d\n" % number)


def _tell_ended(running: dict[int, int]) -> None:
    while running:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number == 0:
            return
        telling = running.pop(number)
        with contextlib.suppress(BrokenPipeError):
            os.write(telling, b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(telling)


def _become(packet: bytes, streams: list[int]) -> NoReturn:
    """Become the program of a request, and exit as it does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program, arguments, environment, cwd = json.loads(packet)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.closerange(3, max(streams) + 200)
    # As an interpreter with PYTHONUTF8=1 opens them.
    sys.stdin = _text(0, "r", "surrogateescape")
    sys.stdout = _text(1, "w", "surrogateescape")
    sys.stderr = _text(2, "w", "backslashreplace")
    sys.stderr.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    sys.argv = [program, *arguments]
    code: int = importlib.import_module(f"{program}.cli").main()
    # As a process of multiprocessing ends. To take all modules apart would take longer than most
    # commands, because it writes to all memory that this process shares with the other one.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _text(descriptor: int, mode: str, errors: str) -> TextIOWrapper:
    raw = FileIO(descriptor, mode, closefd=False)
    buffered = BufferedWriter(raw) if mode == "w" else BufferedReader(raw)
    return TextIOWrapper(buffered, encoding="utf-8", errors=errors)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
