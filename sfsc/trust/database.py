"""SQLite file that holds a client's state: opening, short transactions, translated errors. The
contents are described in `state` and `peer_state`.

Several processes may use one file; they wait for each other.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Final, Self

from protocol.buffers.file_status import exists, file_status
from sfsc.closing import Closing
from sfsc.crypto.primitives import Sealer, verification_mac_key, vouched_rows_key
from sfsc.errors import LocalError, Tampered
from sfsc.trust import vouched
from sfsc.trust.vouched import VouchedRows

SCHEMA: Final = 6
BUSY_SECONDS: Final = 20.0

_TABLES: Final = (
    vouched.TABLE
    + """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE server_statement (
    n INTEGER PRIMARY KEY, statement BLOB NOT NULL, signature BLOB NOT NULL
);
CREATE TABLE file (
    file_id TEXT NOT NULL PRIMARY KEY, rev INTEGER NOT NULL, hash BLOB NOT NULL,
    record BLOB NOT NULL, version INTEGER NOT NULL, entry BLOB, vouched BLOB,
    deleted INTEGER NOT NULL DEFAULT 0, shown BLOB
);
CREATE TABLE statement (
    user TEXT NOT NULL, n INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (user, n)
) WITHOUT ROWID;
CREATE TABLE shared (
    owner TEXT NOT NULL, file_id TEXT NOT NULL, rev INTEGER NOT NULL, hash BLOB NOT NULL,
    entry BLOB, PRIMARY KEY (owner, file_id)
) WITHOUT ROWID
"""
)
"""New rows of `file` are appended, because it has a rowid; only its index is in the random order of
the file_ids. `file.vouched` is a MAC showing that the record's signature was found valid.
`file.shown` is the last entry of a file while it has none."""
_BYTES_OR_NONE: Final = (bytes, NoneType)
_COLUMNS: Final[dict[str, tuple[type, ...]]] = {
    **dict.fromkeys(("bucket", "n", "rev", "version", "deleted"), (int,)),
    **dict.fromkeys(("kind", "key", "file_id", "user", "owner"), (str,)),
    **dict.fromkeys(("value", "statement", "signature", "hash", "record", "body"), (bytes,)),
    **dict.fromkeys(("entry", "vouched", "shown"), _BYTES_OR_NONE),
}
"""Types of the columns by name. SQLite stores a value of any type in any column, and a file that
somebody else has edited may have lost the constraints too."""
_WAL_BYTES: Final = 4 << 20
"""Bytes of WAL that are moved into the database, and synced, together."""
_LARGEST: Final = 2**53
"""No log is larger, nor is a time in seconds: what is sent to a server has this limit."""
_VALUE: Final = "SELECT value FROM meta WHERE key = ?"
_KEY_ROW: Final = "key"
"""Row that holds an empty sealed message; it shows whether the key is still the same."""


class StateDatabase(Closing):
    """Open with `open_database`. Every method may raise `LocalError`. Not thread-safe."""

    def __init__(self, path: Path, database: sqlite3.Connection, key: bytes) -> None:
        self._path = path
        self._translated = translate_errors(path)
        self._database = database
        self.saved = True
        """Whether changes are written to the file. False for `open_copy`."""
        self._key_check = b""
        self._set_key(key)
        self.vouched: VouchedRows = VouchedRows(self, b"", vouched_rows_key(key))
        """The rows that decide; usable once the file was prepared."""

    @classmethod
    def open_database(cls, path: Path, account: bytes, key: bytes) -> Self:
        """Open the file of `account` (bytes that name server and user) at `path`, creating it if
        needed. `key` (32 bytes) encrypts cached data. Raises `LocalError`, also if the file belongs
        to another account or was written by a newer version."""
        with translate_errors(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Created here because SQLite takes the mode from the umask. Its WAL files then take
            # the mode of this file.
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

    @classmethod
    def open_for_reading(cls, path: Path, account: bytes, key: bytes) -> Self:
        """Open the existing file of `account` without writing to it, nor waiting for a process that
        does. Only methods that read may be called. Raises as `open_database`, also if there is no
        file, or if it is encrypted with another key than `key`."""
        with translate_errors(path):
            database = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.0, isolation_level=None
            )
            opened = cls(path, database, key)
            try:
                (version,) = database.execute("PRAGMA user_version").fetchone()
                opened._check_version(version)
                opened._check_account(account)
                if not opened.adopt_current_key(key):
                    raise LocalError(f"{path} is encrypted with another key", "run `sfsc ls`")
            except BaseException:
                database.close()
                raise
        return opened

    @classmethod
    def open_copy(cls, path: Path, account: bytes, key: bytes) -> Self:
        """Open a copy in memory of the file at `path`, which cannot be written; an empty one if
        there is no such file. What is changed is lost at the end. Raises as `open_database`, also
        if there is a file that cannot be read: what it knows is never left out."""
        with translate_errors(path):
            database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            opened = cls(path, database, key)
            opened.saved = False
            try:
                if exists(path):
                    _copy(path, database)
                opened._prepare(account)
            except BaseException:
                database.close()
                raise
        return opened

    def check_saved(self) -> None:
        """Raise `LocalError` if changes are not saved, for one that makes no sense otherwise."""
        if not self.saved:
            raise LocalError(f"cannot write {self._path}", _room_hint(self._path))

    def _prepare(self, account: bytes) -> None:
        """Configure SQLite, create the tables, and check the account and the key."""
        self._database.execute("PRAGMA journal_mode = WAL")
        (page,) = self._database.execute("PRAGMA page_size").fetchone()
        self._database.execute(f"PRAGMA wal_autocheckpoint = {_WAL_BYTES // page}")
        # A crash of this process loses nothing. A power cut may lose the last few changes; the
        # state is then older, never wrong.
        self._database.execute("PRAGMA synchronous = NORMAL")
        with self._begin_immediate():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _TABLES.split(";"):
                    self._database.execute(statement)
                self._database.execute("INSERT INTO meta VALUES ('account', ?)", (account,))
                self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            else:
                self._check_version(version)
        self._check_account(account)
        self.vouched = VouchedRows(self, account, vouched_rows_key(self._key))
        with self._begin_immediate():
            if not self.adopt_current_key(self._key):
                self.replace_key(self._key)

    def _check_version(self, version: int) -> None:
        if version != SCHEMA:
            raise LocalError(
                f"{self._path} has version {version}, not {SCHEMA}",
                "use the sfsc that wrote it, or move the file away",
            )

    def _check_account(self, account: bytes) -> None:
        if self.meta_value("account") != account:
            raise LocalError(
                f"{self._path} belongs to another account",
                "use another --home, or move this file away",
            )

    def adopt_current_key(self, key: bytes) -> bool:
        """Use `key` if the file is encrypted with it, as after another process of this machine has
        changed the key. Return whether it is."""
        sealed = self.meta_value(_KEY_ROW)
        try:
            if sealed is None or Sealer(key).open(sealed, _KEY_ROW.encode()):
                return False
        except Tampered:
            return False
        if key != self._key:
            self._set_key(key)
            self.vouched.use_key(vouched_rows_key(key))
        self._key_check = sealed
        return True

    def check_current(self) -> None:
        """Raise `LocalError` unless `is_current`."""
        if not self.is_current:
            raise LocalError("another process changed this machine's keys", "run the command again")

    @property
    def is_current(self) -> bool:
        """Whether the file is still encrypted with the key used here. False once another process of
        this machine has changed the key: cached data then does not open here, and none may be
        added."""
        return self.meta_value(_KEY_ROW) == self._key_check

    def replace_key(self, key: bytes) -> None:
        """Use another key, and delete what is cached under the old one. A machine that gets a new
        key may crash before its keyring holds it. What protects against rollback stays."""
        self._set_key(key)
        if self.meta_value(_KEY_ROW) is not None:
            self.execute("UPDATE file SET entry = NULL, shown = NULL")
            self.execute("UPDATE shared SET entry = NULL")
            self.execute("DELETE FROM meta WHERE key = 'received'")
        self._key_check = self.seal(b"", _KEY_ROW)
        self.set_meta(_KEY_ROW, self._key_check)

    def _set_key(self, key: bytes) -> None:
        self._key = key
        self._sealer = Sealer(key)
        self._known_key = verification_mac_key(key)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the changes of the block one transaction: all or none are kept."""
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
        self.vouched.forget()
        if self._database.in_transaction:  # False if a full disk has ended it
            self._database.execute("ROLLBACK")

    @property
    def path(self) -> Path:
        """The file, also of a copy in memory."""
        return self._path

    def data_version(self) -> int:
        """Return a number that changes if another connection has changed the file."""
        with self._translated:
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
        return int(version)

    def seal(self, plain: bytes, name: str) -> bytes:
        """Encrypt bytes to store, bound to `name`, the thing they describe."""
        return self._sealer.seal(plain, name.encode())

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """Decrypt the output of `seal`. Raises `LocalError` if the file was changed or the key
        replaced."""
        try:
            return self._sealer.open(sealed, name.encode())
        except Tampered as exc:
            self.check_current()
            raise LocalError(f"{self._path} does not decrypt", _MOVE_AWAY) from exc

    def verification_mac(self, file_id: str, digest: bytes) -> bytes:
        """Return 16 bytes stating that the signature of a record is valid; `digest` is the record's
        SHA-256. Other named data is marked the same way. Only a holder of the keyring's key can
        make the MAC."""
        return hmac.digest(self._known_key, file_id.encode() + digest, "sha256")[:16]

    def check_verification_mac(self, mac: bytes | None, file_id: str, digest: bytes) -> bool:
        """Return whether `mac` is the right one; False if it is None."""
        return mac is not None and hmac.compare_digest(mac, self.verification_mac(file_id, digest))

    def meta_number(self, key: str) -> int:
        """Return a stored number that only grows; 0 at first."""
        number = int.from_bytes(self.meta_value(key) or b"")
        if number > _LARGEST:
            raise self._damaged(f"the number {key!r} is impossible")
        return number

    def raise_meta_number(self, key: str, value: int) -> None:
        """Store a number if it is larger than the known one. Raises as `check_current`, because the
        number describes cached data."""
        with self.transaction():
            self.check_current()
            if value > self.meta_number(key):
                self.set_meta(key, value.to_bytes(8))

    def fetch_rows(
        self, query: str, values: tuple[int | str | bytes, ...] = ()
    ) -> list[tuple[Any, ...]]:
        """Return all rows of a query. Its columns have the names of the tables' columns."""
        with self._translated:
            cursor = self._database.execute(query, values)
            rows = cursor.fetchall()
        for (name, *_), column in zip(cursor.description, zip(*rows, strict=True), strict=False):
            if not set(map(type, column)).issubset(_COLUMNS[name]):
                raise self._damaged(f"a value of {name!r} has a wrong type")
        return rows

    def set_meta(self, key: str, value: bytes) -> None:
        """Store a value by name."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def execute(self, statement: str, values: tuple[int | str | bytes | None, ...] = ()) -> None:
        """Execute one statement that changes something."""
        with self._translated:
            self._database.execute(statement, values)

    def execute_many(
        self, statement: str, rows: Sequence[tuple[int | str | bytes | None, ...]]
    ) -> None:
        """Execute one changing statement for each of `rows`, in the open transaction or
        in its own."""
        with self._translated, self._begin_immediate():
            self._database.executemany(statement, rows)

    def fetch_row(
        self, query: str, values: tuple[int | str | bytes, ...] = ()
    ) -> tuple[Any, ...] | None:
        """Return the only row of a query as `fetch_rows` does, or None."""
        rows = self.fetch_rows(query, values)
        return rows[0] if rows else None

    def meta_value(self, key: str) -> bytes | None:
        """Return a value stored by name, or None."""
        # Not by `fetch_row`, for speed: it runs for every signature.
        with self._translated:
            row = self._database.execute(_VALUE, (key,)).fetchone()
        if row is not None and type(row[0]) is not bytes:
            raise self._damaged("a value has a wrong type")
        return None if row is None else row[0]

    def _damaged(self, why: str) -> LocalError:
        return LocalError(f"{self._path} is damaged: {why}", _MOVE_AWAY)


_MOVE_AWAY: Final = (
    "move the file away and run the command again; the server's log is then trusted once as shown"
)


_READ_ONLY: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})
_FAILED_WRITES: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
    }
)
_ROOM: Final = 256 * 1024
"""Bytes that a file system must have left: a command writes some tens of KiB to its state, and more
only for thousands of files."""


def is_unwritable(error: BaseException | None) -> bool:
    """Return whether an error of the system or of SQLite says that a disk is full or read-only."""
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", 0)
        kinds = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        return code & 0xFF in kinds or code in _FAILED_WRITES
    return isinstance(error, OSError) and error.errno in _READ_ONLY


def check_room(path: Path) -> None:
    """Raise `LocalError` from an OSError if the disk of `path` is full."""
    with translate_errors(path), contextlib.suppress(FileNotFoundError):
        if shutil.disk_usage(path.parent).free < _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy(path: Path, target: sqlite3.Connection) -> None:
    """Copy the database at `path`. Raises `sqlite3.Error`.

    The first way needs no room on the disk, because with an exclusive lock SQLite keeps the index
    of the write-ahead log in memory. The others need no permission to write. The last one ignores
    the log, so it is used only if there is none.
    """
    uri = path.resolve().as_uri()
    log = path.with_name(path.name + "-wal")
    ways = ["?mode=rw", "?mode=ro"]
    status = file_status(log)
    if status is None or not status.st_size:
        ways.append("?mode=ro&immutable=1")
    for way in ways:
        try:
            with contextlib.closing(
                sqlite3.connect(uri + way, uri=True, timeout=1.0, isolation_level=None)
            ) as source:
                if way == ways[0]:
                    source.execute("PRAGMA locking_mode = EXCLUSIVE")
                # A lock for reading, because `backup` would wait for one without an end.
                source.execute("BEGIN")
                source.execute("SELECT count(*) FROM sqlite_master").fetchone()
                source.backup(target)
                return
        except sqlite3.OperationalError:
            if way == ways[-1]:
                raise


def _room_hint(path: Path) -> str:
    return f"make room on the disk of {path.parent}, or make the folder writable"


class translate_errors:  # noqa: N801 - it is used as a function
    """Context manager that turns errors of SQLite and the system into `LocalError`. A class,
    because a generator would cost as much as the query inside it."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, sqlite3.OperationalError):
            hint = _room_hint(self._path) if is_unwritable(error) else None
            raise LocalError(f"cannot use {self._path}: {error}", hint) from error
        if isinstance(error, sqlite3.DatabaseError):
            raise LocalError(f"{self._path} is damaged: {error}", _MOVE_AWAY) from error
        if isinstance(error, OSError):
            hint = _room_hint(self._path) if is_unwritable(error) else None
            raise LocalError(f"cannot use {self._path}: {error.strerror}", hint) from error
