"""Downloads that the log has of the present UTC day, so that a repeated one adds no entry.

A reader could otherwise fill the log, and with it the history that the owner has to follow, by
opening one file again and again. An entry counts for the key that opened the session, not for the
session: a new login changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Final

from protocol.codec.errors import LogError
from protocol.codec.values import Value, changed
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


class Downloads(Value):
    """Versions of files of `owner` that a session opens: (file_id, version) each. `key` is the id
    of the key that opened the session, in hex."""

    key: str
    owner: str
    versions: tuple[tuple[str, int], ...]

    @property
    def detail(self) -> dict[str, object]:
        """Return the detail of the log entry."""
        return {_KEY: self.key, auditlog.ITEMS: [list(one) for one in self.versions]}

    @property
    def digests(self) -> tuple[bytes, ...]:
        """16 bytes for each version, which identify its download of a day."""
        prefix = f"{self.key}\0{self.owner}\0"
        texts = [f"{prefix}{file_id}\0{version}".encode() for file_id, version in self.versions]
        return tuple([hashlib.sha256(text).digest()[:16] for text in texts])


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

    def unlogged(self, downloads: Downloads) -> Downloads:
        """Return those that the log does not have of today. Reads the log once after a start.
        Raises `JournalError`."""
        self._load(self._read, self._enter)
        left = list[tuple[str, int]]()
        with self._lock:
            self._turn()
            for version, digest in zip(downloads.versions, downloads.digests, strict=True):
                if digest in self._logged:
                    self._logged.move_to_end(digest)
                else:
                    left.append(version)
        return changed(downloads, versions=tuple(left))

    def claim(self, downloads: Downloads) -> DownloadClaim:
        """Return the claim of a change that logs these downloads."""
        return DownloadClaim(self, downloads.digests)

    def acquire(self, digests: Collection[bytes]) -> None:
        """Raise `Stale` if a download is logged, or about to be: then decide again."""
        with self._lock:
            self._turn()
            if not self._pending.isdisjoint(digests) or any(one in self._logged for one in digests):
                raise Stale(())
            self._pending.update(digests)

    def release(self, digests: Collection[bytes]) -> None:
        """Undo `acquire` for an entry that was not logged."""
        with self._lock:
            self._pending.difference_update(digests)

    def note(self, digests: Collection[bytes]) -> None:
        """Record that the entry is durable."""
        with self._lock:
            self._pending.difference_update(digests)
            self._turn()
            for digest in digests:
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
                entry.op == auditlog.DOWNLOAD
                and entry.time.startswith(today)
                and isinstance(key, str)
                and entry.owner is not None
            ):
                versions = [(file_id, version or 0) for file_id, version in entry.versions]
                found += Downloads(key, entry.owner, tuple(versions)).digests
        return first, found

    def _enter(self, found: list[bytes]) -> None:
        self._turn()
        before, self._logged = self._logged, OrderedDict()
        for digest in (*found, *before):
            self._add(digest)


class DownloadClaim:
    """Keeps two requests of one group from logging the same download."""

    def __init__(self, downloads: LoggedDownloads, digests: tuple[bytes, ...]) -> None:
        self._downloads = downloads
        self._digests = digests

    def acquire(self) -> None:
        """Raise `Stale` if a download is logged, or about to be."""
        self._downloads.acquire(self._digests)

    def release(self) -> None:
        """Undo `acquire`."""
        self._downloads.release(self._digests)

    def note(self, _seq: int) -> None:
        """Record that the entry is durable."""
        self._downloads.note(self._digests)
