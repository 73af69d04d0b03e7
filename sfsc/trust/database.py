"""The SQLite file in which a client keeps what it remembers: opened, written to in short
transactions, and its errors translated. What is in it, `state` and `remembered` say.

Several processes may use one file: they wait for each other.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sfsc.closing import Closing
from sfsc.crypto.primitives import Sealer, verification_mac_key
from sfsc.errors import LocalError, Tampered

SCHEMA: Final = 3
BUSY_SECONDS: Final = 20.0

_TABLES: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE server_statement (
    n INTEGER PRIMARY KEY, statement BLOB NOT NULL, signature BLOB NOT NULL
);
CREATE TABLE checkpoint (
    one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, root BLOB NOT NULL,
    note BLOB NOT NULL
);
CREATE TABLE file (
    file_id TEXT PRIMARY KEY, rev INTEGER NOT NULL, hash BLOB NOT NULL, record BLOB NOT NULL,
    version INTEGER NOT NULL, entry BLOB
) WITHOUT ROWID;
"""
_OTHERS: Final = """
CREATE TABLE logged (file_id TEXT PRIMARY KEY, rev INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE statement (
    user TEXT NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (user, n)
) WITHOUT ROWID;
CREATE TABLE shared (
    owner TEXT NOT NULL, file_id TEXT NOT NULL, rev INTEGER NOT NULL, hash BLOB NOT NULL,
    entry BLOB, PRIMARY KEY (owner, file_id)
) WITHOUT ROWID;
"""
"""What the second version has more: the log followed, other people, their files."""
_VOUCHED: Final = "ALTER TABLE file ADD COLUMN vouched BLOB"
"""What the third has: whether a record's signature is known to be good."""
_PAGE: Final = 1024
"""Bytes of a page. A file's row is about as long: it would not go into one of SQLite's own 4,096,
of which a quarter is the longest row, and would take a second nearly for itself, to be written with
the first for every row that changes, as files are in no order."""
_MOVED: Final = 4 << 20
"""Bytes of what was written that are moved to their places, and synced, together."""
_VALUE: Final = "SELECT value FROM meta WHERE key = ?"
_KEY: Final = "key"
"""Kept under this name: nothing, sealed, which shows whether the key is still the same."""


class StateDatabase(Closing):
    """Build with `open`. Every method may raise `LocalError`. Not for several threads at once."""

    def __init__(self, path: Path, database: sqlite3.Connection, key: bytes) -> None:
        self._path = path
        self._translated = translate_errors(path)
        self._database = database
        self._key_check = b""
        self._set_key(key)

    @classmethod
    def open_database(cls, path: Path, account: bytes, key: bytes) -> Self:
        """The file of `account` (any bytes that name server and user) at `path`, made if needed.

        `key` (32 bytes) encrypts what is cached. Raises `LocalError`, also where the file belongs
        to another account or was written by a newer version.
        """
        with translate_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Made here and not by SQLite, which would take the mode from the umask; the files that
            # it puts beside this one take the mode from this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            opened = cls(path, database, key)
            try:
                opened._prepare(account)
            except BaseException:
                database.close()
                raise
        return opened

    def _prepare(self, account: bytes) -> None:
        # Of a new file only; another keeps what it was made with.
        self._database.execute(f"PRAGMA page_size = {_PAGE}")
        self._database.execute("PRAGMA journal_mode = WAL")
        (page,) = self._database.execute("PRAGMA page_size").fetchone()
        self._database.execute(f"PRAGMA wal_autocheckpoint = {_MOVED // page}")
        # A crash of this process loses nothing; a power cut may lose the last few memories, and
        # what is then remembered is only older, never wrong.
        self._database.execute("PRAGMA synchronous = NORMAL")
        with self._begin_immediate():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._create(_TABLES)
                self._database.execute("INSERT INTO meta VALUES ('account', ?)", (account,))
            if version in (0, 1):
                self._create(_OTHERS)
            if version in (0, 1, 2):
                self._create(_VOUCHED)
                self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise LocalError(
                    f"{self._path} has version {version}", "use the sfsc that wrote it, or a newer"
                )
        if self.meta_value("account") != account:
            raise LocalError(
                f"{self._path} belongs to another account",
                "use another --home, or move this file away",
            )
        with self._begin_immediate():
            if not self.adopt_current_key(self._key):
                self.replace_key(self._key)

    def adopt_current_key(self, key: bytes) -> bool:
        """Use this key if it is the one that things are kept under, as where another process of
        this machine has changed it; whether it is."""
        sealed = self.meta_value(_KEY)
        try:
            if sealed is None or Sealer(key).open(sealed, _KEY.encode()):
                return False
        except Tampered:
            return False
        self._set_key(key)
        self._key_check = sealed
        return True

    def check_current(self) -> None:
        """Raise `LocalError` unless it `is_current`."""
        if not self.is_current:
            raise LocalError(
                "another process has given this machine other keys", "run the command again"
            )

    @property
    def is_current(self) -> bool:
        """Whether things are kept under the key that is used here. Not so once another process of
        this machine has changed it: from then on none of them opens here, nor may one be added."""
        return self.meta_value(_KEY) == self._key_check

    def replace_key(self, key: bytes) -> None:
        """Go on with this key, and forget what is cached under another: a machine that gets a new
        one may be cut before its keyring has it. What files must be, stays."""
        self._set_key(key)
        if self.meta_value(_KEY) is not None:
            for table in ("file", "shared"):
                self.execute(f"UPDATE {table} SET entry = NULL", ())  # noqa: S608 - two names of ours
            self.execute("DELETE FROM meta WHERE key IN ('listed', 'received')", ())
        self._key_check = self.seal(b"", _KEY)
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, self._key_check))

    def _set_key(self, key: bytes) -> None:
        self._key = key
        self._sealer = Sealer(key)
        self._known_key = verification_mac_key(key)

    def _create(self, tables: str) -> None:
        for statement in tables.split(";"):
            self._database.execute(statement)

    def close(self) -> None:
        """Twice does no harm."""
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make several changes one transaction, all or none of which are kept."""
        with self._translated, self._begin_immediate():
            yield

    @contextlib.contextmanager
    def _begin_immediate(self) -> Iterator[None]:
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._roll_back()
            raise
        self._database.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._database.in_transaction:  # a full disk has ended it
            self._database.execute("ROLLBACK")

    def seal(self, plain: bytes, name: str) -> bytes:
        """Bytes to keep, encrypted under the keyring's key for what `name` is about."""
        return self._sealer.seal(plain, name.encode())

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """The inverse. Raises `LocalError`: the file was tampered with, or the key changed."""
        try:
            return self._sealer.open(sealed, name.encode())
        except Tampered as exc:
            self.check_current()
            raise LocalError(f"{self._path} does not open", _MOVE_AWAY) from exc

    def verification_mac(self, file_id: str, digest: bytes) -> bytes:
        """16 bytes that say that the signature of a record of the file is good, by the SHA-256 of
        the record; or the same of what else has a name. Nobody can make them who does not have the
        keyring's key."""
        return hmac.digest(self._known_key, file_id.encode() + digest, "sha256")[:16]

    def check_verification_mac(self, voucher: bytes | None, file_id: str, digest: bytes) -> bool:
        """Whether it is that `voucher`; None is nobody's."""
        return voucher is not None and hmac.compare_digest(
            voucher, self.verification_mac(file_id, digest)
        )

    def meta_number(self, key: str) -> int:
        """A number that only grows; 0 at first."""
        value = self.meta_value(key)
        return 0 if value is None else int.from_bytes(value, "big")

    def raise_meta_number(self, key: str, value: int) -> None:
        """Where it is more than is known. Raises as `check_current`: it is about what is cached."""
        with self.transaction():
            self.check_current()
            if value > self.meta_number(key):
                self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value.to_bytes(8)))

    def fetch_rows(self, query: str, values: tuple[str | bytes, ...] = ()) -> list[tuple[Any, ...]]:
        """Every row that a query finds."""
        with self._translated:
            return self._database.execute(query, values).fetchall()

    def execute(self, statement: str, values: tuple[int | str | bytes | None, ...]) -> None:
        """One statement that changes something."""
        with self._translated:
            self._database.execute(statement, values)

    def execute_many(
        self, statement: str, rows: Sequence[tuple[int | str | bytes | None, ...]]
    ) -> None:
        """One statement that changes something, for each of `rows`; in a transaction of its own,
        if in none."""
        with self._translated, self._begin_immediate():
            self._database.executemany(statement, rows)

    def fetch_row(self, query: str, values: tuple[str | bytes, ...] = ()) -> tuple[Any, ...] | None:
        """The first row that a query finds."""
        with self._translated:
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
            return row

    def meta_value(self, key: str) -> bytes | None:
        """One thing that is kept by its name, None for nothing."""
        # Not by `row`: it is asked for whatever is signed.
        with self._translated:
            row = self._database.execute(_VALUE, (key,)).fetchone()
        return None if row is None else bytes(row[0])


_MOVE_AWAY: Final = (
    "move it away and run the command again; the server's past is then taken on trust once"
)


class translate_errors:  # noqa: N801 - it is used as a function
    """A context: errors of SQLite and of the system that concern `path` come out as `LocalError`.

    A class, since a generator would cost as much as the query in it.
    """

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, sqlite3.OperationalError):
            raise LocalError(f"cannot use {self._path}: {error}") from error
        if isinstance(error, sqlite3.DatabaseError):
            raise LocalError(f"{self._path} is damaged: {error}", _MOVE_AWAY) from error
        if isinstance(error, OSError):
            raise LocalError(f"cannot use {self._path}: {error.strerror}") from error
