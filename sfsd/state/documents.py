"""Verified cache of the store's JSON files.

A file is what the newest entry of its path left: `PathTable` has the digest of its bytes. An older
file that somebody put back is damaged, although an older entry did write it; so is a file that is
missing. Parsed files are cached under their digest, so verified bytes are not parsed again. The
cache cannot be out of date, because it is asked for the digest of the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from protocol.codec.values import Value, changed
from sfsd.errors import Absent, DamagedError, JournalDamagedError, JournalRangeError
from sfsd.log.journal import Journal
from sfsd.log.path_table import LatestEntry
from sfsd.storage.change import Write
from sfsd.storage.json_files import (
    Sidecar,
    StoredAccount,
    StoredStatement,
    parse_account,
    parse_sidecar_lenient,
    parse_statements,
)
from sfsd.storage.logged_file import LoggedFile
from sfsd.storage.paths import account_path, statements_path
from sfsd.storage.store import DirectoryStore

CACHED_BYTES = 40 << 20
"""Total bytes of the files kept parsed in memory. A sidecar with one reader has 3 KiB, and takes
about twice that."""
_CACHED_ENTRIES = 32
"""Log entries whose paths are kept; one may list 256 sidecars, written together."""

_log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed")
_Any = TypeVar("_Any")


class Document(Value, Generic[Parsed]):
    """A parsed file, the digest of its bytes, which a dependent change expects, and their
    number."""

    path: str
    digest: bytes
    value: Parsed
    size: int


class _CachedFile(Value):
    """A parsed file, the digest of its bytes, and their number."""

    digest: bytes
    value: Any
    size: int


class SidecarWrite:
    """A sidecar to be written to `path`; `value` is what was written, once it is encoded."""

    def __init__(self, path: str, sidecar: Sidecar) -> None:
        self.path = path
        self.value = sidecar
        self.encoded: _CachedFile | None = None

    @property
    def effect(self) -> Write:
        """The effect that writes the sidecar."""
        return Write(self.path, self._encode, self._digest)

    @property
    def size(self) -> int:
        """Bytes that were written."""
        return self._written.size

    def _encode(self, seq: int) -> bytes:
        """Return the bytes as entry `seq` writes them."""
        self.value = changed(self.value, seq=seq)
        raw = self.value.encode(seq)
        self.encoded = _CachedFile(hashlib.sha256(raw).digest(), self.value, len(raw))
        return raw

    def _digest(self) -> bytes:
        return self._written.digest

    @property
    def _written(self) -> _CachedFile:
        if self.encoded is None:
            raise ValueError("not encoded yet")
        return self.encoded


class Documents:
    """Reads, verifies and caches documents. Safe on several threads."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._cache: OrderedDict[str, _CachedFile] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._damaged: set[str] = set()
        # Log lines do not change, and files are often requested in the order in which one entry
        # wrote many.
        self._paths = lru_cache(_CACHED_ENTRIES)(journal.paths)

    def published_size(self) -> int:
        """Return how many log entries have their effects in the documents."""
        return self._journal.published_size

    def await_published(self, size: int) -> None:
        """Call `Journal.await_published`."""
        self._journal.await_published(size)

    def sidecar(self, path: str) -> Document[Sidecar]:
        """Return a sidecar. Raises `Absent`, or `DamagedError` if it differs from the log."""
        (found,) = self.sidecars([path])
        return found

    def sidecars(self, paths: Sequence[str]) -> list[Document[Sidecar]]:
        """Return many sidecars in input order. Raises as `sidecar`. Each step runs for all files
        before the next step: for many small files this takes three quarters of the time."""
        return self._load_all(paths, parse_sidecar_lenient)

    def cached_sidecar(self, path: str) -> Document[Sidecar]:
        """Return a sidecar without reading it again if it was verified or written here. Raises as
        `sidecar`. For a caller that replaces it, or checks whether all were replaced: the committer
        compares with the digest that the store knows, which is the digest of this document."""
        (found,) = self.cached_sidecars([path])
        return found

    def cached_sidecars(self, paths: Sequence[str]) -> list[Document[Sidecar]]:
        """Batch version of `cached_sidecar`; results in input order."""
        documents: list[Document[Sidecar]] = []
        for path, entry in zip(paths, self._journal.latest.get_many(paths), strict=True):
            digest = self._store.cached_digest(path)
            found = None if digest is None else self._find(path, digest)
            if digest is None or found is None or not self._is_newest(path, found, entry):
                documents.append(self.sidecar(path))
            else:
                documents.append(Document(path, digest, found.value, found.size))
        return documents

    def remember(self, sidecar: SidecarWrite) -> None:
        """Cache a published sidecar, so that later readers of these bytes need not parse them."""
        if sidecar.encoded is not None:
            self._keep(sidecar.path, sidecar.encoded)

    def logged_file(self, owner: str, file_id: str) -> LoggedFile:
        """Return what the log has of a file; reads all of the log. Raises `DamagedError`."""
        return LoggedFile.read(self._journal, owner, file_id)

    def has(self, path: str, digest: bytes | None) -> bool:
        """Return whether the file `path` has this digest, as the log says; None stands for no
        file."""
        if self._store.stored_digest(path) != digest:
            return False
        entry = self._journal.latest.get(path)
        return digest == (None if entry is None else entry.digest)

    def is_logged(self, path: str) -> bool:
        """Return whether the log says that there is such a file, as of the last published change.
        Raises `JournalError`."""
        return self._journal.latest.get(path) is not None

    def latest(self, path: str) -> LatestEntry | None:
        """Return the newest entry of a path, after a change of it that is being published. None if
        there must be no such file. Raises `JournalError`."""
        found = self._journal.latest.get(path)
        if found is None:
            with self._store.publishing_paused():
                found = self._journal.latest.get(path)
        return found

    def latest_below(self, folder: str) -> list[tuple[str, int]]:
        """Return (path, seq of its newest entry) of each file that the log says is in `folder`, a
        user's folder or one below it with its last slash. Raises `JournalError`."""
        return self._journal.latest.below(folder)

    def damaged_accounts(self) -> list[str]:
        """Return the users whose account.json or statements.json was found to be damaged."""
        with self._lock:
            return sorted({path.partition("/")[0] for path in self._damaged})

    def account(self, user: str) -> Document[StoredAccount] | None:
        """Return the account of `user`, None if the user was never invited. Raises as `sidecar`."""
        return self._load_or_none(account_path(user), parse_account)

    def statements(self, user: str) -> Document[tuple[StoredStatement, ...]] | None:
        """Return the identity chain of `user`, None before enrolment. Raises as `sidecar`."""
        return self._load_or_none(statements_path(user), parse_statements)

    def _load_or_none(
        self, path: str, parse: Callable[[str, bytes], _Any]
    ) -> Document[_Any] | None:
        try:
            found = self._find_or_load(path, parse)
        except DamagedError as exc:
            with self._lock:
                told = path in self._damaged
                self._damaged.add(path)
            if not told:
                _log.error("damaged account, which cannot be used: %s", exc.cause)
            raise
        if path in self._damaged:
            with self._lock:
                self._damaged.discard(path)
        return found

    def _find_or_load(
        self, path: str, parse: Callable[[str, bytes], _Any]
    ) -> Document[_Any] | None:
        # The store knows the digest of what it wrote: users are looked up at every request, and
        # their files are read once.
        digest = self._store.stored_digest(path)
        found = None if digest is None else self._find(path, digest)
        if digest is not None and found is not None:
            entry = self._journal.latest.get(path)
            if self._is_newest(path, found, entry):
                return Document(path, digest, found.value, found.size)
        try:
            (document,) = self._load_all([path], parse)
        except Absent:
            pass
        else:
            return document
        if self._journal.latest.get(path) is None:
            return None
        with self._store.publishing_paused():
            # Its change may have been published meanwhile.
            try:
                (document,) = self._load_all([path], parse)
            except Absent as exc:
                entry = self._journal.latest.get(path)
                if entry is None:
                    return None
                raise DamagedError(
                    f"entry {entry.seq} wrote it, but it is missing", path=path
                ) from exc
        return document

    def _load_all(
        self, paths: Sequence[str], parse: Callable[[str, bytes], _Any]
    ) -> list[Document[_Any]]:
        loaded: list[tuple[str, _CachedFile, bool]] = []
        for path, (raw, digest) in [(path, self._store.read_with_digest(path)) for path in paths]:
            found = self._find(path, digest)
            fresh = found is None
            if found is None:
                found = _CachedFile(digest, parse(path, raw), len(raw))
            loaded.append((path, found, fresh))
        documents: list[Document[_Any]] = []
        latest = self._journal.latest.get_many(paths)
        for (path, found, fresh), entry in zip(loaded, latest, strict=True):
            if not self._is_newest(path, found, entry):
                found, fresh = self._read_again(path, parse), True
            if fresh:
                self._keep(path, found)
            documents.append(Document(path, found.digest, found.value, found.size))
        return documents

    def _read_again(self, path: str, parse: Callable[[str, bytes], _Any]) -> _CachedFile:
        """Read a file that did not match the log, because a change of it was being published, or
        because it is damaged. Raises `DamagedError`, `Absent`."""
        with self._store.publishing_paused():
            raw, digest = self._store.read_with_digest(path)
            found = _CachedFile(digest, parse(path, raw), len(raw))
            entry = self._journal.latest.get(path)
            if self._is_newest(path, found, entry):
                return found
        if entry is None:
            raise DamagedError("the log has no such file any more", path=path)
        raise DamagedError(f"it differs from what entry {entry.seq} wrote", path=path)

    def _is_newest(self, path: str, found: _CachedFile, entry: LatestEntry | None) -> bool:
        """Return whether a file is what `entry`, the newest one of its path, left."""
        if entry is not None and entry.digest == found.digest:
            return True
        value = found.value  # the last statement of a chain, or an account or sidecar
        seq = value[-1].seq if isinstance(value, tuple) else value.seq
        if seq < self._journal.latest.size:
            return False
        try:  # its group is being published, or that failed and waits for a restart
            return self._paths(seq).get(path) == found.digest
        except (JournalRangeError, JournalDamagedError):
            return False

    def _find(self, path: str, digest: bytes) -> _CachedFile | None:
        with self._lock:
            found = self._cache.get(path)
            if found is None or found.digest != digest:
                return None
            self._cache.move_to_end(path)
            return found

    def _keep(self, path: str, kept: _CachedFile) -> None:
        """Cache the file in place of its previous content, which a caller may still hold."""
        with self._lock:
            before = self._cache.pop(path, None)
            self._held += kept.size - (0 if before is None else before.size)
            self._cache[path] = kept
            while self._held > CACHED_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._held -= dropped.size
