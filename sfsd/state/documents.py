"""Verified cache of the store's JSON files.

Each file states the `seq` of the entry that last wrote it, and that entry's `detail.paths` has the
digest of its bytes. Parsed files are cached under their digest, so verified bytes are not parsed
again. The cache cannot be out of date, because it is asked for the digest of the bytes on the disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, TypeVar

from protocol.codec.values import Value, changed
from sfsd.errors import Absent, DamagedError, JournalDamagedError, JournalRangeError
from sfsd.log.journal import Journal
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

Parsed = TypeVar("Parsed")
_Any = TypeVar("_Any")


class Document(Value, Generic[Parsed]):
    """A parsed file and the digest of its bytes, which a dependent change expects."""

    path: str
    digest: bytes
    value: Parsed


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

    def _encode(self, seq: int) -> bytes:
        """Return the bytes as entry `seq` writes them."""
        self.value = changed(self.value, seq=seq)
        raw = self.value.encode(seq)
        self.encoded = _CachedFile(hashlib.sha256(raw).digest(), self.value, len(raw))
        return raw

    def _digest(self) -> bytes:
        if self.encoded is None:
            raise ValueError("not encoded yet")
        return self.encoded.digest


class Documents:
    """Reads, verifies and caches documents. Safe on several threads."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._cache: OrderedDict[str, _CachedFile] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        # Log lines do not change, and files are often requested in the order in which one entry
        # wrote many.
        self._paths = lru_cache(_CACHED_ENTRIES)(journal.paths)

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
        digest = self._store.cached_digest(path)
        found = None if digest is None else self._find(path, digest)
        if digest is None or found is None:
            return self.sidecar(path)
        return Document(path, digest, found.value)

    def remember(self, sidecar: SidecarWrite) -> None:
        """Cache a published sidecar, so that later readers of these bytes need not parse them."""
        if sidecar.encoded is not None:
            self._keep(sidecar.path, sidecar.encoded)

    def logged_file(self, owner: str, file_id: str) -> LoggedFile:
        """Return what the log has of a file; reads all of the log. Raises `DamagedError`."""
        return LoggedFile.read(self._journal, owner, file_id)

    def has(self, path: str, digest: bytes | None) -> bool:
        """Return whether the file `path` has this digest; None stands for no file."""
        return self._store.stored_digest(path) == digest

    def account(self, user: str) -> Document[StoredAccount] | None:
        """Return the account of `user`, None if the user was never invited. Raises as `sidecar`."""
        return self._load_or_none(account_path(user), parse_account)

    def statements(self, user: str) -> Document[tuple[StoredStatement, ...]] | None:
        """Return the identity chain of `user`, None before enrolment. Raises as `sidecar`."""
        return self._load_or_none(statements_path(user), parse_statements)

    def _load_or_none(
        self, path: str, parse: Callable[[str, bytes], _Any]
    ) -> Document[_Any] | None:
        # The store knows the digest of what it wrote: users are looked up at every request, and
        # their files are read once.
        digest = self._store.stored_digest(path)
        if digest is None:
            return None
        found = self._find(path, digest)
        if found is not None:
            return Document(path, digest, found.value)
        try:
            (document,) = self._load_all([path], parse)
        except Absent:
            return None
        return document

    def _load_all(
        self, paths: Sequence[str], parse: Callable[[str, bytes], _Any]
    ) -> list[Document[_Any]]:
        loaded: list[tuple[str, _CachedFile]] = []
        fresh: list[tuple[str, _CachedFile]] = []
        for path, (raw, digest) in [(path, self._store.read_with_digest(path)) for path in paths]:
            found = self._find(path, digest)
            if found is None:
                found = _CachedFile(digest, parse(path, raw), len(raw))
                fresh.append((path, found))
            loaded.append((path, found))
        for path, found in fresh:
            value = found.value  # the last statement of a chain, or an account or sidecar
            seq = value[-1].seq if isinstance(value, tuple) else value.seq
            self._verify(path, found.digest, seq)
            self._keep(path, found)
        return [Document(path, found.digest, found.value) for path, found in loaded]

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

    def _verify(self, path: str, digest: bytes, seq: int) -> None:
        try:
            written = self._paths(seq).get(path)
        except (JournalRangeError, JournalDamagedError) as exc:
            raise DamagedError(f"it names entry {seq}, which is missing", path=path) from exc
        if written != digest:
            raise DamagedError(f"it differs from what entry {seq} wrote", path=path)
