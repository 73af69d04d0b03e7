"""Tells systemd the state of the daemon: sd_notify(3), without a library.

A service of ``Type=notify`` says when it is ready, reloads and stops, and shows a line of status.
With ``WatchdogSec=`` it must also show that it lives, else systemd kills and restarts it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import MutableMapping
from typing import Final

_MAX_STATUS: Final = 400
_log = logging.getLogger(__name__)


class Notifier:
    """Sends states to the socket that NOTIFY_SOCKET names; without one it does nothing.

    `watchdog_seconds` is how long the service may be silent, None without a watchdog. The variables
    are removed from `environment`: they are for this process only. A state that cannot be sent is
    lost, which is said once: the daemon must serve without its supervisor too.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        watched = environment.pop("WATCHDOG_PID", str(os.getpid()))
        self._socket: socket.socket | None = None
        self._address = ""
        self._failed = False
        self._status = ""
        self.watchdog_seconds: float | None = None
        if sys.platform != "win32" and address[:1] in ("/", "@"):
            self._address = f"\0{address[1:]}" if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        if microseconds.isascii() and microseconds.isdigit() and watched == str(os.getpid()):
            self.watchdog_seconds = int(microseconds) / 1e6 or None

    def ready(self) -> None:
        """Say that the daemon serves, after its start or after a reload."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show `text` in the status of the service, if it has changed."""
        text = text.replace("\n", " ")[:_MAX_STATUS]
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """Say that the daemon reads its settings again; `ready` ends that."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the daemon has begun to stop."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say that the daemon lives, if it is asked to."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; nothing is sent any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, state: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(state.encode(errors="replace"), self._address)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                _log.warning("the service manager cannot be notified: %s", exc.strerror)
            self._failed = True
