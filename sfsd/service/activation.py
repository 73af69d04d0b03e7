"""Listening sockets that the system passes to the daemon: sd_listen_fds(3), without a library."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from sfsd.errors import ConfigError

_FIRST: Final = 3
_MOST: Final = 64
_HINT: Final = "a .socket unit has ListenStream=HOST:PORT, and Accept=no"


def inherited_sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the listening TCP sockets that were passed to this process, [] if there are none.

    The variables are removed from `environment`: children have none of the sockets. Variables for
    another process (LISTEN_PID) are ignored. Raises `ConfigError` if a descriptor is something
    else.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if not count or pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit() and int(count) <= _MOST):
        raise ConfigError("LISTEN_FDS is not a number of sockets", _HINT)
    return [_listening_socket(number) for number in range(_FIRST, _FIRST + int(count))]


def _listening_socket(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        found = socket.socket(fileno=number)
    except OSError as exc:
        raise ConfigError(f"descriptor {number} that was passed is not a socket", _HINT) from exc
    if (
        found.family not in (socket.AF_INET, socket.AF_INET6)
        or found.type != socket.SOCK_STREAM
        or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        raise ConfigError(f"descriptor {number} that was passed does not listen for TCP", _HINT)
    return found
