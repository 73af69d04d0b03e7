"""logs/tree/paths: the newest entry of each path, so that an old file of the store is noticed.

The log has the digest of every file that was ever written. Finding the entry that decided a path
last would mean reading all of it, and an older genuine file names an older genuine entry. So this
table holds, for each path, the seq of its newest entry and the digest that the entry left. It is a
cache of the log: a start reads the entries past the table's mark, and makes a table that is missing
or wrong from the whole log. Ciphertext and leaf hashes are left out: the signed record in the
sidecar beside them has their root.

The table is an SQLite file, whose rows are in `_BUCKETS` buckets. The sum of a bucket is the sum,
modulo 2^128, of HMAC-SHA256(key, row)[:16] of its rows: it changes with a row at the cost of that
row, and reading a row verifies its bucket only. The mark is AES-256-GCM of all sums, with the size
and the Merkle root of the log that they belong to as additional data. Both keys are HKDF-SHA256 of
keys/log.key. The sums are secret: an attacker who knew the HMAC of many rows could look for other
rows of the same sum. So rows of another day, alone or together with the files that they describe,
do not match; a whole table of another day is brought up to date from the log.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import logging
import os
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.codec import merkle
from protocol.codec.errors import LogError
from protocol.codec.values import Value
from protocol.log import auditlog
from sfsd.errors import JournalDamagedError, JournalError, SfsdError
from sfsd.fs.files import Files

_log = logging.getLogger(__name__)
_Rows = TypeVar("_Rows")
NAME: Final = "logs/tree/paths"
FILES: Final = ("paths", "paths-wal", "paths-shm", "paths-journal")
"""The files of the table in logs/tree: its own, and those that SQLite has beside it."""
_GROUPS: Final = 32
"""Groups of users; the rows of a user are in the buckets of one group, so that listing a user's
files verifies few rows of others."""
_PARTS: Final = 32
"""Buckets of a group."""
_FIRST_ACCOUNT: Final = _GROUPS * _PARTS
_ACCOUNTS: Final = 16
"""Buckets of the accounts, which have buckets of their own so that all users can be listed."""
_BUCKETS: Final = _FIRST_ACCOUNT + _ACCOUNTS
_TOGETHER: Final = 256
"""Rows that are read, or written, by one statement."""
_FIND: Final = """
WITH wanted (bucket, path) AS (VALUES ())
SELECT paths.path, seq, digest FROM wanted CROSS JOIN paths
ON paths.bucket = wanted.bucket AND paths.path = wanted.path
"""
_SUM_SIZE: Final = 16
_MODULUS: Final = 1 << 8 * _SUM_SIZE
_NONCE_SIZE: Final = 12
_NOT_WRITABLE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
_SAVE_EVERY: Final = 512
"""Entries, or changed paths, that are kept in memory until they are written in a few ms."""
_RECENT: Final = 4096
"""Rows kept in memory; accounts and statements are looked up at every request."""
_CHECK_EVERY: Final = 3600.0
"""Seconds after which a bucket is verified again."""
TABLE_HINT: Final = "the next start of `sfsd serve` makes the table again from the log"
_ACCOUNT: Final = "/account.json"
_LEFT_OUT: Final = (".ct", ".leaves")
_PATHS: Final = b'"paths":{'
_SCHEMA: Final = {
    "paths": "CREATE TABLE paths (bucket INTEGER NOT NULL, path TEXT NOT NULL,"
    " seq INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (bucket, path)) WITHOUT ROWID",
    "mark": "CREATE TABLE mark (size INTEGER NOT NULL, root BLOB NOT NULL, sealed BLOB NOT NULL)",
}
_PRAGMAS: Final = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
)


class LatestEntry(Value):
    """The newest entry `seq` of a path, and the `digest` (32 bytes) of the file that it left."""

    seq: int
    digest: bytes


class Log(Protocol):
    """The log that the table follows: `sfsd.log.journal.Journal`. Methods raise `JournalError`."""

    @property
    def size(self) -> int: ...

    def root_at(self, size: int) -> bytes: ...

    def has(self, seq: int, leaf: bytes) -> bool: ...

    def frontier_at(self, size: int) -> merkle.Frontier: ...

    def lines(self, first: int = 0, end: int | None = None) -> Iterator[bytes]: ...


class TableUnreadableError(SfsdError):
    """The stored table cannot be read, or is no such table. A start makes it again."""

    exit_code = 5

    def __init__(self, cause: str) -> None:
        super().__init__(cause, TABLE_HINT)


class _WrongTableError(Exception):
    """The file is not what this class wrote; the text says how it is known."""


class PathTable:
    """The table of one log. One thread applies changes and saves, any thread reads. Every method
    may read the whole log, if the table turns out to be wrong, and may raise `JournalError`."""

    def __init__(self, folder: Path, files: Files, seed: bytes, log: Log) -> None:
        """Open the table in `folder` and bring it up to the end of `log`; `seed` is that of
        keys/log.key. Raises `JournalDamagedError` if the log is not what its root says."""
        self._file = folder / "paths"
        self._files = files
        self._log = log
        keys = HKDF(SHA256(), 64, None, b"sfs/v2/paths").derive(seed)
        self._row_key = keys[:32]
        self._seal = AESGCM(keys[32:])
        self._lock = threading.RLock()
        self._pending: dict[str, LatestEntry | None] = {}
        self._recent: dict[str, LatestEntry | None] = {}
        self._sums = [0] * _BUCKETS
        self._checked: dict[int, float] = {}
        self._saved, self._save_at = 0, _SAVE_EVERY
        self._groups: dict[str, int] = {}
        self._database: Any = None
        self.size = 0
        """How many entries the table has seen; those past it are being published."""
        self._open()

    # Reading: any thread.

    def get(self, path: str) -> LatestEntry | None:
        """Return the newest entry of a path; None if there must be no such file."""
        return self.get_many([path])[0]

    def get_many(self, paths: Sequence[str]) -> list[LatestEntry | None]:
        """Return what `get` does for each path, in input order, with one query for all: SQLite lets
        other threads run at each query, and then waits for them."""
        with self._lock:
            found: dict[str, LatestEntry | None] = {}
            left: list[str] = []
            for path in paths:
                kept = self._pending if path in self._pending else self._recent
                if path in kept:
                    found[path] = kept[path]
                else:
                    left.append(path)
            for start in range(0, len(left), _TOGETHER):
                some = left[start : start + _TOGETHER]
                read = dict.fromkeys(some) | self._read_latest(some)
                if len(self._recent) + len(read) > _RECENT:
                    self._recent.clear()
                self._recent |= read
                found |= read
            return [found[path] for path in paths]

    def below(self, prefix: str) -> list[tuple[str, int]]:
        """Return (path, seq) of every path that begins with `prefix`, in no order. `prefix` begins
        with a user's name and a slash."""
        user = prefix.partition("/")[0]
        first = self._group(user) * _PARTS
        query = "SELECT path, seq FROM paths WHERE bucket = ? AND path >= ? AND path < ?"
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with self._lock:
            rows = self._read(range(first, first + _PARTS), query, (prefix, end))
            found: dict[str, int] = dict(rows)
            for path, entry in self._pending.items():
                if path.startswith(prefix):
                    found.pop(path, None)
                    if entry is not None:
                        found[path] = entry.seq
        return list(found.items())

    def users(self) -> list[str]:
        """Return the names of all users who have an account, in order."""
        with self._lock:
            buckets = range(_FIRST_ACCOUNT, _BUCKETS)
            found = {
                row[0] for row in self._read(buckets, "SELECT path FROM paths WHERE bucket = ?")
            }
            for path, entry in self._pending.items():
                if path.endswith(_ACCOUNT):
                    (found.discard if entry is None else found.add)(path)
        return sorted(path.removesuffix(_ACCOUNT) for path in found)

    # Changing: the committer's thread.

    def apply(self, first: int, changes: list[Mapping[str, str | None]]) -> None:
        """Add consecutive entries from seq `first` on, which are now in place: each one's
        `detail["paths"]`, digests in hex."""
        with self._lock:
            for seq, paths in enumerate(changes, first):
                for path, digest in paths.items():
                    self._note(path, seq, None if digest is None else bytes.fromhex(digest))
            self.size = first + len(changes)

    def save(self, *, force: bool = False) -> None:
        """Write what was applied, and the mark, once that is worth it. A failure costs the next
        start some time."""
        with self._lock:
            if self.size != self._log.size:
                return  # a group is in the log and not in place: only the next start can say
            new = max(len(self._pending), self.size - self._saved)
            if new < self._save_at and not (force and new):
                return
            before = list(self._sums)
            try:
                with self._transaction():
                    self._write_pending()
                    self._write_mark(self.size, self._log.root_at(self.size))
            except _WrongTableError as exc:
                self._sums = before
                self._remake(exc)
            except sqlite3.Error as exc:
                self._sums = before
                self._save_at = new + _SAVE_EVERY
                _log.warning("%s not saved, the next start takes longer: %s", NAME, exc)
            else:
                self._saved, self._save_at = self.size, _SAVE_EVERY
                self._pending.clear()

    def close(self) -> None:
        """Close the file; `save` is called before."""
        with self._lock, suppress(sqlite3.Error):
            self._database.close()

    # The file.

    def _open(self) -> None:
        try:
            self._connect(self._file)
            self._load()
        except (sqlite3.Error, OSError, _WrongTableError) as exc:
            if self._log.size:
                _log.error("%s is made again from the log: %s", NAME, exc)
            self._start_again(self._log.size)

    def _load(self) -> None:
        """Read the mark, and the entries past it. Raises `_WrongTableError`, sqlite3.Error."""
        query = "SELECT type || ' ' || name, sql FROM sqlite_schema"
        stored = dict(self._database.execute(query).fetchall())
        if not stored:
            raise _WrongTableError("it is missing")
        if stored != {f"table {name}": sql for name, sql in _SCHEMA.items()}:
            raise _WrongTableError("it has other tables")
        marks = self._database.execute("SELECT size, root, sealed FROM mark LIMIT 2").fetchall()
        if len(marks) != 1 or [type(one) for one in marks[0]] != [int, bytes, bytes]:
            raise _WrongTableError("it has no mark")
        size, root, sealed = marks[0]
        try:
            sums = self._seal.decrypt(
                sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:], _associated(size, root)
            )
        except (InvalidTag, ValueError, OverflowError) as exc:
            text = "it was changed by something else than sfsd, or keys/log.key is new"
            raise _WrongTableError(text) from exc
        if len(sums) != _BUCKETS * _SUM_SIZE:
            raise _WrongTableError("it has another number of buckets")
        if size > self._log.size or self._log.root_at(size) != root:
            raise _WrongTableError("it is of another log")
        self._sums = [
            int.from_bytes(sums[at : at + _SUM_SIZE]) for at in range(0, len(sums), _SUM_SIZE)
        ]
        self._saved = size
        self._replay(size, self._log.size)

    def _replay(self, first: int, end: int, *, make: bool = False) -> None:
        """Apply the entries from `first` to `end`, or with `make` fill an empty file. Raises
        `JournalDamagedError` if they do not have the root of the log, and sqlite3.Error; then
        nothing of it is kept."""
        before = [0] * _BUCKETS if make else list(self._sums)
        self._sums = list(before)
        try:
            with ExitStack() as stack:
                if make:
                    stack.enter_context(self._transaction())
                    for statement in _SCHEMA.values():
                        self._database.execute(statement)
                writing = make
                for seq, paths in self._verified_paths(first, end):
                    for path, digest in paths.items():
                        self._note(path, seq, digest)
                    if len(self._pending) >= _SAVE_EVERY:
                        if not writing:
                            stack.enter_context(self._transaction())
                            writing = True
                        self._write_pending()
                        self._pending.clear()
                if writing:
                    self._write_pending()
                    self._write_mark(end, self._log.root_at(end))
                    self._pending.clear()
        except (sqlite3.Error, JournalError):
            self._pending.clear()
            self._sums = before
            raise
        self.size = end
        if writing:
            self._saved = end

    def _verified_paths(
        self, first: int, end: int
    ) -> Iterator[tuple[int, dict[str, bytes | None]]]:
        """Yield (seq, paths) of the entries from `first` to `end` that have any. Raises
        `JournalDamagedError`, at the latest after the last one."""
        frontier = self._log.frontier_at(first)
        try:
            for seq, line in enumerate(self._log.lines(first, end), first):
                frontier.append(merkle.leaf_hash(auditlog.leaf_data(line, seq=seq)))
                if _PATHS in line:
                    yield seq, auditlog.paths_of(line)
        except LogError as exc:
            raise JournalDamagedError.from_log_error(exc) from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise JournalDamagedError("malformed", seq=frontier.size - 1) from exc
        if frontier.size != end or frontier.root() != self._log.root_at(end):
            differs = [
                seq for seq, leaf in self._leaves(first, end) if not self._log.has(seq, leaf)
            ]
            text = "this entry or a later one is not what was written"
            raise JournalDamagedError(text, seq=min(differs, default=first))

    def _leaves(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        for seq, line in enumerate(self._log.lines(first, end), first):
            yield seq, merkle.leaf_hash(auditlog.leaf_data(line, seq=seq))

    def _start_again(self, end: int) -> None:
        """Make the table from the first `end` entries of the log. If the disk takes no file, the
        table is in memory until the next start. Raises `JournalError`."""
        self._forget()
        try:
            for name in FILES:
                self._files.remove(self._file.with_name(name))
            self._connect(self._file)
            self._replay(0, end, make=True)
        except (sqlite3.Error, OSError) as exc:
            _log.warning("%s not written, the next start takes longer: %s", NAME, exc)
            self._forget()
            self._connect(":memory:")
            self._replay(0, end, make=True)

    def _forget(self) -> None:
        """Close the file, and drop what was read from it."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
        self._pending.clear()
        self._recent.clear()
        self._checked.clear()

    def _connect(self, target: Path | str) -> None:
        if isinstance(target, Path):
            # SQLite would create the file for the account of this process.
            self._files.close(self._files.open_append(target))
        self._database = sqlite3.connect(
            target, timeout=0.0, isolation_level=None, check_same_thread=False
        )
        # An abandoned table leaves no file open: Python 3.13 warns of such databases.
        weakref.finalize(self, self._database.close)
        for pragma in _PRAGMAS:
            self._database.execute(pragma)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    def _note(self, path: str, seq: int, digest: bytes | None) -> None:
        if is_kept(path):
            self._pending[path] = None if digest is None else LatestEntry(seq, digest)
            self._recent.pop(path, None)

    def _write_pending(self) -> None:
        """Write the changed rows, and adjust the sums by what they replace."""
        execute_many, sums = self._database.executemany, self._sums
        pending = iter(self._pending.items())
        while some := list(islice(pending, _TOGETHER)):
            buckets = {path: self._bucket(path) for path, _ in some}
            for path, seq, digest in self._rows_of(buckets):
                sums[buckets[path]] -= self._weight(path, seq, digest)
            removed, written = [], []
            for path, entry in some:
                bucket = buckets[path]
                if entry is None:
                    removed.append((bucket, path))
                else:
                    written.append((bucket, path, entry.seq, entry.digest))
                    sums[bucket] += self._weight(path, entry.seq, entry.digest)
                sums[bucket] %= _MODULUS
            execute_many("DELETE FROM paths WHERE bucket = ? AND path = ?", removed)
            execute_many("INSERT OR REPLACE INTO paths VALUES (?, ?, ?, ?)", written)

    def _write_mark(self, size: int, root: bytes) -> None:
        nonce = os.urandom(_NONCE_SIZE)
        sums = b"".join([one.to_bytes(_SUM_SIZE) for one in self._sums])
        sealed = nonce + self._seal.encrypt(nonce, sums, _associated(size, root))
        self._database.execute("DELETE FROM mark")
        self._database.execute("INSERT INTO mark VALUES (?, ?, ?)", (size, root, sealed))

    # Verifying.

    def _read_latest(self, paths: Sequence[str]) -> dict[str, LatestEntry | None]:
        """Return the newest entries of those of the paths that have a row."""
        buckets = {path: self._bucket(path) for path in paths}
        rows = self._read_verified(set(buckets.values()), lambda: self._rows_of(buckets))
        return {path: LatestEntry(seq, digest) for path, seq, digest in rows}

    def _rows_of(self, buckets: Mapping[str, int]) -> list[Any]:
        """Return (path, seq, digest) of each row of these paths, given with their buckets."""
        query = _FIND.replace("()", ", ".join(["(?, ?)"] * len(buckets)))
        values = [value for path, bucket in buckets.items() for value in (bucket, path)]
        rows: list[Any] = self._database.execute(query, values).fetchall()
        return rows

    def _read(
        self, buckets: range | list[int], query: str, values: tuple[str, ...] = ()
    ) -> list[Any]:
        """Return the rows of a query on each of the buckets."""

        def read() -> list[Any]:
            execute = self._database.execute
            return [row for one in buckets for row in execute(query, (one, *values))]

        return self._read_verified(buckets, read)

    def _read_verified(self, buckets: Iterable[int], read: Callable[[], _Rows]) -> _Rows:
        """Return what `read` does, after the buckets that it reads were verified. The table is made
        again if anything is wrong."""
        try:
            for bucket in buckets:
                self._verify(bucket)
            return read()
        except (sqlite3.Error, _WrongTableError) as exc:
            self._remake(exc)
        return read()

    def _remake(self, exc: Exception) -> None:
        _log.error("%s is made again from the log: %s", NAME, exc)
        self._start_again(self.size)

    def _verify(self, bucket: int) -> None:
        """Compare the rows of a bucket with its sum, unless that was done within the hour."""
        now = time.monotonic()
        if now < self._checked.get(bucket, 0.0):
            return
        total = 0
        query = "SELECT path, seq, digest FROM paths WHERE bucket = ?"
        for path, seq, digest in self._database.execute(query, (bucket,)):
            total += self._weight(path, seq, digest)
        if total % _MODULUS != self._sums[bucket]:
            raise _WrongTableError("it was changed by something else than sfsd")
        self._checked[bucket] = now + _CHECK_EVERY

    def _weight(self, path: object, seq: object, digest: object) -> int:
        """Return what a row adds to the sum of its bucket. Raises `_WrongTableError`."""
        if not (type(path) is str and type(seq) is int and type(digest) is bytes) or seq < 0:
            raise _WrongTableError("it has a malformed row")
        row = b"%b\0%d\0%b" % (path.encode(), seq, digest)
        return int.from_bytes(hmac.digest(self._row_key, row, "sha256")[:_SUM_SIZE])

    def _bucket(self, path: str) -> int:
        user = path.partition("/")[0]
        group = self._group(user)
        if path == user + _ACCOUNT:
            return _FIRST_ACCOUNT + group % _ACCOUNTS
        return group * _PARTS + self._hash(path) % _PARTS

    def _group(self, user: str) -> int:
        group = self._groups.get(user)
        if group is None:
            if len(self._groups) >= _RECENT:
                self._groups.clear()
            group = self._groups[user] = self._hash(user) % _GROUPS
        return group

    def _hash(self, text: str) -> int:
        # Keyed, so that no user can choose names that fill one bucket.
        return hashlib.blake2b(text.encode(), key=self._row_key, digest_size=1).digest()[0]


def _associated(size: int, root: bytes) -> bytes:
    return size.to_bytes(8) + root


def is_kept(path: str) -> bool:
    """Return whether the table has the newest entry of `path`."""
    return not path.endswith(_LEFT_OUT)


class TableComparison:
    """Compares the table in a folder with the log, whose entries are passed to `apply` in order.
    No key is needed: the rows are compared, not their sums. No daemon runs."""

    def __init__(self, folder: Path) -> None:
        """Read the table. Raises `TableUnreadableError`."""
        self.size, self._rows = _stored_rows(folder)
        """`size` is how many entries of the log the table follows; 0 if there is no table."""
        self._newest: dict[str, tuple[int, bytes | None]] = {}

    def apply(self, seq: int, paths: Mapping[str, bytes | None]) -> None:
        """Note what entry `seq` left of each path."""
        if seq < self.size:
            self._newest.update((path, (seq, digest)) for path, digest in paths.items())

    def first_difference(self, entries: int) -> int | None:
        """Return the first entry whose row differs, None if the table is what the log says, which
        has this number of entries."""
        wanted = {
            path: newest
            for path, newest in self._newest.items()
            if newest[1] is not None and is_kept(path)
        }
        differing = {path for path, _ in wanted.items() ^ self._rows.items()}
        known = (self._newest.get(path) or self._rows[path] for path in differing)
        seqs = [seq for seq, _ in known]
        if self.size > entries:
            seqs.append(entries)
        return min(seqs, default=None)

    def compare(self, lines: Iterable[bytes], entries: int) -> int | None:
        """Apply the lines of a verified log; return `first_difference`."""
        for seq, line in enumerate(itertools.islice(lines, self.size)):
            if _PATHS in line:
                self.apply(seq, auditlog.paths_of(line))
        return self.first_difference(entries)


def _read_table(path: Path) -> tuple[Any, list[Any]]:
    """Return (size, rows) of the table in an SQLite file, unchecked. Raises sqlite3.Error."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(_PRAGMAS[0])
        ((size,),) = database.execute("SELECT size FROM mark").fetchall()
        return size, database.execute("SELECT path, seq, digest FROM paths").fetchall()


def _read_copy(folder: Path) -> tuple[Any, list[Any]]:
    """Do as `_read_table`, for a folder in which SQLite cannot make the files that it needs for a
    write-ahead log."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as other:
        for name in FILES:
            with suppress(FileNotFoundError):
                shutil.copyfile(folder / name, Path(other) / name)
        return _read_table(Path(other) / "paths")


def _stored_rows(folder: Path) -> tuple[int, dict[str, tuple[int, bytes]]]:
    """Return the size of the log at the mark of the table in `folder`, and each path's (seq,
    digest), all unverified; (0, {}) if there is no table. Raises `TableUnreadableError`."""
    try:
        if not (folder / "paths").stat().st_size:
            return 0, {}  # a start was interrupted
        try:
            size, rows = _read_table(folder / "paths")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
                raise
            size, rows = _read_copy(folder)
        if type(size) is not int or not 0 <= size < 1 << 53:
            raise ValueError("a malformed mark")
        for path, seq, digest in rows:
            if (type(path), type(seq), type(digest)) != (str, int, bytes):
                raise ValueError("a malformed row")
        return size, {path: (seq, digest) for path, seq, digest in rows}
    except FileNotFoundError:
        return 0, {}
    except OSError as exc:
        raise TableUnreadableError(f"{NAME} cannot be read: {exc.strerror}") from exc
    except (sqlite3.Error, ValueError) as exc:
        raise TableUnreadableError(f"{NAME} cannot be read: {exc}") from exc
