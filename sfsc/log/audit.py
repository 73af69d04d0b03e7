"""Audit of the server's log by a user: read it, verify it without a gap, compare it with another
checkpoint, and export proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from protocol.codec.errors import RemoteProtocolError, SignatureError
from protocol.codec.values import Value
from protocol.log.auditlog import IDENTITY_OPS, LogEntry
from protocol.log.tlogproof import TlogProof
from protocol.records.record_signatures import verify_record_signature
from protocol.records.records import FileRecord, Statement, record_hash
from protocol.records.signatures import Label
from protocol.wire.messages.base import DamagedVersion, Receipt
from protocol.wire.messages.log import CONSISTENCY, LogProof
from sfsc.errors import BadRecord, BrokenChain, Damaged, NotFound, Rollback
from sfsc.log.account_log import RECORDS, AccountLog
from sfsc.session.pipeline import changed_since
from sfsc.session.server_errors import expect_proof
from sfsc.session.session import Session
from sfsc.trust.followed_log import parse_line
from sfsc.trust.server_log import REPORT, log_keys


class LogEvent(Value):
    """A log entry as it concerns this account. `time` is the server's claim. `name` is the file's
    name if known; `version` is None if the op makes or reads none."""

    seq: int
    time: str
    op: str
    actor: str
    owner: str | None
    file_id: str | None
    name: str | None
    version: int | None
    detail: dict[str, object]


class VerifiedHistory(Value):
    """A verified account history: number of its entries, size of the log, signed records and
    statements, and the files whose last records are the same in the store and the log."""

    entries: int
    log_size: int
    records: int
    statements: int
    files: int


class Audit:
    """Audits the log over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._log = AccountLog(session)
        self._later: list[LogEntry] = []

    def _later_entries(self) -> list[LogEntry]:
        """Return all entries of the account after those that `entries` returned last."""
        self._later += self._log.later_entries()
        return self._later

    # --- reading ------------------------------------------------------------------------------

    def entries(self) -> list[LogEntry]:
        """Return all entries of the account; see `AccountLog.entries`."""
        self._later.clear()
        return self._log.entries()

    def log(self, file_id: str | None, names: dict[str, str]) -> Iterator[LogEvent]:
        """Return the events of the account, or of one of its files. `names` maps file_ids to names.

        Raises as `entries`, and `NotFound` if the file has no entries.
        """
        events = [
            event
            for entry in self.entries()
            for event in _events(entry, names)
            if file_id is None or file_id in (event.file_id, _origin(entry))
        ]
        if not events:
            raise NotFound("the log has no entry of this file", "run `sfsc ls` to see its name")
        return iter(events)

    # --- verifying ----------------------------------------------------------------------------

    def verify(self, chain: Callable[[], tuple[bytes, ...]]) -> VerifiedHistory:
        """Verify the account's whole history; `chain` fetches its statements up to the last one.

        Every change of its files has a signature of its own and follows from the one before. The
        last record of each file in the log is the one in the store. Every statement in its name
        belongs to the chain. Raises `BadRecord`, `BrokenChain`, `Rollback`, and as `entries`.
        """
        user, entries = self._session.account.user, self.entries()
        statements = chain()  # fetched later, so it includes all statements in `entries`
        heads: dict[str, tuple[FileRecord, bytes]] = {}
        logged: list[bytes] = []
        records = 0
        keys = _signing_keys(statements)
        self._session.progress.expect_items(len(entries))
        for entry in entries:
            self._session.progress.advance_items()
            if entry.owner != user:
                continue
            if entry.op in IDENTITY_OPS:
                logged.append(entry.rec or b"")
            elif entry.op in RECORDS:
                for body, sigs in entry.records:
                    self._follow(heads, body, sigs, keys, entry.seq)
                    records += 1
        known = len(logged)
        if known < len(statements):  # another machine has made some since: read them, too
            logged += [
                entry.rec or b""
                for entry in self._later_entries()
                if entry.owner == user and entry.op in IDENTITY_OPS
            ]
        if known > len(statements) or tuple(logged[: len(statements)]) != statements:
            raise BrokenChain(
                "the log has statements of this account that are not in its chain",
                REPORT,
                pinned=self._session.account.first.hex(),
            )
        files = self._compare(heads)
        size = self._session.trust.newest.size
        return VerifiedHistory(len(entries), size, records, len(statements), files)

    def _follow(
        self,
        heads: dict[str, tuple[FileRecord, bytes]],
        body: bytes,
        sigs: dict[str, bytes],
        keys: dict[int, bytes],
        seq: int,
    ) -> None:
        """Verify the next signed record. Raises `BadRecord`."""
        try:
            record = FileRecord.parse(body)
            public = keys.get(record.generation, b"")
            if len(sigs) != 1:
                raise SignatureError("not one signature")
            account = self._session.account
            verify_record_signature(
                Label.RECORDS,
                next(iter(sigs.values())),
                record_hash(body),
                public,
                server=account.server_id,
                owner_first=account.first,
                generation=record.generation,
            )
        except RemoteProtocolError as exc:
            raise BadRecord(
                f"entry {seq} of the log has a change without our signature", REPORT
            ) from exc
        before = heads.get(record.file_id)
        expected = (1, b"") if before is None else (before[0].rev + 1, record_hash(before[1]))
        if (record.rev, record.prev) != expected or record.owner != self._session.account.user:
            raise BadRecord(f"entry {seq} of the log is not the next change of its file", REPORT)
        heads[record.file_id] = record, body

    def _compare(self, heads: dict[str, tuple[FileRecord, bytes]]) -> int:
        """Check that every file of the store is in the log with its last record, and vice versa.
        For files changed since the entries were read, the log must have that record by now. Raises
        `Rollback`, `Damaged`."""
        missing, others = dict(heads), set[bytes]()
        damaged: list[DamagedVersion] = []
        for page in changed_since(self._session, 0):
            damaged += page.damaged
            for one in page.damaged:
                missing.pop(one.file_id, None)
            for view in page.views:
                file = self._session.account.verify_newest(view, None, None)
                _, body = missing.pop(file.file_id, (None, b""))
                if body != file.head_body:
                    others.add(file.head_body)
        if others:
            others.difference_update(
                body for entry in self._later_entries() for body, _ in entry.records
            )
        if others:
            raise Rollback("store and log have different last records of a file", REPORT)
        if missing:
            raise Rollback(f"files in the log but not in the store: {len(missing)}", REPORT)
        if damaged:
            cause = "the log is complete, but the server has damaged files: `sfsc ls` names them"
            raise Damaged(cause, file_id=damaged[0].file_id, version=damaged[0].version)
        return len(heads)

    # --- comparing, carrying away -------------------------------------------------------------

    def compare(self, note: bytes) -> tuple[int, int]:
        """Verify that another user's checkpoint `note` is one of the log that we see. Return (size
        in the note, our size).

        Raises `BadRecord` for a note that no key of the log has signed, `Fork` and `Rollback`.
        """
        session = self._session
        session.refresh_log()
        try:
            theirs = session.trust.verify_checkpoint(
                note, log_keys(session.trust.pin, session.state.server_statements())
            )
        except BadRecord as exc:
            exc.blames_server = False  # the note does not come from it
            raise
        with session.keeping_evidence():
            ours = session.trust.newest
            if theirs.size > ours.size:
                raise Rollback(
                    f"the log has {ours.size} entries here, but {theirs.size} were seen elsewhere",
                    REPORT,
                    notes=(theirs.note, ours.note),
                )
            session.trust.check_continues(theirs, ours, self._consistency(theirs.size, ours.size))
        return theirs.size, ours.size

    def proof_of(self, receipt: Receipt | None, record: bytes) -> bytes:
        """Return a C2SP tlog-proof that the log holds `record`, whose `receipt` shows the line if
        there is one. Raises `NotFound` if the log has no such entry, and `BadReceipt`."""
        if receipt is not None:
            entry, line = parse_line(receipt.line), receipt.line
        else:
            found = self._log.find_line(record)
            if found is None:
                raise NotFound("the log has no such change")
            entry, line = found
        point, inclusion = self._log.prove_entry(entry)
        return TlogProof(entry.seq, line, inclusion, point.note).encode()

    # --- asking -------------------------------------------------------------------------------

    def _consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        if old in (0, new):
            return ()
        return expect_proof(self._session.ask(LogProof(CONSISTENCY, old, new)))


def _events(entry: LogEntry, names: dict[str, str]) -> Iterator[LogEvent]:
    """Yield the events of an entry, one for each file that it is about, at least one."""
    shown: dict[str, object] = {
        key: entry.detail[key]
        for key in ("address", "reason", "why", "purged", "from")
        if key in entry.detail
    }
    for file, version in entry.versions or ((None, entry.version),):
        yield LogEvent(
            entry.seq,
            entry.time,
            entry.op,
            entry.actor,
            entry.owner,
            file,
            None if file is None else names.get(file),
            version,
            shown,
        )


def _origin(entry: LogEntry) -> str | None:
    """Return the file_id that a move has ended, None for any other entry."""
    origin = entry.detail.get("from")
    return str(origin[0]) if entry.op == "move" and isinstance(origin, list) and origin else None


def _signing_keys(statements: tuple[bytes, ...]) -> dict[int, bytes]:
    """Return the signing key of every generation in the chain."""
    parsed = [Statement.parse(body) for body in statements]
    return {one.generation: one.sign_pub for one in parsed}
