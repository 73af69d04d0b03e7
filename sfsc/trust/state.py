"""What this client remembers, in ``HOME/state.sqlite3`` (0600), so that nobody can turn back time.

The newest proven checkpoint of the log, every server statement, and of every file the newest
record that was verified. Beside these, as a cache, what a listing shows of each file, and that its
record's signature was found good; names are encrypted, and that is authenticated, under a key that
comes from the keyring, since the keyring may be locked and this is not.

Several processes may use one file: writes are short transactions that wait for each other, and
each only moves forward, so that whoever is late cannot undo what another has learned. Losing the
file loses memory, not data: what the server then shows is taken as new.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from protocol.codec.values import Value
from protocol.log.auditlog import GENESIS
from protocol.records.records import FileRecord, record_hash
from sfsc.crypto.primitives import state_key
from sfsc.errors import LocalError
from sfsc.keys.keyring import Keyring
from sfsc.trust.database import StateDatabase, translate_errors
from sfsc.trust.file_records import KnownRevision


class KnownFile(Value):
    """The newest record of a file that was verified here, and the newest version it has.

    `record` is the record's exact bytes, `hash` their SHA-256; a deleted file has both too.
    """

    file_id: str
    rev: int
    hash: bytes
    record: bytes
    version: int

    @classmethod
    def from_record(cls, head: FileRecord, body: bytes, version: int) -> Self:
        """That `head`, whose exact bytes are `body`, is the last record, `version` the newest."""
        return cls(head.file_id, head.rev, record_hash(body), body, version)

    @property
    def revision(self) -> KnownRevision:
        return KnownRevision(self.rev, self.hash)


class LogPosition(Value):
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
_SERVER_STATEMENTS: Final = "SELECT statement FROM server_statement ORDER BY n DESC"
LOG_START: Final = LogPosition(0, 0, GENESIS)
"""Where nothing was followed yet."""


class ClientState(StateDatabase):
    """Build with `open`. Every method may raise `LocalError`. Not for several threads at once."""

    def change_key(self, key: bytes) -> None:
        """Go on with another key (32 bytes), since the one before may be in other hands. What is
        cached of one's own files is kept; no record is vouched for, until it is verified again: who
        has a key can vouch in advance for what a signing key is to have signed that he never gets.
        """
        with self.transaction():
            if self.adopt_current_key(key):
                return  # another process has begun with it already
            entries, listed = list(self.entries()), self.listed_size()
            self.replace_key(key)
            for file_id, entry in entries:
                sealed = self.seal(entry, file_id)
                self.execute("UPDATE file SET entry = ? WHERE file_id = ?", (sealed, file_id))
            self.remember_listed_size(listed)

    # --- the log ------------------------------------------------------------------------------

    def checkpoint(self) -> tuple[int, bytes, bytes] | None:
        """Size and root (32 bytes) of the newest proven checkpoint, and the signed note that says
        so; of one moment, since other processes remember newer ones."""
        row = self.fetch_row("SELECT size, root, note FROM checkpoint")
        return None if row is None else (row[0], row[1], row[2])

    def remember_checkpoint(self, size: int, root: bytes, note: bytes) -> None:
        """A checkpoint that was proven from an earlier one; nothing where a newer one is here."""
        self.execute(
            "INSERT INTO checkpoint VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " size = excluded.size, root = excluded.root, note = excluded.note"
            " WHERE excluded.size > size",
            (size, root, note),
        )

    def server_statement(self) -> bytes | None:
        """The newest server statement."""
        row = self.fetch_row(_SERVER_STATEMENTS)
        return None if row is None else row[0]

    def server_statements(self) -> list[bytes]:
        """Every server statement that was ever in force here, newest first."""
        return [bytes(body) for (body,) in self.fetch_rows(_SERVER_STATEMENTS)]

    def remember_server_statement(self, n: int, statement: bytes, signature: bytes) -> None:
        """All are kept: a stored receipt is checked with the log key that was in force then."""
        self.execute(
            "INSERT INTO server_statement VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (n, statement, signature),
        )

    # --- distrust -----------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """Where the file lies: beside the keyring."""
        return self._path.parent

    def distrust(self, evidence: str) -> None:
        """The server has told two stories; `evidence` is the path of what proves it."""
        self.execute("INSERT OR REPLACE INTO meta VALUES ('evidence', ?)", (evidence.encode(),))

    def distrust_evidence(self) -> str | None:
        """The path that `distrust` was told, None where nobody distrusts."""
        value = self.meta_value("evidence")
        return None if value is None else value.decode()

    def last_server_rotation(self) -> int:
        """When keys were last rotated here because a server asked for it; 0 for never."""
        value = self.meta_value("rotated")
        return 0 if value is None else int.from_bytes(value, "big")

    def remember_server_rotation(self, now: int) -> None:
        """Unix seconds."""
        self.execute("INSERT OR REPLACE INTO meta VALUES ('rotated', ?)", (now.to_bytes(8),))

    def reencrypt_choice(self, generation: int) -> frozenset[str] | None:
        """The files whose contents the rotation to `generation` encrypts anew; None for all."""
        value = self.meta_value("chosen") or b""
        if int.from_bytes(value[:8]) != generation or len(value) == 8:
            return None
        text = value[8:].decode()
        return frozenset(text[at : at + 32] for at in range(0, len(text), 32))

    def remember_reencrypt_choice(self, generation: int, chosen: frozenset[str] | None) -> None:
        """Their ids, None for all: whatever command goes on after a cut knows of it."""
        value = generation.to_bytes(8) + "".join(sorted(chosen or ())).encode()
        self.execute("INSERT OR REPLACE INTO meta VALUES ('chosen', ?)", (value,))

    def reset_log(self, size: int, root: bytes, note: bytes) -> None:
        """Take the log as it is now for the truth, and forget what was known of files: what the
        server shows of them is taken as new."""
        with self.transaction():
            self.execute(
                "DELETE FROM meta WHERE key IN ('evidence', 'listed', 'followed', 'received')", ()
            )
            self.execute("DELETE FROM file", ())
            self.execute("DELETE FROM logged", ())
            self.execute("DELETE FROM shared", ())
            self.execute("DELETE FROM checkpoint", ())
            self.execute("INSERT INTO checkpoint VALUES (1, ?, ?, ?)", (size, root, note))

    # --- files --------------------------------------------------------------------------------

    def file(self, file_id: str) -> KnownFile | None:
        """Ask before the server is asked: another process may learn of something newer meanwhile,
        and an answer that was true when it was given would look like a rollback."""
        row = self.fetch_row(
            "SELECT rev, hash, record, version FROM file WHERE file_id = ?", (file_id,)
        )
        return None if row is None else KnownFile(file_id, *row)

    def verified_file(self, file_id: str) -> KnownFile | None:
        """As `file`, where its very record is vouched for: what it says may be signed again."""
        query = "SELECT vouched, rev, hash, record, version FROM file WHERE file_id = ?"
        row = self.fetch_row(query, (file_id,))
        if row is None:
            return None
        known = KnownFile(file_id, *row[1:])
        return (
            known
            if self.check_verification_mac(row[0], file_id, record_hash(known.record))
            else None
        )

    def files(self, file_ids: Sequence[str]) -> dict[str, KnownFile | None]:
        """As `file`, of each of a few files."""
        query = "SELECT file_id, rev, hash, record, version FROM file WHERE"
        found: dict[str, KnownFile | None] = dict.fromkeys(file_ids)
        found.update((row[0], KnownFile(*row)) for row in self._query_files(query, (), file_ids))
        return found

    def known_revisions(self, file_ids: Sequence[str]) -> dict[str, KnownRevision | None]:
        """The revision that is known of each of a few files, and whether it is vouched for; to be
        asked for as `file` is."""
        found: dict[str, KnownRevision | None] = dict.fromkeys(file_ids)
        query = "SELECT file_id, rev, hash, vouched FROM file WHERE"
        for file_id, rev, digest, voucher in self._query_files(query, (), file_ids):
            found[file_id] = KnownRevision(
                rev, digest, self.check_verification_mac(voucher, file_id, digest)
            )
        return found

    def query_revisions(
        self, query: str, values: tuple[str, ...], file_ids: Sequence[str]
    ) -> dict[str, KnownRevision | None]:
        """By a query for (file_id, rev, hash) that goes on with which files; none vouched for."""
        found: dict[str, KnownRevision | None] = dict.fromkeys(file_ids)
        for file_id, rev, digest in self._query_files(query, values, file_ids):
            found[file_id] = KnownRevision(rev, digest)
        return found

    def _query_files(
        self, query: str, values: tuple[str, ...], file_ids: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """What a query finds that goes on with which files."""
        marks = ",".join("?" * len(file_ids))
        return self.fetch_rows(f"{query} file_id IN ({marks})", (*values, *file_ids))

    def all_revisions(self) -> dict[str, KnownRevision]:
        """What is known of every file; to be asked for as `file` is."""
        rows = self.fetch_rows("SELECT file_id, rev, hash FROM file")
        return {file_id: KnownRevision(rev, digest) for file_id, rev, digest in rows}

    def remember_file(self, known: KnownFile, entry: bytes | None) -> None:
        """The newest record of a file, its signature verified or made here, and what a listing
        shows of it (None: nothing).

        An older one than is known changes nothing.
        """
        self.remember_files([(known, entry)])

    def remember_files(self, files: Sequence[tuple[KnownFile, bytes | None]]) -> None:
        """As `remember_file`, all of them together: that costs about as much as one."""
        with self.transaction():
            # Under a key of before it would open for nobody. Who has the present one lists it anew.
            cached = self.is_current
            rows = [
                (
                    known.file_id,
                    known.rev,
                    known.hash,
                    known.record,
                    known.version,
                    self.seal(entry, known.file_id) if cached and entry is not None else None,
                    self.verification_mac(known.file_id, known.hash),
                )
                for known, entry in files
            ]
            self.execute_many(
                "INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " rev = excluded.rev, hash = excluded.hash, record = excluded.record,"
                " version = excluded.version, vouched = excluded.vouched,"
                # That of the same record stays: no later listing would bring it again.
                " entry = coalesce(excluded.entry, CASE WHEN hash = excluded.hash THEN entry END)"
                " WHERE excluded.rev >= rev",
                rows,
            )

    def cached_revisions(self, file_ids: Sequence[str]) -> dict[str, KnownRevision | None]:
        """As `known`, where what a listing shows of that very record is cached, else None."""
        query = "SELECT file_id, rev, hash FROM file WHERE entry NOT NULL AND"
        return self.query_revisions(query, (), file_ids)

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """(file_id, cached entry) of all files that have one, in no order.

        Raises `LocalError` for one that does not open: then the file was tampered with.
        """
        for file_id, sealed in self.fetch_rows(
            "SELECT file_id, entry FROM file WHERE entry NOT NULL"
        ):
            yield file_id, self.unseal(sealed, file_id)

    def listed_size(self) -> int:
        """Log size up to which the cached entries are complete; 0 at first."""
        return self.meta_number("listed")

    def remember_listed_size(self, size: int) -> None:
        """All changes in the first `size` entries of the log are cached."""
        self.raise_meta_number("listed", size)

    # --- the account's own log ----------------------------------------------------------------

    def followed_log(self) -> LogPosition:
        """How far the log of this account was followed."""
        value = self.meta_value("followed")
        return LOG_START if value is None else LogPosition.unpack(value)

    def remember_followed_log(
        self, before: LogPosition, now: LogPosition, newest: dict[str, int]
    ) -> bool:
        """That it was followed from `before` to `now`, and the last `rev` of each file in between.
        False, and nothing, where another process has followed it meanwhile."""
        with self.transaction():
            if self.followed_log() != before:
                return False
            for file_id, rev in newest.items():
                self.execute(
                    "INSERT INTO logged VALUES (?, ?) ON CONFLICT DO UPDATE SET rev = excluded.rev"
                    " WHERE excluded.rev > rev",
                    (file_id, rev),
                )
            self.execute("INSERT OR REPLACE INTO meta VALUES ('followed', ?)", (now.pack(),))
            return True

    def logged_revision(self, file_id: str) -> int:
        """The last `rev` of a file that the log is known to have; 0 for none."""
        row = self.fetch_row("SELECT rev FROM logged WHERE file_id = ?", (file_id,))
        return 0 if row is None else int(row[0])


def state_path(home: Path) -> Path:
    return home / "state.sqlite3"


def open_client_state(home: Path, keyring: Keyring) -> ClientState:
    """Open what this client remembers of the keyring's account. Raises `LocalError`."""
    account = keyring.server_id + keyring.user.encode()
    return ClientState.open_database(
        state_path(home), account, state_key(keyring.device.xwing_private)
    )


def read_server_statements(path: Path) -> tuple[bytes, list[bytes]]:
    """(server_id, exact bytes of every server statement) that the state at `path` keeps, newest
    first; for who checks a proof without any key. Raises `LocalError`."""
    with translate_errors(path):
        if not path.exists():
            hint = "name the log's key with --vkey: `sfsc status` shows it where there is one"
            raise LocalError(f"there is no account in {path.parent}", hint)
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            found = database.execute("SELECT value FROM meta WHERE key = 'account'").fetchone()
            if found is None:
                raise sqlite3.DatabaseError("it does not say whose it is")
            rows = database.execute(_SERVER_STATEMENTS)
            return bytes(found[0][:32]), [bytes(body) for (body,) in rows]
        finally:
            database.close()
