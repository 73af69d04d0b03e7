"""What this client remembers, in ``HOME/state.sqlite3`` (0600), so that nobody can turn back time.

The newest proven checkpoint of the log, every server statement, and of every file the newest
record that was verified. Beside these, as a cache, what a listing shows of each file; names are
encrypted under a key that comes from the keyring, since the keyring may be locked and this is not.

Several processes may use one file: writes are short transactions that wait for each other, and
each only moves forward, so that whoever is late cannot undo what another has learned. Losing the
file loses memory, not data: what the server then shows is taken as new.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from protocol.auditlog import GENESIS
from protocol.records import FileRecord, record_hash
from sfsc.errors import LocalError, Tampered
from sfsc.primitives import open_sealed, seal

SCHEMA: Final = 2
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


@dataclass(frozen=True, slots=True)
class KnownFile:
    """The newest record of a file that was verified here, and the newest version it has.

    `record` is the record's exact bytes, `hash` their SHA-256; a deleted file has both too.
    """

    file_id: str
    rev: int
    hash: bytes
    record: bytes
    version: int

    @classmethod
    def of(cls, head: FileRecord, body: bytes, version: int) -> Self:
        """That `head`, whose exact bytes are `body`, is the last record, `version` the newest."""
        return cls(head.file_id, head.rev, record_hash(body), body, version)

    @property
    def known(self) -> tuple[int, bytes]:
        """(rev, hash): what an answer about this file must not fall behind."""
        return self.rev, self.hash


@dataclass(frozen=True, slots=True)
class Followed:
    """A place in an account's own log: entries below `next_seq` are followed, `count` of them the
    account's, the last with the hash `last` (32 bytes)."""

    next_seq: int
    count: int
    last: bytes

    def pack(self) -> bytes:
        return _FOLLOWED.pack(self.next_seq, self.count, self.last)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        return cls(*_FOLLOWED.unpack(packed))


_FOLLOWED: Final = struct.Struct(">QQ32s")


class State:
    """Build with `open`. Every method may raise `LocalError`. Not for several threads at once."""

    def __init__(self, path: Path, database: sqlite3.Connection, key: bytes) -> None:
        self._path = path
        self._database = database
        self._key = key

    @classmethod
    def open(cls, path: Path, account: bytes, key: bytes) -> Self:
        """The state of `account` (any bytes that name server and user) at `path`, made if needed.

        `key` (32 bytes) encrypts what is cached. Raises `LocalError`, also where the file belongs
        to another account or was written by a newer version.
        """
        with _translated(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Made here and not by SQLite, which would take the mode from the umask; the files that
            # it puts beside this one take the mode from this one.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            state = cls(path, database, key)
            try:
                state._prepare(account)
            except BaseException:
                database.close()
                raise
        return state

    def _prepare(self, account: bytes) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        # A crash of this process loses nothing; a power cut may lose the last few memories, and
        # what is then remembered is only older, never wrong.
        self._database.execute("PRAGMA synchronous = NORMAL")
        with self._writing():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._create(_TABLES)
                self._database.execute("INSERT INTO meta VALUES ('account', ?)", (account,))
            if version in (0, 1):
                self._create(_OTHERS)
                self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise LocalError(
                    f"{self._path} has version {version}", "use the sfsc that wrote it, or a newer"
                )
        if self._value("account") != account:
            raise LocalError(
                f"{self._path} belongs to another account",
                "use another --home, or move this file away",
            )

    def _create(self, tables: str) -> None:
        for statement in tables.split(";"):
            self._database.execute(statement)

    def close(self) -> None:
        """Twice does no harm."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- the log ------------------------------------------------------------------------------

    def checkpoint(self) -> tuple[int, bytes] | None:
        """Size and root (32 bytes) of the newest proven checkpoint."""
        row = self.row("SELECT size, root FROM checkpoint")
        return None if row is None else (row[0], row[1])

    def checkpoint_note(self) -> bytes | None:
        """The signed note of the newest proven checkpoint."""
        row = self.row("SELECT note FROM checkpoint")
        return None if row is None else row[0]

    def remember_checkpoint(self, size: int, root: bytes, note: bytes) -> None:
        """A checkpoint that was proven from an earlier one; nothing where a newer one is here."""
        self.run(
            "INSERT INTO checkpoint VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " size = excluded.size, root = excluded.root, note = excluded.note"
            " WHERE excluded.size > size",
            (size, root, note),
        )

    def server_statement(self) -> bytes | None:
        """The newest server statement."""
        row = self.row("SELECT statement FROM server_statement ORDER BY n DESC LIMIT 1")
        return None if row is None else row[0]

    def remember_server_statement(self, n: int, statement: bytes, signature: bytes) -> None:
        """All are kept: a stored receipt is checked with the log key that was in force then."""
        self.run(
            "INSERT INTO server_statement VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (n, statement, signature),
        )

    # --- distrust -----------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the file lies: beside the keyring."""
        return self._path.parent

    def distrust(self, evidence: str) -> None:
        """The server has told two stories; `evidence` is the path of what proves it."""
        self.run("INSERT OR REPLACE INTO meta VALUES ('evidence', ?)", (evidence.encode(),))

    def distrusted(self) -> str | None:
        """The path that `distrust` was told, None where nobody distrusts."""
        value = self._value("evidence")
        return None if value is None else value.decode()

    def rotated_at(self) -> int:
        """When keys were last rotated here because a server asked for it; 0 for never."""
        value = self._value("rotated")
        return 0 if value is None else int.from_bytes(value, "big")

    def remember_rotated(self, now: int) -> None:
        """Unix seconds."""
        self.run("INSERT OR REPLACE INTO meta VALUES ('rotated', ?)", (now.to_bytes(8),))

    def begin_anew(self, size: int, root: bytes, note: bytes) -> None:
        """Take the log as it is now for the truth, and forget what was known of files: what the
        server shows of them is taken as new."""
        with self.changing():
            self.run(
                "DELETE FROM meta WHERE key IN ('evidence', 'listed', 'followed', 'received')", ()
            )
            self.run("DELETE FROM file", ())
            self.run("DELETE FROM logged", ())
            self.run("DELETE FROM shared", ())
            self.run("DELETE FROM checkpoint", ())
            self.run("INSERT INTO checkpoint VALUES (1, ?, ?, ?)", (size, root, note))

    # --- files --------------------------------------------------------------------------------

    def file(self, file_id: str) -> KnownFile | None:
        """Ask before the server is asked: another process may learn of something newer meanwhile,
        and an answer that was true when it was given would look like a rollback."""
        row = self.row("SELECT rev, hash, record, version FROM file WHERE file_id = ?", (file_id,))
        return None if row is None else KnownFile(file_id, *row)

    def revisions(self) -> dict[str, tuple[int, bytes]]:
        """(rev, hash of the record) of every known file; to be asked for as `file` is."""
        with _translated(self._path):
            rows = self._database.execute("SELECT file_id, rev, hash FROM file")
            return {file_id: (rev, record_hash) for file_id, rev, record_hash in rows}

    def remember_file(self, known: KnownFile, entry: bytes | None) -> None:
        """The newest record of a file, verified, and what a listing shows of it (None: nothing).

        An older one than is known changes nothing.
        """
        sealed = None if entry is None else self.seal(entry, known.file_id)
        self.run(
            "INSERT INTO file VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " rev = excluded.rev, hash = excluded.hash, record = excluded.record,"
            " version = excluded.version, entry = excluded.entry WHERE excluded.rev >= rev",
            (known.file_id, known.rev, known.hash, known.record, known.version, sealed),
        )

    def has_entry(self, file_id: str, record_hash: bytes) -> bool:
        """Whether what a listing shows of this very record is cached."""
        row = self.row(
            "SELECT 1 FROM file WHERE file_id = ? AND hash = ? AND entry NOT NULL",
            (file_id, record_hash),
        )
        return row is not None

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """(file_id, cached entry) of all files that have one, in no order.

        Raises `LocalError` for one that does not open: then the file was tampered with, or the
        keyring is another.
        """
        with _translated(self._path):
            rows = self._database.execute(
                "SELECT file_id, entry FROM file WHERE entry NOT NULL"
            ).fetchall()
        for file_id, sealed in rows:
            yield file_id, self.unseal(sealed, file_id)

    def listed(self) -> int:
        """Log size up to which the cached entries are complete; 0 at first."""
        return self.number("listed")

    def remember_listed(self, size: int) -> None:
        """All changes in the first `size` entries of the log are cached."""
        self.remember_number("listed", size)

    # --- the account's own log ----------------------------------------------------------------

    def followed(self) -> Followed | None:
        """How far the log of this account was followed; None where it never was."""
        value = self._value("followed")
        return None if value is None else Followed.unpack(value)

    def remember_followed(self, before: Followed, now: Followed, newest: dict[str, int]) -> None:
        """That it was followed from `before` to `now`, and the last `rev` of each file in between.
        Nothing where another process has followed it meanwhile: that one goes on from there."""
        with self.changing():
            if (self.followed() or Followed(0, 0, GENESIS)) != before:
                return
            for file_id, rev in newest.items():
                self.run(
                    "INSERT INTO logged VALUES (?, ?) ON CONFLICT DO UPDATE SET rev = excluded.rev"
                    " WHERE excluded.rev > rev",
                    (file_id, rev),
                )
            self.run("INSERT OR REPLACE INTO meta VALUES ('followed', ?)", (now.pack(),))

    def logged(self, file_id: str) -> int:
        """The last `rev` of a file that the log is known to have; 0 for none."""
        row = self.row("SELECT rev FROM logged WHERE file_id = ?", (file_id,))
        return 0 if row is None else int(row[0])

    # --- SQLite, for what is remembered elsewhere too ---------------------------------------

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Make several changes one transaction, all or none of which are kept."""
        with _translated(self._path), self._writing():
            yield

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        if self._database.in_transaction:
            yield
            return
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def seal(self, plain: bytes, name: str) -> bytes:
        """Bytes to keep, encrypted under the keyring's key for what `name` is about."""
        return seal(self._key, plain, name.encode())

    def unseal(self, sealed: bytes, name: str) -> bytes:
        """The inverse. Raises `LocalError`: the file was tampered with, or the keyring changed."""
        try:
            return open_sealed(self._key, sealed, name.encode())
        except Tampered as exc:
            raise LocalError(f"{self._path} does not open", _MOVE_AWAY) from exc

    def number(self, key: str) -> int:
        """A number that only grows; 0 at first."""
        value = self._value(key)
        return 0 if value is None else int.from_bytes(value, "big")

    def remember_number(self, key: str, value: int) -> None:
        """Where it is more than is known."""
        with self.changing():
            if value > self.number(key):
                self.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value.to_bytes(8)))

    def rows(self, query: str, values: tuple[str | bytes, ...] = ()) -> list[tuple[Any, ...]]:
        """Every row that a query finds."""
        with _translated(self._path):
            return self._database.execute(query, values).fetchall()

    def run(self, statement: str, values: tuple[int | str | bytes | None, ...]) -> None:
        with _translated(self._path):
            self._database.execute(statement, values)

    def row(self, query: str, values: tuple[str | bytes, ...] = ()) -> tuple[Any, ...] | None:
        with _translated(self._path):
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
            return row

    def _value(self, key: str) -> bytes | None:
        row = self.row("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else bytes(row[0])


def kept_server_statements(path: Path) -> tuple[bytes, list[bytes]]:
    """(server_id, exact bytes of every server statement) that the state at `path` keeps, newest
    first; for who checks a proof without any key. Raises `LocalError`."""
    with _translated(path):
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            (account,) = database.execute("SELECT value FROM meta WHERE key = 'account'").fetchone()
            rows = database.execute("SELECT statement FROM server_statement ORDER BY n DESC")
            return bytes(account[:32]), [bytes(body) for (body,) in rows]
        finally:
            database.close()


_MOVE_AWAY: Final = (
    "move it away and run the command again; the server's past is then taken on trust once"
)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise LocalError(f"cannot use {path}: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise LocalError(f"{path} is damaged: {exc}", _MOVE_AWAY) from exc
    except OSError as exc:
        raise LocalError(f"cannot use {path}: {exc.strerror}") from exc
