"""The JSON files of the store, read as what the log says they are.

Each states the `seq` of the entry that last wrote it, and that entry's `detail.paths` what its
bytes must be. Parsed files are cached under their digest: what was verified once is not parsed
again, and a cache that is asked for the digest of the bytes on the disk cannot be out of date.
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
from sfsd.storage.paths import account_path, statements_path
from sfsd.storage.store import DirectoryStore

CACHED_BYTES = 40 << 20
"""Of the files that are kept parsed in memory; one of a single reader is 3 KiB, and takes about
twice that."""
_CACHED_ENTRIES = 32
"""Of the log, as far as they say what files are; one may be of 256 sidecars, written together."""

Parsed = TypeVar("Parsed")
_Any = TypeVar("_Any")


class Document(Value, Generic[Parsed]):
    """A parsed file and the digest of its bytes, which a change that relies on it expects."""

    path: str
    digest: bytes
    value: Parsed


class _CachedFile(Value):
    """A parsed file, the digest of its bytes, and how many they are."""

    digest: bytes
    value: Any
    size: int


class SidecarWrite:
    """A sidecar on its way to `path`; `value` is what stands there once its bytes were made."""

    def __init__(self, path: str, sidecar: Sidecar) -> None:
        self.path = path
        self.value = sidecar
        self.encoded: _CachedFile | None = None

    @property
    def effect(self) -> Write:
        """What puts it there."""
        return Write(self.path, self._encode, self._digest)

    def _encode(self, seq: int) -> bytes:
        """The bytes, as entry `seq` writes them."""
        self.value = changed(self.value, seq=seq)
        raw = self.value.encode(seq)
        self.encoded = _CachedFile(hashlib.sha256(raw).digest(), self.value, len(raw))
        return raw

    def _digest(self) -> bytes:
        if self.encoded is None:
            raise ValueError("its bytes were not made yet")
        return self.encoded.digest


class Documents:
    """Reads and remembers. Safe on several threads."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._cache: OrderedDict[str, _CachedFile] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        # Lines of the log do not change, and those who ask for files ask in the order in which
        # many were written with one entry.
        self._paths = lru_cache(_CACHED_ENTRIES)(journal.paths)

    def sidecar(self, path: str) -> Document[Sidecar]:
        """Raises `Absent`, or `DamagedError` where the bytes are not what the log says."""
        (found,) = self.sidecars([path])
        return found

    def sidecars(self, paths: Sequence[str]) -> list[Document[Sidecar]]:
        """Each as `sidecar` gives it. Each step is taken for all before the next: of many small
        things that takes three quarters of the time. Raises as `sidecar`."""
        return self._load_all(paths, parse_sidecar_lenient, _sidecar_seq)

    def cached_sidecar(self, path: str) -> Document[Sidecar]:
        """As `sidecar`, but one that was verified or written here is not read from the disk again.

        For who replaces it, or asks whether all were replaced: what the committer compares with is
        the digest that the store knows, and this is what has it.
        """
        digest = self._store.cached_digest(path)
        found = None if digest is None else self._find(path, digest)
        if digest is None or found is None:
            return self.sidecar(path)
        return Document(path, digest, found.value)

    def remember(self, sidecar: SidecarWrite) -> None:
        """It was published: who reads the file, and finds these very bytes, need not parse them."""
        if sidecar.encoded is not None:
            self._keep(sidecar.path, sidecar.encoded)

    def has(self, path: str, digest: bytes | None) -> bool:
        """Whether the file at `path` is the one of this digest; None stands for no file."""
        return self._store.stored_digest(path) == digest

    def account(self, user: str) -> Document[StoredAccount] | None:
        """The account of `user`, None where no such user was ever invited. Raises as `sidecar`."""
        return self._load_or_none(account_path(user), parse_account, _account_seq)

    def statements(self, user: str) -> Document[tuple[StoredStatement, ...]] | None:
        """The identity chain of `user`, None before enrolment. Raises as `sidecar`."""
        return self._load_or_none(statements_path(user), parse_statements, _statements_seq)

    def _load_or_none(
        self, path: str, parse: Callable[[str, bytes], _Any], seq_of: Callable[[_Any], int]
    ) -> Document[_Any] | None:
        # The store knows the digest of what it wrote: users are asked for at every request, and
        # their files are read once.
        digest = self._store.stored_digest(path)
        if digest is None:
            return None
        found = self._find(path, digest)
        if found is not None:
            return Document(path, digest, found.value)
        try:
            (document,) = self._load_all([path], parse, seq_of)
        except Absent:
            return None
        return document

    def _load_all(
        self,
        paths: Sequence[str],
        parse: Callable[[str, bytes], _Any],
        seq_of: Callable[[_Any], int],
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
            self._verify(path, found.digest, seq_of(found.value))
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
        """In the place of what the file was before: who has read that has it."""
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
            raise DamagedError(f"entry {seq}, which it names, is not there", path=path) from exc
        if written != digest:
            raise DamagedError(f"not what entry {seq} wrote", path=path)


def _sidecar_seq(found: Sidecar) -> int:
    return found.seq


def _account_seq(found: StoredAccount) -> int:
    return found.seq


def _statements_seq(found: tuple[StoredStatement, ...]) -> int:
    return found[-1].seq
