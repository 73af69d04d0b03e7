"""Every decision about a server and its log, without I/O: is it the pinned server, does its log
continue the one we know, does it hold the change that we asked for. (What it says about our files
is judged in `identity`.)

A fresh client believes one thing only, the pinned server_id, which an invitation or a keyring
holds. From there: server_id → server statement → TLS key and log key → checkpoints → receipts.
A judgement that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from protocol.codec import merkle
from protocol.codec.errors import (
    CheckpointError,
    EncodingError,
    LogError,
    MessageError,
    ProofError,
    SignatureError,
)
from protocol.codec.values import Value
from protocol.log import auditlog
from protocol.log import checkpoint as notes
from protocol.log.auditlog import LogEntry
from protocol.log.checkpoint import Verifier, origin_of
from protocol.records.records import ServerStatement, server_id
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import Receipt
from protocol.wire.messages.session import PROTOCOL_VERSION, Session, Welcome
from protocol.wire.messages.sharing import Identity
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    Fork,
    IntegrityError,
    ProtocolFailure,
    Rollback,
    WrongServer,
)

REPORT: Final = "keep what you have; ask others of this server what they see, then its operator"


class TreeHead(Value):
    """A proven state of the log: `size` entries under `root` (32 bytes); `note` says it, signed."""

    size: int
    root: bytes
    note: bytes


_EMPTY_LOG = TreeHead(0, merkle.EMPTY_ROOT, b"")


class SentChange(Value):
    """A change as it was sent, hence as its log entry must say it.

    `record` is the exact bytes that were signed; `signatures` by the hex name of the signing key;
    `tombstone` the same two of the file that a move left.
    """

    op: str
    actor: str
    owner: str | None
    file: str | None
    version: int | None
    record: bytes
    signatures: Mapping[str, bytes]
    tombstone: tuple[bytes, Mapping[str, bytes]] | None = None


class ServerTrust:
    """The server and its log. `newest` is the newest proven point: what a client remembers, and
    the `seen` of its records. Feed it Welcome, then Session, then receipts; a new connection of the
    same client begins again at the Welcome.
    """

    def __init__(
        self, pin: bytes, *, statement: bytes | None = None, newest: TreeHead | None = None
    ) -> None:
        """`pin` is the server_id; the rest is what an earlier session left, if there was one."""
        self.pin = pin
        self._proven: set[tuple[int, bytes]] = set()
        self.newest = newest or _EMPTY_LOG
        self._statement = statement
        self._verifier: Verifier | None = None
        self._at_login = self.newest
        self._unlinked: dict[int, TreeHead] = {}  # by size: of receipts, until they are joined
        self._last_verified = self.newest
        self._last_extension: tuple[TreeHead, TreeHead, tuple[bytes, ...]] | None = None

    @property
    def newest(self) -> TreeHead:
        return self._newest

    @newest.setter
    def newest(self, point: TreeHead) -> None:
        self._newest = point
        self._proven.add((point.size, point.root))

    @property
    def at_login(self) -> TreeHead:
        """The log as it was when the present session began, this login in it."""
        return self._at_login

    def has_proven(self, seen: tuple[int, bytes]) -> bool:
        """Whether (size, root) was once the newest proven point here."""
        return seen in self._proven

    def accept_welcome(self, welcome: Welcome, peer_spki_sha256: bytes) -> ServerStatement:
        """The server's statement, which is now the one in force.

        Raises `WrongServer` where the server or its TLS key is another than the pin leads to,
        `BadRecord` for a statement that is not validly signed, `Rollback` for an older one than is
        known, `Fork` for a second one of the same number, `ProtocolFailure` for no common version.
        """
        if PROTOCOL_VERSION not in welcome.versions:
            raise ProtocolFailure("the server does not speak version 1", "use a newer sfsc")
        statement = _server_statement(welcome.statement)
        shown = server_id(statement.server_pub)
        if shown != self.pin:
            raise WrongServer(
                "this is not the server that was pinned",
                "someone may stand between; ask the operator for the server's id",
                pinned=self.pin.hex(),
                shown=shown.hex(),
            )
        try:
            signature = welcome.signature
            verify_signature(
                Label.SERVER_STATEMENT, welcome.statement, signature, statement.server_pub
            )
            verifier = Verifier.parse(statement.log_vkey)
        except (SignatureError, CheckpointError) as exc:
            raise BadRecord("the server's statement is not validly signed", REPORT) from exc
        if verifier.name != origin_of(self.pin):
            raise BadRecord("the server's statement names the key of another log", REPORT)
        if statement.tls_spki_sha256 != peer_spki_sha256:
            raise WrongServer(
                "the connection does not end at the server that was pinned",
                "someone stands between, or the server has lost its TLS key",
                pinned=statement.tls_spki_sha256.hex(),
                shown=peer_spki_sha256.hex(),
            )
        self._check_successor(statement, welcome.statement)
        self._statement = welcome.statement
        self._verifier = verifier
        return statement

    def _check_successor(self, statement: ServerStatement, body: bytes) -> None:
        if self._statement is None or self._statement == body:
            return
        known = _server_statement(self._statement)
        if statement.n < known.n:
            raise Rollback(
                f"the server shows its statement {statement.n}, after {known.n} was seen", REPORT
            )
        if statement.n == known.n:
            raise Fork(f"the server has signed two statements with the number {known.n}", REPORT)

    def accept_session(self, session: Session) -> None:
        """The log at login must continue the newest point known; it is then the newest.

        Raises `Rollback` for a log that has become shorter, `Fork` for one that does not continue
        ours, `BadRecord` for a checkpoint that is not validly signed.
        """
        point = self._verify_note(session.checkpoint)
        self._check_extends(self.newest, point, session.consistency)
        self._check_same_size(point)
        self._at_login = self.newest = point
        if self._unlinked:
            # What the session before left loose was proven from another opening than this.
            self._unlinked[point.size] = point

    def accept_enrolment(self, session: Session, sent: SentChange) -> LogEntry:
        """The first session of a new account: its receipt must show the statement in the log.

        Raises as `session` and `receipt` do, and `BadReceipt` where there is none.
        """
        if session.receipt is None:
            raise BadReceipt("the server does not prove the enrolment")
        before = self.newest, self._at_login
        self.accept_session(session)
        try:
            entry = self.verify_receipt(session.receipt, sent)
        except IntegrityError:
            self._proven.discard((self.newest.size, self.newest.root))
            self.newest, self._at_login = before
            raise
        self.close_gaps([])  # the first receipt of a session leaves no gap
        return entry

    def verify_receipt(self, receipt: Receipt, sent: SentChange) -> LogEntry:
        """The log entry of a change, proven to say what was sent and to stand in a log that
        continues the one this session opened with. `join` is still to come.

        Raises `BadReceipt` for an entry that says something else or is not in the checkpoint,
        `Rollback` and `Fork` for a log that does not continue the one this session opened with.
        """
        point = self._verify_note(receipt.checkpoint)
        try:
            entry = auditlog.parse(receipt.line)
            leaf = merkle.leaf_hash(entry.hash)
            merkle.verify_inclusion(leaf, entry.seq, point.size, receipt.inclusion, point.root)
        except (LogError, ProofError) as exc:
            raise BadReceipt(f"the log does not prove the change: {exc}", REPORT) from exc
        _check_matches(entry, sent)
        self._check_extends(self._at_login, point, receipt.consistency)
        self._add_unlinked(point)
        return entry

    def verify_statements(
        self, shown: Identity, user: str
    ) -> list[tuple[bytes, tuple[bytes, ...]]]:
        """The (exact bytes, signatures) of statements of `user`, each proven to stand in a log that
        continues the one this session opened with; `join` is still to come. Whether they are
        validly signed, and follow from each other, is yet to be judged. Raises as `receipt`."""
        point = self._verify_note(shown.checkpoint)
        for one in shown.statements:
            try:
                entry = auditlog.parse(one.line, seq=one.index)
                leaf = merkle.leaf_hash(entry.hash)
                merkle.verify_inclusion(leaf, one.index, point.size, one.inclusion, point.root)
            except (LogError, ProofError) as exc:
                raise BadReceipt(f"the log does not prove a statement: {exc}", REPORT) from exc
            if (entry.owner, entry.rec) != (user, one.statement):
                raise BadReceipt("the log has another statement than is shown", REPORT)
        self._check_extends(self._at_login, point, shown.consistency)
        self._add_unlinked(point)
        return [(one.statement, one.signatures) for one in shown.statements]

    def check_older_checkpoint(
        self, note: bytes, prove: Callable[[tuple[int, int]], tuple[bytes, ...]]
    ) -> None:
        """Check that the log continues the checkpoint `note`, which another machine of ours has
        seen: it comes out of our own sealed bundle, and the log's key may be another since. `prove`
        asks for the consistency of two sizes. Raises `Rollback`, `Fork`."""
        try:
            said = notes.read(note)
        except CheckpointError as exc:
            raise BadRecord(f"the bundle's checkpoint is malformed: {exc}") from exc
        known = TreeHead(said.size, said.root, note)
        if known.size > self.newest.size:
            raise Rollback(
                f"the server's log has {self.newest.size} entries, after {known.size} were seen",
                REPORT,
            )
        if known.size:
            self._check_extends(known, self.newest, prove((known.size, self.newest.size)))

    @property
    def log_vkey(self) -> str:
        """The log's verification key in force; "" before the Welcome."""
        return "" if self._verifier is None else self._verifier.vkey

    def accept_checkpoint(self, note: bytes, consistency: tuple[bytes, ...]) -> None:
        """The log's present, proven from the opening of this session; `join` is still to come.
        Raises as `receipt`."""
        point = self._verify_note(note)
        self._check_extends(self._at_login, point, consistency)
        self._add_unlinked(point)

    @staticmethod
    def verify_checkpoint(note: bytes, keys: Iterable[Verifier]) -> TreeHead:
        """What a checkpoint says that somebody else has seen: it may be from before the log had the
        key that it has now. Raises `BadRecord` where none of `keys` has signed it."""
        failure: CheckpointError | None = None
        for key in keys:
            try:
                checkpoint = notes.verify(note, key)
            except CheckpointError as exc:
                failure = exc
                continue
            return TreeHead(checkpoint.size, checkpoint.root, note)
        hint = "it should be an `audit checkpoint` of somebody else at the same server"
        raise BadRecord(f"this is no checkpoint of this server's log: {failure}", hint)

    def check_continues(
        self, known: TreeHead, point: TreeHead, consistency: tuple[bytes, ...]
    ) -> None:
        """That the log of a proven `point`, which was the newest when the proof was asked for,
        continues `known`. Raises `Rollback`, `Fork`."""
        self._check_extends(known, point, consistency)

    def check_included(self, entry: LogEntry, point: TreeHead, proof: tuple[bytes, ...]) -> None:
        """That the log of a proven `point` has the entry. Raises `BadReceipt`."""
        try:
            leaf = merkle.leaf_hash(entry.hash)
            merkle.verify_inclusion(leaf, entry.seq, point.size, proof, point.root)
        except ProofError as exc:
            raise BadReceipt(f"the log does not prove entry {entry.seq}: {exc}", REPORT) from exc

    def consistency_gaps(self) -> list[tuple[int, int]]:
        """Pairs of log sizes, smaller and larger, whose consistency `join` needs proofs of.

        Receipts that each continue the opening of their session may be of logs that part after
        it. They are of one log when each checkpoint is proven from the one before it.
        """
        return [(old.size, new.size) for old, new in pairwise(self._unlinked_chain())]

    def close_gaps(self, proofs: Sequence[tuple[bytes, ...]]) -> None:
        """Take all checkpoints of receipts as proven; the largest is then `newest`.

        `proofs` are of `gaps`, in its order. Raises `Fork` where they do not hold.
        """
        chain = self._unlinked_chain()
        for (old, new), proof in zip(pairwise(chain), proofs, strict=True):
            self._check_extends(old, new, proof)
        self._unlinked.clear()
        if chain:
            self.newest = chain[-1]

    def _unlinked_chain(self) -> list[TreeHead]:
        """The checkpoints that must prove to be of one log, by size."""
        points = dict(self._unlinked)
        # The opening itself is left out: a receipt of its session was proven from it already.
        if points and self.newest is not self._at_login:
            points[self.newest.size] = self.newest
        return [points[size] for size in sorted(points)]

    def _add_unlinked(self, point: TreeHead) -> None:
        """A point that was proven from the opening; loose until it is joined."""
        self._check_same_size(point)
        if point.size != self.newest.size:
            self._unlinked[point.size] = point

    def _check_same_size(self, point: TreeHead) -> None:
        """Two checkpoints of one size are one checkpoint, whatever each was proven from."""
        for known in (self.newest, self._unlinked.get(point.size, point)):
            if known.size == point.size and known.root != point.root:
                raise Fork(
                    f"the server has signed two logs of {point.size} entries",
                    REPORT,
                    notes=(known.note, point.note),
                )

    def _verify_note(self, note: bytes) -> TreeHead:
        """What a signed note says. Those of one commit are the same bytes: verified once."""
        if note == self._last_verified.note:
            return self._last_verified
        if self._verifier is None:
            raise ProtocolFailure("a checkpoint before the server has said who it is")
        try:
            checkpoint = notes.verify(note, self._verifier)
        except CheckpointError as exc:
            raise BadRecord(f"the log's checkpoint is not valid: {exc}", REPORT) from exc
        self._last_verified = TreeHead(checkpoint.size, checkpoint.root, note)
        return self._last_verified

    def _check_extends(self, known: TreeHead, point: TreeHead, proof: tuple[bytes, ...]) -> None:
        """That `point` continues `known`. The receipts of one commit prove the same by the same:
        what was proven last is not worked out again."""
        if self._last_extension == (known, point, proof):
            return
        if point.size < known.size:
            raise Rollback(
                f"the server's log has {point.size} entries, after {known.size} were seen",
                REPORT,
                notes=(known.note, point.note),
            )
        try:
            merkle.verify_consistency(known.size, known.root, point.size, point.root, proof)
        except ProofError as exc:
            raise Fork(
                f"the server's log does not continue the one seen before: {exc}",
                REPORT,
                notes=(known.note, point.note),
            ) from exc
        self._last_extension = (known, point, proof)


def _server_statement(body: bytes) -> ServerStatement:
    try:
        return ServerStatement.parse(body)
    except (EncodingError, MessageError) as exc:
        raise BadRecord(f"the server's statement is malformed: {exc}") from exc


def _check_matches(entry: LogEntry, sent: SentChange) -> None:
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
        raise BadReceipt("the log has an entry for the change that says something else", REPORT)
