"""When each user last opened a session, from the log.

The log is read when somebody asks, and then only what is new in it: an operator asks seldom, and a
login costs nothing more.
"""

from __future__ import annotations

import re
import threading
from datetime import datetime
from typing import Final

from sfsd.log.journal import Journal

_LOGIN: Final = re.compile(
    rb'\{"v":2,"seq":\d{1,16},"time":"([^"]{24})","op":"(?:login|enrol)","actor":"([^"]{1,32})"'
)
"""The begin of a line of the log that tells of a session."""


class LastLogins:
    """The time of each user's last login. Safe on several threads."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._size = 0
        self._times: dict[str, bytes] = {}

    def of(self, user: str) -> int:
        """Return the time in unix seconds, by the server's clock; 0 if there was no login. Raises
        `JournalError` if the log cannot be read."""
        with self._lock:
            size = self._journal.size
            for line in self._journal.lines(self._size, size):
                if (found := _LOGIN.match(line)) is not None:
                    self._times[found[2].decode()] = found[1]
            self._size = size
            time = self._times.get(user)
        return 0 if time is None else int(datetime.fromisoformat(time.decode()).timestamp())
