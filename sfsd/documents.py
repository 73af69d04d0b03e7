"""The JSON files of the store, read as what the log says they are.

Each states the `seq` of the entry that last wrote it, and that entry's `detail.paths` what its
bytes must be. Parsed files are cached under their digest: what was verified once is not parsed
again, and a cache that is asked for the digest of the bytes on the disk cannot be out of date.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from protocol.values import Value
from sfsd.errors import Absent, DamagedError, JournalDamagedError, JournalRangeError
from sfsd.journal import Journal
from sfsd.layout import (
    Account,
    Sidecar,
    StoredStatement,
    account_path,
    parse_account,
    parse_sidecar,
    parse_statements,
    statements_path,
)
from sfsd.store import DirectoryStore

CACHED = 16 * 1024
"""Parsed files kept in memory; a sidecar of one reader takes about 4 KiB."""

Parsed = TypeVar("Parsed")
_Any = TypeVar("_Any")


class Document(Value, Generic[Parsed]):
    """A parsed file and the digest of its bytes, which a change that relies on it expects."""

    path: str
    digest: bytes
    value: Parsed


class WrittenSidecar:
    """A sidecar on its way to `path`; knows its bytes' digest once they were made."""

    def __init__(self, path: str, sidecar: Sidecar) -> None:
        self.path = path
        self.encoded: tuple[bytes, Sidecar] | None = None
        self._sidecar = sidecar

    def encode(self, seq: int) -> bytes:
        """The bytes, as entry `seq` writes them."""
        value = replace(self._sidecar, seq=seq)
        raw = value.encode(seq)
        self.encoded = hashlib.sha256(raw).digest(), value
        return raw


class Documents:
    """Reads and remembers. Safe on several threads."""

    def __init__(self, store: DirectoryStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._cache: OrderedDict[tuple[str, bytes], Any] = OrderedDict()
        self._lock = threading.Lock()

    def sidecar(self, path: str) -> Document[Sidecar]:
        """Raises `Absent`, or `DamagedError` where the bytes are not what the log says."""
        return self._load(path, parse_sidecar, _sidecar_seq)

    def wrote(self, sidecar: WrittenSidecar) -> None:
        """It was published: who reads the file, and finds these very bytes, need not parse them."""
        if sidecar.encoded is not None:
            digest, value = sidecar.encoded
            self._keep((sidecar.path, digest), value)

    def account(self, user: str) -> Document[Account] | None:
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
        digest = self._store.hash_of(path)
        if digest is None:
            return None
        with self._lock:
            found = self._cache.get((path, digest))
            if found is not None:
                self._cache.move_to_end((path, digest))
                return Document(path, digest, cast(_Any, found))
        try:
            return self._load(path, parse, seq_of)
        except Absent:
            return None

    def _load(
        self, path: str, parse: Callable[[str, bytes], _Any], seq_of: Callable[[_Any], int]
    ) -> Document[_Any]:
        raw = self._store.read(path)
        key = (path, hashlib.sha256(raw).digest())
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return Document(path, key[1], cast(_Any, self._cache[key]))
        value = parse(path, raw)
        self._verify(path, key[1], seq_of(value))
        self._keep(key, value)
        return Document(path, key[1], value)

    def _keep(self, key: tuple[str, bytes], value: object) -> None:
        with self._lock:
            self._cache[key] = value
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)

    def _verify(self, path: str, digest: bytes, seq: int) -> None:
        try:
            written = self._journal.entry(seq).paths.get(path)
        except (JournalRangeError, JournalDamagedError) as exc:
            raise DamagedError(f"entry {seq}, which it names, is not there", path=path) from exc
        if written != digest:
            raise DamagedError(f"not what entry {seq} wrote", path=path)


def _sidecar_seq(found: Sidecar) -> int:
    return found.seq


def _account_seq(found: Account) -> int:
    return found.seq


def _statements_seq(found: tuple[StoredStatement, ...]) -> int:
    return found[-1].seq
