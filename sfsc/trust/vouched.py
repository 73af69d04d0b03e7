"""Rows of the client's state that decide what a server may show, authenticated as a whole.

The state file is not encrypted as a whole, and somebody else may have been at the home folder. So
what decides, and not merely speeds things up, is kept here: the followed part of the log, the
newest record of each file, the identity statements of contacts, distrust. One seal under the
keyring's key covers all of it. Rows taken from another day's file, removed or added do not match
it: then all of them count as absent, and the client follows the log from its beginning.

The seal covers `_BUCKETS` sums. The sum of a bucket is the sum, modulo 2^128, of HMAC-SHA256(key,
row)[:16] of its rows: it changes with a row at the cost of that row, and a single row is checked by
reading its bucket only. Without the key these HMACs are unknown, so no other set of rows with the
same sum can be found. The sums are encrypted (AES-256-GCM): their differences on several days would
be the HMACs of single rows. Somebody can still restore the whole file of one day; then the client
follows the log from there.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

from sfsc.crypto.primitives import open_sealed, seal
from sfsc.errors import Tampered
from sfsc.library_log import log_warning

_BUCKETS: Final = 256
_TOGETHER: Final = 256
"""Rows found by one query: the number of a query's values is limited."""
_FIND: Final = """
WITH wanted (bucket, key) AS (VALUES ())
SELECT vouched.key, value FROM wanted CROSS JOIN vouched
ON vouched.bucket = wanted.bucket AND kind = ? AND vouched.key = wanted.key
"""
_SUM_SIZE: Final = 16
_MODULUS: Final = 1 << 8 * _SUM_SIZE
TABLE: Final = """
CREATE TABLE vouched (
    bucket INTEGER NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (bucket, kind, key)
) WITHOUT ROWID;
"""
_SUMS: Final = "vouched-sums"
Row = tuple[str, str, bytes]
"""(kind, key, value); the kind tells apart what is stored, the key is unique within it."""


class Database(Protocol):
    """The SQLite file with the rows: `sfsc.trust.database.StateDatabase`."""

    @property
    def path(self) -> Path: ...

    @property
    def is_current(self) -> bool: ...

    def data_version(self) -> int: ...

    def transaction(self) -> AbstractContextManager[None]: ...

    def execute(
        self, statement: str, values: tuple[int | str | bytes | None, ...] = ()
    ) -> None: ...

    def execute_many(
        self, statement: str, rows: Sequence[tuple[int | str | bytes | None, ...]]
    ) -> None: ...

    def fetch_row(
        self, query: str, values: tuple[int | str | bytes, ...] = ()
    ) -> tuple[Any, ...] | None: ...

    def fetch_rows(
        self, query: str, values: tuple[int | str | bytes, ...] = ()
    ) -> list[tuple[Any, ...]]: ...

    def meta_value(self, key: str) -> bytes | None: ...

    def set_meta(self, key: str, value: bytes) -> None: ...


class VouchedRows:
    """The rows of one open state. Every method may raise `LocalError`. Reading returns nothing that
    the seal does not cover. Changes are part of the database's transaction."""

    def __init__(self, database: Database, account: bytes, key: bytes) -> None:
        """`account` names server and user; `key` has 32 bytes."""
        self._database = database
        self._account = account
        self._key = key
        self._sums: list[int] | None = None
        self._checked: set[int] = set()
        self._version = -1

    def get(self, kind: str, key: str) -> bytes | None:
        """Return the value of one row."""
        return self.get_many(kind, (key,)).get(key)

    def get_many(self, kind: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that have a row."""
        with self._database.transaction():
            buckets = {key: _bucket(kind, key) for key in keys}
            if self._check(set(buckets.values())) is None:
                return {}
            return self._find(kind, buckets)

    def items(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Return an iterator over (key, value) of all rows of one kind, in no order."""
        return ((key, value) for one, key, value in self.all_rows() if one == kind)

    def all_rows(self) -> Iterator[Row]:
        """Return an iterator over all rows, in no order."""
        with self._database.transaction():
            self._checked.clear()  # all are read once, not the unknown ones twice
            rows = self._check(set(range(_BUCKETS))) or {}
        return (row for found in rows.values() for row in found)

    def put(self, kind: str, key: str, value: bytes) -> None:
        """Store one row."""
        self.put_many([(kind, key, value)])

    def put_many(
        self,
        rows: Iterable[Row],
        replaces: Callable[[str, bytes, bytes], bool] = lambda _kind, _before, _value: True,
    ) -> None:
        """Store rows, each in place of the one with its kind and key, if `replaces(kind, value
        before, value)` is true."""
        with self._database.transaction():
            values = {(_bucket(kind, key), kind, key): value for kind, key, value in rows}
            self._check({bucket for bucket, _, _ in values})
            if (sums := self._sums) is None:
                return  # another process has changed the key, and knows as much
            for kind in {kind for _, kind, _ in values}:
                buckets = {key: bucket for bucket, one, key in values if one == kind}
                for key, before in self._find(kind, buckets).items():
                    place = buckets[key], kind, key
                    if replaces(kind, before, values[place]):
                        sums[buckets[key]] -= self._digest(kind, key, before)
                    else:
                        del values[place]
            for (bucket, kind, key), value in values.items():
                sums[bucket] = (sums[bucket] + self._digest(kind, key, value)) % _MODULUS
            # In the order of the table, whose pages then are written one after the other.
            placed = sorted((*place, value) for place, value in values.items())
            self._database.execute_many(
                "INSERT OR REPLACE INTO vouched VALUES (?, ?, ?, ?)", placed
            )
            self._save(sums)

    def remove(self, kind: str) -> None:
        """Remove all rows of one kind."""
        with self._database.transaction():
            if self._check(set(range(_BUCKETS))) is None:
                return
            sums = list(self._sums or ())
            for key, value in list(self.items(kind)):
                bucket = _bucket(kind, key)
                sums[bucket] = (sums[bucket] - self._digest(kind, key, value)) % _MODULUS
            self._database.execute("DELETE FROM vouched WHERE kind = ?", (kind,))
            self._save(sums)

    def change_key(self, key: bytes) -> None:
        """Authenticate all rows under another key (32 bytes): those that the present key vouches
        for."""
        with self._database.transaction():
            self._check(set(range(_BUCKETS)))
            rows = self._database.fetch_rows("SELECT kind, key, value FROM vouched")
            self.use_key(key)
            sums = [0] * _BUCKETS
            for kind, name, value in rows:
                bucket = _bucket(kind, name)
                sums[bucket] = (sums[bucket] + self._digest(kind, name, value)) % _MODULUS
            self._save(sums)
            self._checked = set(range(_BUCKETS))

    def use_key(self, key: bytes) -> None:
        """Use the key under which another process of this machine has authenticated the rows."""
        self._key = key
        self.forget()

    def forget(self) -> None:
        """Read everything again: the transaction was undone."""
        self._sums = None
        self._checked.clear()

    def _check(self, buckets: set[int]) -> Mapping[int, list[Row]] | None:
        """Open the seal and verify these buckets' sums, unless that was done since the last change
        by another process. Return the rows that were read, by bucket. If the sums are wrong, remove
        all rows and return None."""
        version = self._database.data_version()
        if self._sums is None or version != self._version:
            self.forget()
            self._version = version
            sealed = self._database.meta_value(_SUMS) or b""
            try:
                stored = open_sealed(self._seal_key, sealed, self._account)
            except Tampered:
                if not self._database.is_current:
                    return None  # another process of this machine has changed the key
                self._discard(sealed)
                return None
            self._sums = [
                int.from_bytes(stored[at : at + _SUM_SIZE])
                for at in range(0, _BUCKETS * _SUM_SIZE, _SUM_SIZE)
            ]
        read = self._rows(buckets - self._checked)
        for bucket, rows in read.items():
            total = sum(self._digest(kind, key, value) for kind, key, value in rows) % _MODULUS
            if bucket not in range(_BUCKETS) or total != self._sums[bucket]:
                self._discard(b"changed")
                return None
            self._checked.add(bucket)
        return read

    def _rows(self, buckets: set[int]) -> Mapping[int, list[Row]]:
        found: dict[int, list[Row]] = {bucket: [] for bucket in buckets}
        if len(buckets) == _BUCKETS:
            query = "SELECT bucket, kind, key, value FROM vouched"
            for bucket, kind, key, value in self._database.fetch_rows(query):
                # A number that no bucket has is a change too.
                found.setdefault(bucket, []).append((kind, key, value))
            return found
        query = "SELECT kind, key, value FROM vouched WHERE bucket = ?"
        for bucket in buckets:
            found[bucket] = self._database.fetch_rows(query, (bucket,))
        return found

    def _find(self, kind: str, buckets: Mapping[str, int]) -> dict[str, bytes]:
        """Return the values of one kind that are stored, of the keys with these `buckets`."""
        found: dict[str, bytes] = {}
        places = iter(buckets.items())
        while some := list(islice(places, _TOGETHER)):
            query = _FIND.replace("()", ", ".join(["(?, ?)"] * len(some)))
            values = [value for key, bucket in some for value in (bucket, key)]
            found |= dict(self._database.fetch_rows(query, (*values, kind)))
        return found

    def _discard(self, stored: bytes) -> None:
        """Remove everything, and say so unless there was nothing."""
        empty = self._database.fetch_row("SELECT bucket FROM vouched LIMIT 1") is None
        self._database.execute("DELETE FROM vouched")
        self._save([0] * _BUCKETS)
        self._checked = set(range(_BUCKETS))
        if stored or not empty:
            log_warning(
                f"{self._database.path} is not used",
                "it was changed by something else than sfsc",
                "the server's log is followed from its beginning",
            )

    def _save(self, sums: list[int]) -> None:
        stored = b"".join([one.to_bytes(_SUM_SIZE) for one in sums])
        self._database.set_meta(_SUMS, seal(self._seal_key, stored, self._account))
        self._sums = sums
        self._version = self._database.data_version()

    @property
    def _seal_key(self) -> bytes:
        return hmac.digest(self._key, b"seal", "sha256")

    def _digest(self, kind: str, key: str, value: bytes) -> int:
        row = f"row\0{kind}\0{key}\0".encode() + value
        return int.from_bytes(hmac.digest(self._key, row, "sha256")[:_SUM_SIZE])


def _bucket(kind: str, key: str) -> int:
    return hashlib.sha256(f"{kind}\0{key}".encode()).digest()[0] % _BUCKETS
