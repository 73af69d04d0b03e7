"""The agent's process: ``python -P -m sfsc.agent.process FD PATH SESSION``.

FD is the listening socket, bound to PATH. SESSION is a descriptor of the process whose end is the
end of the login session (Linux), or -1.

The agent holds one key at most. It forgets the key

- `timeout` seconds after its last use,
- when asked to (`lock`),
- before the machine is suspended, where logind says so (`sfsc.agent.sleep_watch`), and once it has
  been: it compares a clock that stops then with one that does not, before it answers anything and
  every few seconds,
- when the session ends, or the folder of the socket goes, as a runtime folder does when the user
  logs out: then the agent ends.

Forgetting overwrites the key and executes the program again on the same socket, so that no copy in
the memory of the interpreter outlives it.

A connection is one request and one answer. Each has `_SECONDS`, and the oldest one gives way when
there are too many, so that a client that hangs keeps nobody waiting. Clients of other users are
disconnected unheard.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from protocol.codec.errors import RemoteProtocolError
from protocol.codec.values import Mutable, Value
from protocol.wire.frames import FrameReader
from sfsc.agent.memory import KeyPage, protect_process
from sfsc.agent.messages import (
    GET,
    KEEP,
    LOCK,
    STOP,
    AgentAnswer,
    AgentRequest,
    frame,
    new_reader,
)
from sfsc.agent.place import peer_is_this_user
from sfsc.agent.sleep_watch import SleepWatch

_SECONDS: Final = 5.0
"""Time for a connection, in seconds."""
_MOST: Final = 32
"""Most connections at a time."""
_TICK: Final = 2.0
"""Longest time in seconds between two looks at the clocks and at the socket's path."""
_SUSPENDED: Final = 1.0
"""Seconds by which the two clocks differ more than before once the machine was suspended."""


class Clocks(Value):
    """Clocks in seconds: `total` counts the time while the machine is suspended, `awake` does
    not."""

    total: Callable[[], float]
    awake: Callable[[], float]


def system_clocks() -> Clocks:
    """Return this system's clocks. They are one clock where it has no two that differ: then only
    the time-out ends a key after a suspension."""
    total: Callable[[], float] = time.monotonic
    awake: Callable[[], float] = time.monotonic
    if sys.platform == "linux":
        total = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    elif sys.platform == "darwin":
        awake = partial(time.clock_gettime, time.CLOCK_UPTIME_RAW)
    return Clocks(total, awake)


class KeyHolder:
    """Holds one key in memory, and knows when to forget it. Uses no socket."""

    def __init__(self, page: KeyPage, clocks: Clocks) -> None:
        self._page = page
        self._clocks = clocks
        self._lock_id = b""
        self._timeout = 0
        self._until = 0.0
        self._asleep = self._measure_sleep()

    def _measure_sleep(self) -> float:
        # In this order, a pause of this process between the two makes the result smaller.
        total = self._clocks.total()
        return total - self._clocks.awake()

    @property
    def holds(self) -> bool:
        return bool(self._lock_id)

    def is_due(self) -> bool:
        """Return whether the key must be forgotten: its time is over, or the machine slept."""
        slept = self._measure_sleep() > self._asleep + _SUSPENDED
        return self.holds and (slept or self._clocks.total() >= self._until)

    def seconds_left(self) -> float:
        return max(0.0, self._until - self._clocks.total()) if self.holds else 0.0

    def keep(self, lock_id: bytes, key: bytes, timeout: int) -> None:
        """Hold this key instead of any other, for `timeout` seconds after its last use."""
        self._page.store(key)
        self._lock_id, self._timeout = lock_id, timeout
        self._asleep = self._measure_sleep()
        self._until = self._clocks.total() + timeout

    def find(self, lock_id: bytes) -> bytes:
        """Return the key of the keyring `lock_id` and begin its time again; empty without it."""
        if not self.holds or lock_id != self._lock_id:
            return b""
        self._until = self._clocks.total() + self._timeout
        return self._page.read()

    def forget(self) -> None:
        """Overwrite the key. Idempotent."""
        self._page.wipe()
        self._lock_id, self._until = b"", 0.0

    def answer(self, request: AgentRequest) -> AgentAnswer:
        """Carry out a request and return its answer."""
        key = b""
        if request.action == GET:
            key = self.find(request.lock_id)
        elif request.action == KEEP:
            self.keep(request.lock_id, request.key, request.timeout)
        elif request.action in (LOCK, STOP):
            self.forget()
        left = -(-self.seconds_left() // 1)
        return AgentAnswer(key, self._lock_id, int(left), os.getpid(), self._page.memory)


class _Client(Mutable):
    """A connection that has not been answered. `until` is by the awake clock."""

    connection: socket.socket
    reader: FrameReader
    until: float


class Agent:
    """Serves one listening socket until its path goes, the session ends, or `stop`."""

    def __init__(
        self,
        listener: socket.socket,
        path: Path,
        session: int,
        holder: KeyHolder,
        clocks: Clocks,
        sleep: SleepWatch | None = None,
    ) -> None:
        """`session` is a descriptor that is readable once the session has ended, or -1."""
        self._listener = listener
        self._path = path
        self._place = _identity(path)
        self._session = session
        self._holder = holder
        self._clocks = clocks
        self._sleep = sleep
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._has_forgotten = False
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        if session >= 0:
            self._selector.register(session, selectors.EVENT_READ)
        if sleep is not None:
            self._selector.register(sleep, selectors.EVENT_READ)

    def run(self) -> bool:
        """Serve until a key has been forgotten, and return True: then nothing of this process's
        memory may live on. Or serve until the agent is to end, remove the socket, and return
        False."""
        try:
            return self._serve()
        finally:
            for client in list(self._clients.values()):
                self._drop(client)
            self._selector.close()
            if self._sleep is not None:
                self._sleep.close()

    def _serve(self) -> bool:
        stopped = False
        while self._is_here() and not stopped:
            ready = [key.fd for key, _ in self._selector.select(self._wait())]
            if self._session in ready:
                break
            self._forget_what_is_due(ready)
            for fd in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._clients and self._receive(self._clients[fd]):
                    stopped = True
            for client in list(self._clients.values()):
                if client.until <= self._clocks.awake():
                    self._drop(client)
            if self._has_forgotten and not self._clients and not stopped:
                if not self._holder.holds:
                    return True
                self._has_forgotten = False
        if self._is_here():
            self._path.unlink(missing_ok=True)
        return False

    def _forget_what_is_due(self, ready: list[int]) -> None:
        sleep, prepares = self._sleep, None
        if sleep is not None and sleep.fileno() in ready:
            prepares = sleep.receive()
            if prepares is False:
                self._selector.unregister(sleep)
                sleep.close()
                self._sleep = None
        if prepares or self._holder.is_due():
            self._has_forgotten |= self._holder.holds
            self._holder.forget()
        if sleep is not None and prepares:
            sleep.release()

    def _is_here(self) -> bool:
        return self._place is not None and _identity(self._path) == self._place

    def _wait(self) -> float:
        """Return the seconds until there may be something to do."""
        untils = [client.until - self._clocks.awake() for client in self._clients.values()]
        if self._holder.holds:
            untils.append(self._holder.seconds_left())
        return max(0.0, min([_TICK, *untils]))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if not peer_is_this_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        if len(self._clients) >= _MOST:
            self._drop(min(self._clients.values(), key=lambda client: client.until))
        client = _Client(connection, new_reader(), self._clocks.awake() + _SECONDS)
        self._clients[connection.fileno()] = client
        self._selector.register(connection, selectors.EVENT_READ)

    def _receive(self, client: _Client) -> bool:
        """Take what a client has sent, and answer it if it is a request. Return whether the agent
        is to end."""
        try:
            count = client.connection.recv_into(client.reader.get_buffer())
            client.reader.buffer_updated(count)
            body = client.reader.next_body()
            if body is None and count:
                return False
            request = None if body is None else AgentRequest.parse(bytes(body))
        except BlockingIOError:
            return False
        except (OSError, RemoteProtocolError):
            request = None
        if request is not None:
            if request.action == STOP and self._is_here():
                self._path.unlink()  # first: nobody is to connect to an agent that has answered
            try:
                # The socket is new and its buffer empty: an answer always fits.
                client.connection.send(frame(self._holder.answer(request)))
            except OSError:
                pass  # the client has gone
        self._drop(client)
        if request is not None and request.action == LOCK:
            self._has_forgotten = True
        return request is not None and request.action == STOP

    def _drop(self, client: _Client) -> None:
        del self._clients[client.connection.fileno()]
        self._selector.unregister(client.connection)
        client.connection.close()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def command_line(listener: int, path: Path, session: int) -> list[str]:
    """Return the command that runs an agent. -P: no code is loaded from the current folder."""
    program = [sys.executable, "-P", "-m", "sfsc.agent.process"]
    return [*program, str(listener), str(path), str(session)]


def start_again(listener: socket.socket, path: Path, session: int) -> NoReturn:
    """Replace this process's program by itself, with new memory. Raises `OSError`."""
    for fd in (listener.fileno(), session):
        if fd >= 0:
            os.set_inheritable(fd, True)
    os.execv(sys.executable, command_line(listener.fileno(), path, session))  # noqa: S606


def main(arguments: list[str]) -> None:
    """Run the agent of this command line."""
    fd, path, session = int(arguments[0]), Path(arguments[1]), int(arguments[2])
    page = KeyPage(all_locked=protect_process())
    clocks = system_clocks()
    listener = socket.socket(fileno=fd)
    holder = KeyHolder(page, clocks)
    agent = Agent(listener, path, session, holder, clocks, SleepWatch.connect())
    if agent.run():
        start_again(listener, path, session)
    page.wipe()


if __name__ == "__main__":
    main(sys.argv[1:])
