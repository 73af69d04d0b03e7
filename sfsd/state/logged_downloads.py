"""Downloads that the log has of the present UTC day, so that a repeated one adds no entry.

A reader could otherwise fill the log, and with it the history that the owner has to follow, by
opening one file again and again. An entry counts for the key that opened the session, not for the
session: a new login changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog
from sfsd.errors import JournalDamagedError, Stale
from sfsd.log.journal import Journal
from sfsd.state.load_once import LoadOnce

KEPT: Final = 128 * 1024
"""Downloads of one day that are kept, about 150 bytes each; the least recently opened are logged
again. A reader needs as many other versions, each with an entry, to repeat one entry."""
_SCANNED: Final = 1024 * 1024
"""Most entries, the newest ones, that are read after a start."""
_CHUNK: Final = 4096
"""Entries between those whose time is looked at."""
_MARK: Final = b'"op":"download"'
_KEY: Final = "key"
"""Member of the entry's detail that has the id of the session's key, 64 hex digits."""


class Download(Value):
    """A version that a session opens, with the key that opened the session: `key` is its id in
    hex."""

    key: str
    owner: str
    file_id: str
    version: int

    @property
    def detail(self) -> dict[str, object]:
        """Return the detail of the log entry."""
        return {_KEY: self.key}

    @property
    def digest(self) -> bytes:
        """16 bytes that identify the download of a day."""
        text = f"{self.key}\0{self.owner}\0{self.file_id}\0{self.version}"
        return hashlib.sha256(text.encode()).digest()[:16]


class LoggedDownloads(LoadOnce):
    """The downloads in the log of the present day. Safe on several threads."""

    def __init__(self, journal: Journal, clock: Callable[[], float]) -> None:
        """`clock` returns Unix seconds."""
        super().__init__()
        self._journal = journal
        self._clock = clock
        self._day = ""
        self._logged: OrderedDict[bytes, None] = OrderedDict()
        self._pending: set[bytes] = set()

    def has(self, download: Download) -> bool:
        """Return whether the log has this download of today. Reads the log once after a start.
        Raises `JournalError`."""
        self._load(self._read, self._enter)
        digest = download.digest
        with self._lock:
            self._turn()
            if digest not in self._logged:
                return False
            self._logged.move_to_end(digest)
            return True

    def claim(self, download: Download) -> DownloadClaim:
        """Return the claim of a change that logs this download."""
        return DownloadClaim(self, download.digest)

    def acquire(self, digest: bytes) -> None:
        """Raise `Stale` if the download is logged, or about to be: then decide again."""
        with self._lock:
            self._turn()
            if digest in self._logged or digest in self._pending:
                raise Stale(())
            self._pending.add(digest)

    def release(self, digest: bytes) -> None:
        """Undo `acquire` for an entry that was not logged."""
        with self._lock:
            self._pending.discard(digest)

    def note(self, digest: bytes) -> None:
        """Record that the entry is durable."""
        with self._lock:
            self._pending.discard(digest)
            self._turn()
            self._add(digest)

    def _add(self, digest: bytes) -> None:
        self._logged[digest] = None
        self._logged.move_to_end(digest)
        if len(self._logged) > KEPT:
            self._logged.popitem(last=False)

    def _turn(self) -> None:
        """Forget the downloads of an earlier day."""
        if (day := self._today()) != self._day:
            self._day = day
            self._logged.clear()

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()

    def _read(self) -> list[bytes]:
        """Return the digests of today's downloads in the log, oldest first, as many as are kept."""
        today, end = self._today(), self._journal.size
        oldest = max(0, end - _SCANNED)
        found: list[list[bytes]] = []
        while end > oldest and sum(map(len, found)) < KEPT:
            start = max(oldest, end - _CHUNK)
            first, chunk = self._read_chunk(start, end, today)
            found.append(chunk)
            if first < today:
                break
            end = start
        return [digest for chunk in reversed(found) for digest in chunk]

    def _read_chunk(self, start: int, end: int, today: str) -> tuple[str, list[bytes]]:
        """Return the day of entry `start`, and the digests of today's downloads up to `end`."""
        first, found = self._journal.entry(start).time[: len(today)], list[bytes]()
        for seq, line in enumerate(self._journal.lines(start, end), start):
            if _MARK not in line:
                continue
            try:
                entry = auditlog.parse(line, seq=seq)
            except LogError as exc:
                raise JournalDamagedError.from_log_error(exc) from exc
            key = entry.detail.get(_KEY)
            if (
                entry.op == "download"
                and entry.time.startswith(today)
                and isinstance(key, str)
                and entry.owner is not None
                and entry.file is not None
                and entry.version is not None
            ):
                found.append(Download(key, entry.owner, entry.file, entry.version).digest)
        return first, found

    def _enter(self, found: list[bytes]) -> None:
        self._turn()
        before, self._logged = self._logged, OrderedDict()
        for digest in (*found, *before):
            self._add(digest)


class DownloadClaim:
    """Keeps two requests of one group from logging the same download."""

    def __init__(self, downloads: LoggedDownloads, digest: bytes) -> None:
        self._downloads = downloads
        self._digest = digest

    def acquire(self) -> None:
        """Raise `Stale` if the download is logged, or about to be."""
        self._downloads.acquire(self._digest)

    def release(self) -> None:
        """Undo `acquire`."""
        self._downloads.release(self._digest)

    def note(self, _seq: int) -> None:
        """Record that the entry is durable."""
        self._downloads.note(self._digest)
