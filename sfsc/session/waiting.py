"""How a session waits for the network.

Everything that this package does with a server is written as plain calls, and they wait in two ways
only: for a socket, and for some time. Both go through `Waiting`. So one code serves programs that
block (`Blocking`) and those that use asyncio (`sfsc.aio`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from sfsc.closing import Closing

if TYPE_CHECKING:  # sockets are slow to import; see `limits`
    import selectors
    import socket


class SocketWait(Protocol):
    """Waits for one socket. It never reads or writes, and does not own the socket."""

    def wait(self, *, writing: bool, seconds: float) -> bool:
        """Wait until the socket has something to read, or with `writing` also until it takes bytes;
        return False if that does not happen within `seconds` (at most 0: do not wait)."""

    def close(self) -> None:
        """End the use of the socket, before the socket is closed. Idempotent."""


class Waiting(Protocol):
    """The two ways to wait."""

    def for_socket(self, connected: socket.socket) -> SocketWait:
        """Return what waits for a non-blocking socket. The caller closes it."""

    def pause(self, seconds: float) -> None:
        """Wait `seconds`."""


class Blocking:
    """Blocks the thread that waits."""

    def for_socket(self, connected: socket.socket) -> SocketWait:
        return _BlockingSocket(connected)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)


class _BlockingSocket(Closing):
    def __init__(self, connected: socket.socket) -> None:
        import selectors

        self._selector = selectors.DefaultSelector()
        self._key: selectors.SelectorKey = self._selector.register(connected, selectors.EVENT_READ)

    def wait(self, *, writing: bool, seconds: float) -> bool:
        import selectors

        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        self._selector.modify(self._key.fileobj, events)
        return bool(self._selector.select(max(0.0, seconds)))

    def close(self) -> None:
        self._selector.close()
