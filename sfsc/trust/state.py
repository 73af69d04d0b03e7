"""State of this client in ``HOME/state.sqlite3`` (0600), which detects a server that rolls back.

It holds how far the log was followed, the newest record of every file in it, the record that made
each version, and every server statement. As a cache, it also holds the newest verified record and
the listing entry of each file, and a MAC showing that the record's signature was found valid. What
decides is authenticated as a whole (`sfsc.trust.vouched`). Names are encrypted under a key from the
keyring, because the keyring may be locked and this file is not.

Several processes may use one file: writes are short transactions that wait for each other, and each
only moves forward, so a late process cannot undo what another has learned. If the file is lost, the
log is followed from its beginning.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from protocol.buffers.file_status import exists
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.terminal_text import printable
from protocol.codec.values import Value, changed
from protocol.records.records import CONTENT_OPS, FileRecord, ServerStatement, record_hash
from sfsc.crypto.primitives import state_key, vouched_rows_key
from sfsc.errors import LocalError
from sfsc.keys.bundle import SeenCheckpoint
from sfsc.keys.keyring import KeyringFile
from sfsc.trust.database import StateDatabase, check_room, is_unwritable, translate_errors
from sfsc.trust.file_records import Entry, KnownRevision
from sfsc.trust.followed_log import (
    LOG_START,
    LogChanges,
    LoggedHead,
    LoggedVersion,
    LogPosition,
    SignedLeave,
    VersionFacts,
    pack_contacts,
    pack_leaves,
    unpack_contacts,
    unpack_leaves,
)
from sfsc.trust.vouched import Row

MadeRecord = tuple[FileRecord, bytes, int]
"""A record of our own, its exact bytes, and the newest version of its file."""


class KnownFile(Value):
    """The newest verified record of a file, and its newest version. `record` is the record's exact
    bytes, `hash` their SHA-256; a deleted file has both too."""

    file_id: str
    rev: int
    hash: bytes
    record: bytes
    version: int
    deleted: bool = False

    @classmethod
    def from_record(cls, head: FileRecord, body: bytes, version: int) -> Self:
        """Build from the last record `head`, its exact bytes `body`, and the newest `version`."""
        return cls(head.file_id, head.rev, record_hash(body), body, version, head.current == 0)

    @property
    def revision(self) -> KnownRevision:
        return KnownRevision(self.rev, self.hash)


class LoggedFile(Value):
    """One file of ours in the followed log: its newest record, the facts of its older versions by
    number, and the versions whose content was `removed`."""

    head: LoggedHead
    older: Mapping[int, VersionFacts]
    removed: frozenset[int]

    @property
    def versions(self) -> dict[int, VersionFacts]:
        """The facts of all versions, oldest first, with or without content."""
        return dict(sorted({**self.older, self.head.version: self.head.facts}.items()))

    @property
    def kept(self) -> list[int]:
        """The versions that still have a content, oldest first."""
        return [number for number in self.versions if number not in self.removed]

    @property
    def deleted(self) -> bool:
        """Whether there is no current version."""
        return self.head.facts.ended > 0

    def version_at(self, when: int) -> int:
        """Return the version that was current at a time in unix seconds by the signers' clocks, 0
        if the file did not exist then."""
        found = 0
        for number, facts in self.versions.items():
            if facts.created <= when:
                found = 0 if 0 < facts.ended <= when else number
        return found


_SERVER_STATEMENTS: Final = "SELECT statement, signature FROM server_statement ORDER BY n"
_LOG: Final = "log"
_POSITION: Final = "position"
_CONTACTS: Final = "contacts"
_LEFT: Final = "left"
_OTHERS_NOTE: Final = "others-note"
_HEAD: Final = "head"
_VERSION: Final = "version"
_REMOVED: Final = "removed"
_LOGIN: Final = "login"
_STATEMENT: Final = "statement"
_CHOICE: Final = "choice"
_EVIDENCE: Final = "evidence"
"""Kinds and keys of vouched rows."""
EVIDENCE: Final = "evidence"
"""Folder in HOME with what proves that a server has lied."""


class ClientState(StateDatabase):
    """Open with `open_client_state`. Every method may raise `LocalError`. Not thread-safe."""

    keyring_file: KeyringFile | None = None
    """The account's keyring, in which distrust stands too."""
    _distrust = ""

    def change_key(self, key: bytes) -> None:
        """Switch to another key (32 bytes), because the old one may be in an attacker's hands.

        Cached data of own files is kept. All verification MACs become invalid, so every record is
        verified again: a holder of the old key could have written MACs in advance, for signatures
        that it cannot make.
        """
        with self.transaction():
            if self.adopt_current_key(key):
                return  # another process has switched already
            entries = list(self.cached_entries())
            self.vouched.change_key(vouched_rows_key(key))
            self.replace_key(key)
            for file_id, digest, entry in entries:
                sealed = self.seal(digest + entry, file_id)
                self.execute("UPDATE file SET entry = ? WHERE file_id = ?", (sealed, file_id))

    # --- the log ------------------------------------------------------------------------------

    def followed(self) -> LogPosition:
        """Return how far the log was followed."""
        value = self.vouched.get(_LOG, _POSITION)
        return LOG_START if value is None else LogPosition.unpack(value)

    def contacts(self) -> dict[bytes, int]:
        """Return the contacts whose statements were found up to `followed`: {hash of the first
        statement: number of the last one in the log}."""
        value = self.vouched.get(_LOG, _CONTACTS)
        return {} if value is None else unpack_contacts(value)

    def left_readers(self) -> tuple[SignedLeave, ...]:
        """Return the leave records of users who were not added again up to `followed`."""
        return unpack_leaves(self.vouched.get(_LOG, _LEFT) or b"")

    def save_followed(
        self,
        position: LogPosition,
        changes: LogChanges,
        contacts: dict[bytes, int],
        start: int = 0,
        saved: LogPosition | None = None,
    ) -> None:
        """Store how far the log was followed, and what was learnt since it had `start` entries.
        Ignored if another process has followed farther: it has learnt the same; if what was known
        at `start` was removed since: the position would claim it; and if the position is not
        `saved` any more, of which the caller knows that it is of the same log."""
        with self.transaction():
            if saved is not None and self.followed() != saved:
                return
            if not start <= self.followed().size <= position.size:
                return
            rows: list[Row] = [
                (_LOG, _POSITION, position.pack()),
                (_LOG, _CONTACTS, pack_contacts(contacts)),
            ]
            if changes.left is not None:
                rows.append((_LOG, _LEFT, pack_leaves(changes.left)))
            rows += [(_HEAD, file_id, head.pack()) for file_id, head in changes.heads.items()]
            rows += self._version_rows(changes.versions)
            rows += [(_REMOVED, _version_key(*place), b"") for place in changes.removed]
            rows += [(_LOGIN, device, b"%d" % when) for device, when in changes.logins.items()]
            rows += [
                (_STATEMENT, f"{one.first.hex()}:{one.n}", one.leaf.pack())
                for one in changes.statements
            ]
            self.vouched.put_many(rows, _replaces)

    def _version_rows(self, versions: Mapping[tuple[str, int], LoggedVersion]) -> list[Row]:
        """Return the rows of versions. The times of those that were encrypted again stay."""
        keys = [_version_key(*place) for place, one in versions.items() if not one.facts.created]
        known = self.vouched.get_many(_VERSION, keys) if keys else {}
        rows = list[Row]()
        for place, version in versions.items():
            key = _version_key(*place)
            before = LoggedVersion.unpack(known[key]) if key in known else None
            rows.append((_VERSION, key, version.with_times_of(before).pack()))
        return rows

    def last_logins(self, devices: Sequence[str]) -> dict[str, int]:
        """Return the times (unix seconds, by the server) of the last logins in the followed log of
        those of `devices` (device_id in hex) that have logged in."""
        return {one: int(when) for one, when in self.vouched.get_many(_LOGIN, devices).items()}

    def logged_files(self) -> dict[str, LoggedFile]:
        """Return what the followed log has of all files of ours, by file_id."""
        heads = dict[str, LoggedHead]()
        versions, removed = dict[str, dict[int, VersionFacts]](), dict[str, set[int]]()
        for kind, key, value in self.vouched.all_rows():
            if kind == _HEAD:
                heads[key] = LoggedHead.unpack(value)
            elif kind == _VERSION:
                file_id, _, number = key.partition(".")
                facts = LoggedVersion.unpack(value).facts
                versions.setdefault(file_id, {})[int(number)] = facts
            elif kind == _REMOVED:
                file_id, _, number = key.partition(".")
                removed.setdefault(file_id, set()).add(int(number))
        return {
            file_id: LoggedFile(
                head, versions.get(file_id, {}), frozenset(removed.get(file_id, ()))
            )
            for file_id, head in heads.items()
        }

    def logged_file(self, file_id: str) -> LoggedFile:
        """Return what `logged_files` has of one file, which the log has."""
        head = self.logged_heads([file_id])[file_id]
        keys = {_version_key(file_id, number): number for number in range(1, head.version + 1)}
        versions = self.vouched.get_many(_VERSION, list(keys))
        removed = self.vouched.get_many(_REMOVED, list(keys))
        older = {keys[key]: LoggedVersion.unpack(value).facts for key, value in versions.items()}
        return LoggedFile(head, older, frozenset(keys[key] for key in removed))

    def statement_leaf(self, first: bytes, n: int) -> bytes | None:
        """Return `FoundLeaf.pack` of statement `n` of a user, from the followed log."""
        return self.vouched.get(_STATEMENT, f"{first.hex()}:{n}")

    def logged_heads(self, file_ids: Sequence[str] | None = None) -> dict[str, LoggedHead]:
        """Return the newest records of these files, or of all, in the followed log."""
        if file_ids is None:
            found = dict(self.vouched.items(_HEAD))
        else:
            found = self.vouched.get_many(_HEAD, file_ids)
        return {file_id: LoggedHead.unpack(value) for file_id, value in found.items()}

    def logged_versions(
        self, places: Sequence[tuple[str, int]], heads: Mapping[str, LoggedHead]
    ) -> dict[tuple[str, int], LoggedVersion]:
        """Return the records of these versions (file_id, number) in the followed log. `heads` is
        what `logged_heads` returns of the files. A version that the log does not have is left
        out."""
        found = {
            (file_id, head.version): LoggedVersion(head.content, head.hash, head.facts)
            for file_id, head in heads.items()
        }
        older = {_version_key(*place): place for place in places if place not in found}
        rows = self.vouched.get_many(_VERSION, list(older))
        return found | {older[key]: LoggedVersion.unpack(value) for key, value in rows.items()}

    def must_pass(self) -> bytes | None:
        """Return the checkpoint that another device of this account has seen and that the log was
        not yet found to pass."""
        return self.vouched.get(_LOG, _OTHERS_NOTE) or None

    def remember_seen(self, seen: SeenCheckpoint) -> None:
        """Store what another device of this account has seen, which was verified. The first session
        that follows the log must pass it."""
        number = ServerStatement.parse(seen.statement).n
        self.remember_server_statement(number, seen.statement, seen.signature)
        self.vouched.put(_LOG, _OTHERS_NOTE, seen.note)

    def forget_must_pass(self) -> None:
        """Record that the log has passed the checkpoint of `must_pass`."""
        self.vouched.put(_LOG, _OTHERS_NOTE, b"")

    def server_statements(self) -> list[tuple[bytes, bytes]]:
        """Return (exact bytes, signature) of every server statement ever in force here. Nobody
        vouches for them: see `sfsc.trust.server_log.stored_statements`."""
        return [(body, signature) for body, signature in self.fetch_rows(_SERVER_STATEMENTS)]

    def remember_server_statement(self, n: int, statement: bytes, signature: bytes) -> None:
        """Store a server statement. All are kept: old receipts need the log key of their time."""
        self.execute(
            "INSERT INTO server_statement VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (n, statement, signature),
        )

    # --- distrust -----------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """Folder of the file, which also holds the keyring."""
        return self._path.parent

    def distrust(self, evidence: str) -> None:
        """Record that the server has shown two histories; `evidence` is the name of the proof in
        the folder of evidence. It stands in the keyring too, because somebody who deletes the state
        or puts an older one in its place must not make this machine forget it. Raises as
        `KeyringFile.update`."""
        self._distrust = evidence
        try:
            self.vouched.put(_LOG, _EVIDENCE, evidence.encode())
        finally:
            self._keep_in_keyring(evidence)

    def distrust_evidence(self) -> Path | None:
        """Return the path of the file given to `distrust`, by any process of this machine, or
        None."""
        name = self._distrust
        if not name and self.keyring_file is not None:
            name = self.keyring_file.contents.distrust
        if not name:
            name = (self.vouched.get(_LOG, _EVIDENCE) or b"").decode()
        return self.home / EVIDENCE / name if name else None

    def _keep_in_keyring(self, evidence: str) -> None:
        file = self.keyring_file
        if file is not None and file.contents.distrust != evidence:
            file.update(lambda keyring: changed(keyring, distrust=evidence))

    def last_server_rotation(self) -> int:
        """Return when keys were last rotated here at the server's request, in unix seconds; 0 for
        never."""
        return self.meta_number("rotated")

    def remember_server_rotation(self, now: int) -> None:
        """Record a rotation at the server's request, in unix seconds."""
        self.set_meta("rotated", now.to_bytes(8))

    def last_failed_rotation(self) -> int:
        """Return when an automatic rotation failed here last, in unix seconds; 0 for never."""
        return self.meta_number("rotation-failed")

    def remember_failed_rotation(self, now: int) -> None:
        """Record a failed automatic rotation, in unix seconds."""
        self.set_meta("rotation-failed", now.to_bytes(8))

    def reencrypt_choice(self, generation: int) -> frozenset[str] | None:
        """Return the files whose contents the rotation to `generation` reencrypts; None for all."""
        value = self.vouched.get(_LOG, _CHOICE) or b""
        if int.from_bytes(value[:8]) != generation or len(value) == 8:
            return None
        text = value[8:].decode()
        return frozenset(text[at : at + 32] for at in range(0, len(text), 32))

    def has_reencrypt_choice(self, generation: int) -> bool:
        """Return whether this machine reencrypted contents in the rotation to `generation`."""
        return int.from_bytes((self.vouched.get(_LOG, _CHOICE) or b"")[:8]) == generation

    def remember_reencrypt_choice(self, generation: int, chosen: frozenset[str] | None) -> None:
        """Store the ids of these files, None for all, for the command that resumes after an
        interruption."""
        value = generation.to_bytes(8) + "".join(sorted(chosen or ())).encode()
        self.vouched.put(_LOG, _CHOICE, value)

    def reset_log(self) -> None:
        """Forget the followed log, all known files, other users' statements and distrust: the
        server's log is followed from its beginning. Raises as `check_saved` and
        `KeyringFile.update`."""
        self.check_saved()
        with self.transaction():
            self.execute("DELETE FROM meta WHERE key = 'received'")
            for table in ("file", "shared", "statement"):
                self.execute(f"DELETE FROM {table}")  # noqa: S608 - constants
            for kind in (_LOG, _HEAD, _VERSION, _REMOVED, _STATEMENT, _LOGIN):
                self.vouched.remove(kind)
        self._keep_in_keyring("")
        self._distrust = ""

    # --- files --------------------------------------------------------------------------------

    def file(self, file_id: str) -> KnownFile | None:
        """Return what is known of a file. Call it before asking the server. Another process may
        learn of a newer revision meanwhile, and an answer that was true when it was given would
        look like a rollback."""
        return self.files([file_id])[file_id]

    def verified_file(self, file_id: str) -> KnownFile | None:
        """Return the known file if its record's signature is marked valid: it may be
        signed again."""
        return self.verified_files([file_id]).get(file_id)

    def verified_files(
        self, file_ids: Sequence[str], *, deleted: bool = False
    ) -> dict[str, KnownFile]:
        """Return those of a few files of which `verified_file` knows something: of files that
        exist, or of `deleted` ones."""
        query = "SELECT vouched, file_id, rev, hash, record, version, deleted FROM file WHERE"
        found = [(row[0], KnownFile(*row[1:])) for row in self._query_files(query, (), file_ids)]
        return {
            known.file_id: known
            for mac, known in found
            if known.deleted == deleted
            and self.check_verification_mac(
                mac, _mac_name(known.file_id, deleted), record_hash(known.record)
            )
        }

    def files(self, file_ids: Sequence[str]) -> dict[str, KnownFile | None]:
        """Return what is known of each of a few files, as `file` does."""
        query = "SELECT file_id, rev, hash, record, version, deleted FROM file WHERE"
        found: dict[str, KnownFile | None] = dict.fromkeys(file_ids)
        found.update((row[0], KnownFile(*row)) for row in self._query_files(query, (), file_ids))
        return found

    def known_revisions(self, file_ids: Sequence[str]) -> dict[str, KnownRevision | None]:
        """Return the known revision of each of a few files, and whether it is marked valid; see
        `file`."""
        query = "SELECT file_id, rev, hash, vouched FROM file WHERE"
        return self.query_revisions(query, (), file_ids)

    def query_revisions(
        self, query: str, values: tuple[str, ...], file_ids: Sequence[str]
    ) -> dict[str, KnownRevision | None]:
        """Run a query for (file_id, rev, hash, MAC) that ends where the file_ids are to be
        selected."""
        found: dict[str, KnownRevision | None] = dict.fromkeys(file_ids)
        for file_id, rev, digest, mac in self._query_files(query, values, file_ids):
            verified = self.check_verification_mac(mac, file_id, digest)
            found[file_id] = KnownRevision(rev, digest, verified)
        return found

    def _query_files(
        self, query: str, values: tuple[str, ...], file_ids: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Run a query that ends where the file_ids are to be selected."""
        marks = ",".join("?" * len(file_ids))
        return self.fetch_rows(f"{query} file_id IN ({marks})", (*values, *file_ids))

    def remember_file(self, known: KnownFile, entry: bytes | None) -> None:
        """Store the newest verified or self-made record of a file, and its listing entry (None:
        none). An older record changes nothing."""
        self.remember_files([(known, entry)])

    def remember_files(self, files: Sequence[tuple[KnownFile, bytes | None]]) -> None:
        """Store several files as `remember_file` does, at about the cost of one."""
        with self.transaction():
            # Sealed under an old key it would never open. A process with the new key lists again.
            cached = self.is_current
            rows = [
                (
                    known.file_id,
                    known.rev,
                    known.hash,
                    known.record,
                    known.version,
                    self.seal(known.hash + entry, known.file_id)
                    if cached and entry is not None
                    else None,
                    self.verification_mac(_mac_name(known.file_id, known.deleted), known.hash),
                    known.deleted,
                )
                for known, entry in files
            ]
            self.execute_many(
                "INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT DO UPDATE SET"
                " rev = excluded.rev, hash = excluded.hash, record = excluded.record,"
                " version = excluded.version, vouched = excluded.vouched,"
                " deleted = excluded.deleted,"
                # The last entry known names the file if the server no longer shows it.
                " shown = CASE WHEN excluded.entry IS NULL AND hash <> excluded.hash"
                " THEN coalesce(entry, shown) WHEN excluded.entry IS NULL THEN shown END,"
                # Keep the entry of the same record: no later listing would return it.
                " entry = coalesce(excluded.entry, CASE WHEN hash = excluded.hash THEN entry END)"
                " WHERE excluded.rev >= rev",
                rows,
            )

    def remember_changes(self, made: Iterable[MadeRecord]) -> None:
        """Store records of our own, each of another file. If one made no content, the listing entry
        of the record before stays, with the new revision. Raises as `entries`."""
        files = [(one[0], KnownFile.from_record(*one)) for one in made]
        if not files:
            return
        keep = [known for record, known in files if record.current and record.op not in CONTENT_OPS]
        with self.transaction():
            wanted = [known.file_id for known in keep] if self.is_current else []
            cached = {file_id: rest for file_id, *rest in self.cached_entries(wanted)}
            found: list[tuple[KnownFile, bytes | None]] = []
            for record, known in files:
                digest, packed = cached.get(known.file_id, (b"", b""))
                entry = None
                if packed and digest == record.prev:
                    before = unpack_entry(known.file_id, packed)
                    entry = changed(before, revision=record.rev).pack()
                found.append((known, entry))
            self.remember_files(found)

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """Yield (file_id, cached listing entry) of all files that have one, in no order. Raises
        `LocalError` if one does not decrypt: the file was changed."""
        return ((file_id, entry) for file_id, _, entry in self.cached_entries())

    def cached_entries(
        self, file_ids: Sequence[str] | None = None
    ) -> Iterator[tuple[str, bytes, bytes]]:
        """Like `entries`, of these files or of all, but yield (file_id, hash of the record that the
        entry describes, entry). The hash is sealed with the entry, so that no other row of the file
        says which it is."""
        query = "SELECT file_id, entry FROM file WHERE entry NOT NULL"
        if file_ids is None:
            rows = self.fetch_rows(query)
        else:
            rows = self._query_files(f"{query} AND", (), file_ids)
        for file_id, sealed in rows:
            plain = self.unseal(sealed, file_id)
            yield file_id, plain[:32], plain[32:]

    def drop_entry(self, file_id: str) -> None:
        """List a file no longer: the server has lost the version that its entry describes."""
        self.execute(
            "UPDATE file SET shown = coalesce(entry, shown), entry = NULL WHERE file_id = ?",
            (file_id,),
        )

    def last_entry(self, file_id: str) -> bytes | None:
        """Return the newest listing entry known of a file, perhaps of an older record; None if
        there is none. Raises as `entries`."""
        query = "SELECT coalesce(entry, shown) AS entry FROM file WHERE file_id = ?"
        row = self.fetch_row(query, (file_id,))
        return None if row is None or row[0] is None else self.unseal(row[0], file_id)[32:]

    def last_entries(self) -> Iterator[tuple[str, bytes]]:
        """Yield what `last_entry` returns for each file that has one, with its file_id. Raises as
        `entries`."""
        query = "SELECT file_id, coalesce(entry, shown) AS entry FROM file"
        for file_id, sealed in self.fetch_rows(f"{query} WHERE coalesce(entry, shown) NOT NULL"):
            yield file_id, self.unseal(sealed, file_id)[32:]

    def remember_last_entries(self, entries: Mapping[str, bytes]) -> None:
        """Store the last entries of files that have none any more, by file_id."""
        with self.transaction():
            if self.is_current:
                rows = [(self.seal(bytes(32) + one, key), key) for key, one in entries.items()]
                query = "UPDATE file SET shown = ? WHERE file_id = ? AND entry IS NULL"
                self.execute_many(query, rows)

    def deleted_files(self) -> dict[str, bytes]:
        """Return the files known to be deleted: {file_id: hash of the record that deleted it}. A
        row counts only if this client has written it."""
        rows = self.fetch_rows("SELECT file_id, hash, vouched FROM file WHERE deleted")
        return {
            file_id: digest
            for file_id, digest, mac in rows
            if self.check_verification_mac(mac, _mac_name(file_id, deleted=True), digest)
        }


def unpack_entry(file_id: str, packed: bytes) -> Entry:
    """Return the listing entry of a file, as it was cached. Raises `LocalError`."""
    try:
        return Entry.unpack(packed)
    except (EncodingError, MessageError) as exc:
        raise LocalError(f"the cached entry of file {file_id} is malformed: {exc}") from exc


def _replaces(kind: str, before: bytes, value: bytes) -> bool:
    """Return whether a row replaces the present one: no head is replaced by an older one."""
    return kind != _HEAD or LoggedHead.unpack(before).rev < LoggedHead.unpack(value).rev


def _version_key(file_id: str, version: int) -> str:
    return f"{file_id}.{version}"


def _mac_name(file_id: str, deleted: bool) -> str:
    """Return the name under which a record is marked as verified: a row cannot be edited into that
    of a deleted file, or back."""
    return f"deleted:{file_id}" if deleted else file_id


def state_path(home: Path) -> Path:
    return home / "state.sqlite3"


def open_client_state(home: Path, file: KeyringFile, *, must_be_saved: bool = True) -> ClientState:
    """Open the state of the account of the keyring `file`. Raises `LocalError`.

    If it need not be saved and the disk is full or read-only, log a warning and open a copy in
    memory. It detects a server that rolls back behind what the file knows, but not, in later
    commands, one that rolls back behind what this command learns.
    """
    path, keyring = state_path(home), file.contents
    account = keyring.server_id + keyring.user.encode()
    key = state_key(keyring.device.xwing_private)
    try:
        if not must_be_saved:
            check_room(path)
        state = ClientState.open_database(path, account, key)
    except LocalError as exc:
        if must_be_saved or not is_unwritable(exc.__cause__):
            raise
        state = ClientState.open_copy(path, account, key)
        _warn_of_copy(home, exc.cause)
    state.keyring_file = file
    return state


def open_state_for_reading(home: Path, file: KeyringFile) -> ClientState:
    """Open the state of the account of the keyring `file` for reading only, without waiting for a
    process that writes. Raises `LocalError`, also if there is no state yet, or if it belongs to
    another account or another key."""
    keyring = file.contents
    account = keyring.server_id + keyring.user.encode()
    key = state_key(keyring.device.xwing_private)
    return ClientState.open_for_reading(state_path(home), account, key)


def _warn_of_copy(home: Path, cause: str) -> None:
    import logging  # rarely needed

    logging.getLogger("sfsc").warning(
        "warning: %s; going on without saving what is learned of the server, so rollback protection"
        " is reduced; make room on the disk of %s, or make the folder writable",
        printable(cause),
        printable(str(home)),
    )


def read_server_statements(path: Path) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return (server_id, `ClientState.server_statements`) from the state at `path`. Used to check a
    proof without any key. Raises `LocalError`."""
    with translate_errors(path):
        if not exists(path):
            hint = "give the log's key by --vkey: `sfsc status` shows it on an enrolled machine"
            raise LocalError(f"no account in {path.parent}", hint)
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            found = database.execute("SELECT value FROM meta WHERE key = 'account'").fetchone()
            if found is None:
                raise sqlite3.DatabaseError("no account is named in it")
            rows = database.execute(_SERVER_STATEMENTS).fetchall()
            if {type(value) for row in (found, *rows) for value in row} != {bytes}:
                raise sqlite3.DatabaseError("a value has a wrong type")
            return found[0][:32], rows
        finally:
            database.close()
