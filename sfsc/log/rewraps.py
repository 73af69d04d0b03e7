"""The re-wraps of our own account in the server's log.

A wrap is random, but a server could take one, log nothing, and show it as stored. The entry of a
`Rewrap` names each wrap and each endorsed record by a hash, so everything that is shown as stored
can be looked up in the followed log, also what another device of the account has sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from protocol.codec.base64text import from_text
from protocol.log.auditlog import REWRAP, LogEntry
from protocol.wire.messages.rotation import LOGGED_HASH_SIZE
from sfsc.errors import BadReceipt
from sfsc.log.account_log import AccountLog
from sfsc.session.session import Session
from sfsc.trust.server_log import REPORT


class LoggedRewraps:
    """Looks up what the re-wraps by keys of these `generations` have stored, over one session."""

    def __init__(self, session: Session, generations: Iterable[int]) -> None:
        self._session = session
        self.generations: frozenset[int] = frozenset(generations)
        self._hashes: set[bytes] = set()
        self._last = -1  # seq of the newest entry in `_hashes`
        self._read_all = False

    def missing(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Return those of `hashes`, 16 bytes each, that no entry names which this session has
        followed up to the present end of the log. Raises as `Session.refresh_log`, and
        `BadReceipt` for a malformed entry."""
        left = self._missing(set(hashes))
        if left:
            self._session.refresh_log()  # what is shown may be newer than what was followed
            left = self._missing(left)
        return left

    def missing_anywhere(self, hashes: Iterable[bytes]) -> set[bytes]:
        """Like `missing`, but also read the account's older entries, which takes long: the rotation
        may have begun in another session."""
        left = self.missing(hashes)
        if left and not self._read_all:
            self._take(AccountLog(self._session).entries())
            self._read_all = True
            left -= self._hashes
        return left

    def _missing(self, hashes: set[bytes]) -> set[bytes]:
        if hashes:
            self._take(entry for entry in self._session.rewraps if entry.seq > self._last)
        return hashes - self._hashes

    def _take(self, entries: Iterable[LogEntry]) -> None:
        user = self._session.account.user
        for entry in entries:
            if (entry.op, entry.actor) != (REWRAP, user):
                continue
            if entry.detail.get("generation") in self.generations:
                self._hashes.update(rewrap_hashes(entry))
            self._last = max(self._last, entry.seq)


def rewrap_hashes(entry: LogEntry) -> Iterator[bytes]:
    """Yield the hashes that the entry of a re-wrap names, 16 bytes each, in the order of its items.
    Raises `BadReceipt` for a malformed entry."""
    items = entry.detail.get("items")
    try:
        packed = from_text(items) if isinstance(items, str) else b""
    except ValueError:
        packed = b""
    if not packed or len(packed) % LOGGED_HASH_SIZE:
        raise BadReceipt(f"entry {entry.seq} of the log is a malformed re-wrap", REPORT)
    for place in range(0, len(packed), LOGGED_HASH_SIZE):
        yield packed[place : place + LOGGED_HASH_SIZE]
