"""The entries of our own account in the server's log, all of them."""

from __future__ import annotations

from typing import Final

from protocol.codec.errors import RemoteProtocolError
from protocol.log.auditlog import LogEntry
from protocol.records.records import FileRecord
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from protocol.wire.messages.log import INCLUSION, LogLines, LogLinesPage, LogProof
from sfsc.errors import BadRecord
from sfsc.session.follow import follow_log, shown_lines
from sfsc.session.server_errors import expect_proof, expect_reply
from sfsc.session.session import LOGGED_AS, Session
from sfsc.trust.followed_log import FollowedLog, parse_line
from sfsc.trust.server_log import REPORT, TreeHead

RECORDS: Final = frozenset(LOGGED_AS.values())
"""Ops of entries that hold signed records of files."""


class AccountLog:
    """Reads and verifies the account's log entries over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._log: FollowedLog | None = None

    def entries(self) -> list[LogEntry]:
        """Return all entries of the account, oldest first, up to the present end of the log, which
        is followed from its beginning. Raises as `FollowedLog`."""
        keyring = self._session.keyring
        self._log = FollowedLog(keyring.server_id, keyring.user, keyring.first, keyring.tag_key)
        return self.later_entries()

    def later_entries(self) -> list[LogEntry]:
        """Return the account's entries after those that were returned before."""
        session, log = self._session, self._log
        if log is None:
            return self.entries()

        def follow() -> None:
            head = session.refresh_log()
            with session.keeping_evidence(head):
                follow_log(session.transport, log, head, session.progress)

        session.with_reconnect(follow)
        return [entry for _, entry in sorted(log.take_entries().items())]

    def verify_records(self, entry: LogEntry) -> list[tuple[FileRecord, bytes]]:
        """Return the records in an entry about our files, with their exact bytes, each signed by a
        key of ours. Keys that were ended or undone count: their records remain in the chain. Raises
        `BadRecord`."""
        account, found = self._session.account, list[tuple[FileRecord, bytes]]()
        for body, sigs in entry.records:
            try:
                generation = FileRecord.parse(body).generation
            except RemoteProtocolError as exc:
                cause = f"entry {entry.seq} of the log has a malformed record"
                raise BadRecord(cause, REPORT) from exc
            signatures = (GenerationSignature(generation, one) for one in sigs.values())
            signed = SignedRecord(body, tuple(signatures))
            found.append((account.verify_record(signed, None, historic=True), body))
        return found

    def find_line(self, record: bytes) -> tuple[LogEntry, bytes] | None:
        """Return the entry with these exact bytes of a record, and its line, None if the log has
        none. `prove_entry` proves both. Raises as `entries`."""
        for entry in self.entries():
            if any(body == record for body, _ in entry.records):
                asked = LogLines((entry.seq,))
                page = expect_reply(self._session.ask(asked), LogLinesPage)
                [(_, line)] = shown_lines(page, asked.seqs)
                return parse_line(line, entry.seq), line
        return None

    def prove_entry(self, entry: LogEntry) -> tuple[TreeHead, tuple[bytes, ...]]:
        """Return the followed log and a verified proof that it has `entry`. Raises `BadReceipt`,
        and as `Session.refresh_log`."""
        point = self._session.refresh_log()
        proof = expect_proof(self._session.ask(LogProof(INCLUSION, entry.seq, point.size)))
        self._session.trust.check_included(entry, point, proof)
        return point, proof
