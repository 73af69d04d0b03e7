"""Every decision about a server and its log, without I/O: whether it is the pinned server, its log
continues the known one, and the log holds a requested change. (Answers about files are verified in
`file_records`.)

A new client trusts only the pinned server_id, from an invitation or a keyring. From there:
server_id → server statement → TLS key and log key → checkpoints → receipts. A method that raises
has changed nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Final, Self, TypeAlias

from protocol.codec import merkle
from protocol.codec.base64text import to_text
from protocol.codec.errors import (
    CheckpointError,
    EncodingError,
    MessageError,
    ProofError,
    SignatureError,
)
from protocol.codec.values import Value
from protocol.log import checkpoint as notes
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Verifier, origin_of
from protocol.records.records import FileRecord, ServerStatement, server_id
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Receipt
from protocol.wire.messages.session import PROTOCOL_VERSION, Welcome
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    Fork,
    ProtocolFailure,
    Rollback,
    WrongServer,
)
from sfsc.keys.bundle import SeenCheckpoint
from sfsc.library_log import log_warning
from sfsc.trust import follower
from sfsc.trust.followed_log import parse_line

REPORT: Final = follower.REPORT


class TreeHead(Value):
    """A proven state of the log: `size` entries under `root` (32 bytes), signed in `note`."""

    size: int
    root: bytes
    note: bytes


_EMPTY_LOG = TreeHead(0, merkle.EMPTY_ROOT, b"")


LoggedRecord: TypeAlias = tuple[bytes, Mapping[str, bytes]]
"""Exact bytes of a record, and its signatures, as `LogEntry.records`."""


class SentChange(Value):
    """A change as it was sent, which its log entry must match. `record` is the exact bytes that
    were signed; `signatures` are keyed by the hex name of the signing key; `tombstone` is the same
    pair for the file that a move left."""

    op: str
    actor: str
    owner: str | None
    file: str | None
    version: int | None
    record: bytes
    signatures: Mapping[str, bytes]
    tombstone: LoggedRecord | None = None

    @property
    def records(self) -> tuple[LoggedRecord, ...]:
        """The records of the change: one, or the two of a move."""
        first = self.record, self.signatures
        return (first,) if self.tombstone is None else (first, self.tombstone)


class ServerTrust:
    """Trust state of one server and its log. `newest` is the newest tree head to which the log was
    followed: the `seen` of this client's records. Call `accept_welcome` for each connection, then
    `verify_note` for each checkpoint; the caller follows the log to it and sets `newest`."""

    def __init__(
        self, pin: bytes, *, statement: bytes | None = None, signature: bytes = b""
    ) -> None:
        """`pin` is the server_id. The server's statement with its signature comes from an earlier
        session, if there was one."""
        self.pin = pin
        self._proven: set[tuple[int, bytes]] = set()
        self.newest = _EMPTY_LOG
        self._statement = statement
        self._signature = signature
        self._verifier: Verifier | None = None
        self._last_verified = self.newest
        self._last_note: bytes | None = None
        self._last_extension: tuple[TreeHead, TreeHead, tuple[bytes, ...]] | None = None

    @classmethod
    def from_stored(cls, pin: bytes, stored: Iterable[tuple[bytes, bytes]]) -> Self:
        """Begin with the newest of the `stored` statements that counts; see `stored_statements`."""
        found = stored_statements(pin, stored)
        statement, signature = found[0][:2] if found else (None, b"")
        return cls(pin, statement=statement, signature=signature)

    @property
    def newest(self) -> TreeHead:
        return self._newest

    @newest.setter
    def newest(self, point: TreeHead) -> None:
        self._newest = point
        self._proven.add((point.size, point.root))

    def has_proven(self, seen: tuple[int, bytes]) -> bool:
        """Return whether (size, root) was once the newest tree head here."""
        return seen in self._proven

    def accept_welcome(self, welcome: Welcome, peer_spki_sha256: bytes) -> ServerStatement:
        """Verify the server's statement and make it the one in force.

        Raises `WrongServer` if the server or its TLS key does not match the pin, `BadRecord` for a
        statement that is not validly signed, `Rollback` for an older one than the known one, `Fork`
        for another one with the same number, and `ProtocolFailure` without a common version.
        """
        if PROTOCOL_VERSION not in welcome.versions:
            raise ProtocolFailure("the server does not support version 2", "use a newer sfsc")
        statement = _server_statement(welcome.statement)
        shown = server_id(statement.server_pub)
        if shown != self.pin:
            raise WrongServer(
                "this is not the pinned server",
                "someone may intercept the connection; ask the operator for the server's id",
                pinned=self.pin.hex(),
                shown=shown.hex(),
            )
        _, verifier = verify_statement(self.pin, welcome.statement, welcome.signature)
        if peer_spki_sha256 not in statement.tls_spki_sha256:
            raise WrongServer(
                "the connection does not end at the pinned server",
                "someone intercepts it, or the server has lost its TLS key: ask the operator",
                pinned=" or ".join(one.hex() for one in statement.tls_spki_sha256),
                shown=peer_spki_sha256.hex(),
            )
        shown_now = (welcome.statement, welcome.signature)
        if self._statement is not None:
            _check_successor((self._statement, self._signature), shown_now)
        self._statement, self._signature = shown_now
        self._verifier = verifier
        return statement

    def verify_receipt(self, receipt: Receipt, sent: SentChange) -> tuple[LogEntry, TreeHead]:
        """Return the log entry of a change, which matches what was sent, and the signed checkpoint
        with it. The caller must follow the log to that checkpoint, and find the entry there. Raises
        `BadReceipt` and `BadRecord`."""
        point = self.verify_note(receipt.checkpoint)
        entry = parse_line(receipt.line)
        check_matches(entry, sent)
        return entry, point

    def seen_checkpoint(self) -> SeenCheckpoint | None:
        """Return the newest proven tree head for the account's other devices, None for an empty
        log."""
        if self._statement is None or not self.newest.size:
            return None
        return SeenCheckpoint(self.newest.note, self._statement, self._signature)

    def verify_seen(self, seen: SeenCheckpoint) -> TreeHead:
        """Return the tree head that a bundle says another device of the account has proven. Raises
        `BadRecord` unless log and server have signed it: then it says nothing of the server, only
        that a holder of the account's keys has made it up."""
        _, verifier = verify_statement(self.pin, seen.statement, seen.signature)
        try:
            signed = notes.verify(seen.note, verifier)
        except CheckpointError as exc:
            raise BadRecord(f"the bundle's checkpoint is not valid: {exc}") from exc
        return TreeHead(signed.size, signed.root, seen.note)

    def find_seen(self, seen: SeenCheckpoint) -> TreeHead | None:
        """Return what `verify_seen` does; None, with a warning, if log or server have not signed
        it: somebody with a copy of the account's keys can seal a bundle of any content."""
        try:
            return self.verify_seen(seen)
        except BadRecord as exc:
            what = "the account's bundle has a false checkpoint, which is left out"
            hint = "somebody with the account's keys made it: see `sfsc device list`"
            log_warning(what, exc.cause, hint)
            return None

    def check_seen_statement(self, seen: SeenCheckpoint) -> None:
        """Check that the server's statement continues the one that another device has seen. Raises
        `Rollback` and `Fork`."""
        if self._statement is not None:
            shown = (self._statement, self._signature)
            _check_successor((seen.statement, seen.signature), shown)

    def signed_statement(self) -> str:
        """Return the server's statement in force and its signature as text, for evidence; "" before
        the first Welcome."""
        if self._statement is None:
            return ""
        return _signed_text(self._statement, self._signature).decode()

    @property
    def log_vkey(self) -> str:
        """The log's verification key in force; "" before the Welcome."""
        return "" if self._verifier is None else self._verifier.vkey

    @staticmethod
    def verify_checkpoint(note: bytes, keys: Iterable[Verifier]) -> TreeHead:
        """Return the tree head of a checkpoint that another user has seen. It may predate the log's
        current key. Raises `BadRecord` if none of `keys` has signed it."""
        failure: CheckpointError | None = None
        for key in keys:
            try:
                checkpoint = notes.verify(note, key)
            except CheckpointError as exc:
                failure = exc
                continue
            return TreeHead(checkpoint.size, checkpoint.root, note)
        hint = "it should come from `sfsc audit checkpoint` of another user of this server"
        raise BadRecord(f"not a checkpoint of this server's log: {failure}", hint)

    def check_included(self, entry: LogEntry, point: TreeHead, proof: tuple[bytes, ...]) -> None:
        """Check that the log of a proven tree head `point` has the entry. Raises `BadReceipt`."""
        try:
            leaf = merkle.leaf_hash(entry.leaf_data)
            merkle.verify_inclusion(leaf, entry.seq, point.size, proof, point.root)
        except ProofError as exc:
            raise BadReceipt(f"the log does not prove entry {entry.seq}: {exc}", REPORT) from exc

    def verify_note(self, note: bytes) -> TreeHead:
        """Return the tree head of a note that the log's key in force has signed; only that
        signature is kept in it. Notes of one commit are equal, and verified once. Raises
        `BadRecord`."""
        if note == self._last_note:
            return self._last_verified
        if self._verifier is None:
            raise ProtocolFailure("the server sent a checkpoint before its statement")
        try:
            checkpoint, own = notes.verify_own(note, self._verifier)
        except CheckpointError as exc:
            raise BadRecord(f"the log's checkpoint is not valid: {exc}", REPORT) from exc
        self._last_note = note
        self._last_verified = TreeHead(checkpoint.size, checkpoint.root, own)
        return self._last_verified

    def check_continues(self, known: TreeHead, point: TreeHead, proof: tuple[bytes, ...]) -> None:
        """Check that the log at `point` continues the log at `known`. Receipts of one commit repeat
        a proof; the last one checked is not checked again. Raises `Rollback`, `Fork`."""
        if self._last_extension == (known, point, proof):
            return
        if point.size < known.size:
            raise Rollback(
                f"the server's log has {point.size} entries, fewer than {known.size} seen",
                REPORT,
                notes=(known.note, point.note),
            )
        try:
            merkle.verify_consistency(known.size, known.root, point.size, point.root, proof)
        except ProofError as exc:
            raise Fork(
                f"the server's log does not continue the known one: {exc}",
                REPORT,
                notes=(known.note, point.note),
            ) from exc
        self._last_extension = (known, point, proof)


def verify_statement(pin: bytes, body: bytes, signature: bytes) -> tuple[ServerStatement, Verifier]:
    """Return a statement of the server whose id is `pin`, and the log's key in it. Raises
    `BadRecord`."""
    statement = _server_statement(body)
    if server_id(statement.server_pub) != pin:
        raise BadRecord("the statement is of another server", REPORT)
    try:
        verify_signature(Label.SERVER_STATEMENT, body, signature, statement.server_pub)
        verifier = Verifier.parse(statement.log_vkey)
    except (SignatureError, CheckpointError) as exc:
        raise BadRecord("the server's statement is not validly signed", REPORT) from exc
    if verifier.name != origin_of(pin):
        raise BadRecord("the server's statement names the key of another log", REPORT)
    return statement, verifier


def stored_statements(
    pin: bytes, stored: Iterable[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes, Verifier]]:
    """Return those of the `stored` statements (exact bytes, signature) that this server has signed,
    newest first, with the log's key in each. The others do not count: somebody else may have
    written to the file."""
    found = []
    for body, signature in stored:
        try:
            statement, verifier = verify_statement(pin, body, signature)
        except BadRecord:
            continue
        found.append((statement.n, body, signature, verifier))
    return [one[1:] for one in sorted(found, key=lambda one: one[0], reverse=True)]


def log_keys(pin: bytes, stored: Iterable[tuple[bytes, bytes]]) -> list[Verifier]:
    """Return the log keys in these statements, newest first; see `stored_statements`."""
    return [verifier for _, _, verifier in stored_statements(pin, stored)]


def _server_statement(body: bytes) -> ServerStatement:
    try:
        return ServerStatement.parse(body)
    except (EncodingError, MessageError) as exc:
        raise BadRecord(f"the server's statement is malformed: {exc}") from exc


def _check_successor(known: tuple[bytes, bytes], shown: tuple[bytes, bytes]) -> None:
    """Check that the server statement `shown` is the `known` one or a later one; each is its exact
    bytes and its signature. Raises `Rollback`, `Fork`."""
    if known[0] == shown[0]:
        return
    before, now = _server_statement(known[0]).n, _server_statement(shown[0]).n
    if now < before:
        raise Rollback(f"the server shows its statement {now} after statement {before}", REPORT)
    if now == before:
        cause = f"the server has signed two statements with the number {now}"
        raise Fork(cause, REPORT, notes=(_signed_text(*known), _signed_text(*shown)))


def _signed_text(body: bytes, signature: bytes) -> bytes:
    """Return a signed server statement as text, for a file of evidence."""
    lines = "server statement, base64", to_text(body), "signature, base64", to_text(signature)
    return "".join(f"{line}\n" for line in lines).encode()


def check_matches(entry: LogEntry, sent: SentChange) -> None:
    """Check that the entry is the change that was sent. Raises `BadReceipt`."""
    said = SentChange(
        entry.op,
        entry.actor,
        entry.owner,
        entry.file,
        entry.version,
        entry.rec or b"",
        entry.sigs,
        entry.records[1] if len(entry.records) > 1 else None,
    )
    if said != sent:
        raise BadReceipt("the log entry of the change differs from what was sent", REPORT)


def quoted_note(record: FileRecord, body: bytes) -> bytes:
    """Return a signed record as evidence of the checkpoint that its signer saw."""
    size, root = record.seen
    text = f"{record.actor} signed that the log had {size} entries under {root.hex()}:\n"
    return text.encode() + base64.b64encode(body) + b"\n"
