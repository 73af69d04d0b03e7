"""Hears from logind that the machine is about to be suspended, before it is.

logind announces it by the signal PrepareForSleep on the system's D-Bus, and waits up to five
seconds for those who hold an inhibitor lock of the mode `delay`: a descriptor, which they close
once they are ready. This is the little of the D-Bus protocol that it takes: three calls, whose
arguments are strings, and one signal. Of other messages only the length is read.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Final, Self

from sfsc.agent.place import new_socket, own_uid
from sfsc.closing import Closing

HAS_LOGIND: Final = sys.platform == "linux"
ADDRESS: Final = "DBUS_SYSTEM_BUS_ADDRESS"
_USUAL: Final = "unix:path=/run/dbus/system_bus_socket"
_SECONDS: Final = 1.0
"""Time for the greeting of the bus."""
_MAX_MESSAGE: Final = 64 * 1024
_MAX_LINE: Final = 256
_HEADER: Final = struct.Struct("<cBBBII")
_CALL, _SIGNAL = 1, 4
_NO_AUTO_START: Final = 2
_PATH, _INTERFACE, _MEMBER, _DESTINATION, _SIGNATURE = 1, 2, 3, 6, 8
_BUS: Final = "org.freedesktop.DBus"
_LOGIND: Final = "org.freedesktop.login1"
_LOGIND_PATH: Final = "/org/freedesktop/login1"
_MANAGER: Final = "org.freedesktop.login1.Manager"
_RULE: Final = (
    f"type='signal',sender='{_LOGIND}',path='{_LOGIND_PATH}',interface='{_MANAGER}',"
    "member='PrepareForSleep'"
)


class SleepWatch(Closing):
    """A connection to the system's bus that holds an inhibitor lock while the machine is awake."""

    def __init__(self, connection: socket.socket) -> None:
        """Use `connect` instead."""
        self._connection = connection
        self._received = bytearray()
        self._lock = -1
        self._serial = 0
        self._call(_BUS, "/org/freedesktop/DBus", _BUS, "Hello")
        self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", _RULE)
        self._inhibit()

    @classmethod
    def connect(cls) -> Self | None:
        """Connect to the system's bus; None if there is none, or it does not let us in."""
        kind, _, path = os.environ.get(ADDRESS, _USUAL).partition(",")[0].partition("=")
        if not HAS_LOGIND or kind != "unix:path":
            return None
        connection = new_socket()
        try:
            connection.settimeout(_SECONDS)
            connection.connect(path)
            _authenticate(connection)
            connection.setblocking(False)
            return cls(connection)
        except (OSError, ValueError):
            connection.close()
            return None

    def fileno(self) -> int:
        return self._connection.fileno()

    def receive(self) -> bool | None:
        """Take what the bus has sent. Return True if the machine is about to be suspended: then
        call `release` when you are ready. Return False if the bus has gone, else None."""
        try:
            data, descriptors = _receive(self._connection)
        except BlockingIOError:
            return None
        except OSError:
            return False
        for one in descriptors:  # of the answer to Inhibit: nothing else has any
            self.release()
            self._lock = one
        self._received += data
        if not data:
            return False
        prepares = False
        try:
            while (message := self._next_message()) is not None:
                state = _prepares_for_sleep(message)
                prepares |= state is True
                if state is False:
                    self._inhibit()
        except (OSError, ValueError):
            return False
        return True if prepares else None

    def release(self) -> None:
        """Let the machine be suspended. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        """Leave the bus. Idempotent."""
        self.release()
        self._connection.close()

    def _inhibit(self) -> None:
        words = ("sleep", "sfsc", "the agent forgets its key", "delay")
        self._call(_LOGIND, _LOGIND_PATH, _MANAGER, "Inhibit", *words)

    def _call(self, destination: str, path: str, interface: str, member: str, *words: str) -> None:
        """Send a call whose arguments are texts. Raises `OSError`."""
        self._serial += 1
        fields = b""
        for code, kind, text in (
            (_PATH, b"o", path),
            (_INTERFACE, b"s", interface),
            (_MEMBER, b"s", member),
            (_DESTINATION, b"s", destination),
        ):
            fields += bytes(-len(fields) % 8) + _field(code, kind, text)
        if words:
            signature = b"s" * len(words)
            head = bytes((_SIGNATURE, 1)) + b"g\0" + bytes((len(words),))
            fields += bytes(-len(fields) % 8) + head + signature + b"\0"
        body = b""
        for word in words:
            body += bytes(-len(body) % 4) + _text(word)
        start = _HEADER.pack(b"l", _CALL, _NO_AUTO_START, 1, len(body), self._serial)
        fields = struct.pack("<I", len(fields)) + fields
        message = start + fields
        self._connection.sendall(message + bytes(-len(message) % 8) + body)

    def _next_message(self) -> bytes | None:
        """Return the next whole message; None if it is not there yet. Raises ValueError for one
        that is too long."""
        if len(self._received) < 16:
            return None
        order = "<" if self._received[:1] == b"l" else ">"
        body, _, fields = struct.unpack_from(f"{order}III", self._received, 4)
        size = 16 + fields + -fields % 8 + body
        if size > _MAX_MESSAGE:
            raise ValueError("a message that is too long")
        if len(self._received) < size:
            return None
        message = bytes(self._received[:size])
        del self._received[:size]
        return message


if sys.platform == "win32":

    def _receive(_connection: socket.socket) -> tuple[bytes, list[int]]:
        raise OSError("no descriptors are passed here")

else:

    def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
        """Return received bytes and the descriptors that came with them. Raises `OSError`."""
        data, descriptors, *_ = socket.recv_fds(connection, 16 * 1024, 4)
        return data, descriptors


def _prepares_for_sleep(message: bytes) -> bool | None:
    """Return the value of the signal PrepareForSleep; None for any other message. Only messages
    that the match rule admits, or that somebody sends us directly, have it: both mean at most that
    a key is forgotten."""
    order = "<" if message[:1] == b"l" else ">"
    member = b"PrepareForSleep"
    head = bytes((_MEMBER, 1)) + b"s\0" + struct.pack(f"{order}I", len(member))
    if message[1] != _SIGNAL or head + member + b"\0" not in message:
        return None
    return any(message[-4:])


def _field(code: int, kind: bytes, text: str) -> bytes:
    return bytes((code, 1)) + kind + b"\0" + _text(text)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _authenticate(connection: socket.socket) -> None:
    """Log in as this process's user, and agree on passing descriptors. Raises ValueError if the bus
    refuses, and `OSError`."""
    user = str(own_uid()).encode().hex().encode()
    connection.sendall(b"\0AUTH EXTERNAL " + user + b"\r\n")
    _expect(connection, b"OK")
    connection.sendall(b"NEGOTIATE_UNIX_FD\r\n")
    _expect(connection, b"AGREE_UNIX_FD")
    connection.sendall(b"BEGIN\r\n")


def _expect(connection: socket.socket, word: bytes) -> None:
    line = b""
    while not line.endswith(b"\r\n"):
        data = connection.recv(1)
        if not data or len(line) > _MAX_LINE:
            raise ValueError("the bus ended the greeting")
        line += data
    if line.split()[0] != word:
        raise ValueError("the bus refused the greeting")
