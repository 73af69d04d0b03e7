"""The entries of our own account in the server's log, without a gap.

Each entry states, for every account it concerns, the number of earlier entries of that account
(`accounts`). Every entry is proven to be in the log, and its number must be the next one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final

from protocol.codec.errors import LogError, RemoteProtocolError
from protocol.codec.values import Mutable
from protocol.log import auditlog
from protocol.log.auditlog import LogEntry
from protocol.records.records import FileRecord
from protocol.wire.messages import Reply
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from protocol.wire.messages.log import (
    INCLUSION,
    MAX_ENTRIES,
    LogEntries,
    LogPage,
    LogProof,
)
from sfsc.errors import BadReceipt, BadRecord, Rollback, Unreachable
from sfsc.session.handshake import SentLogin
from sfsc.session.pipeline import pages, pipelined
from sfsc.session.server_errors import expect_proof
from sfsc.session.session import LOGGED_AS, Session
from sfsc.trust.server_log import REPORT, TreeHead
from sfsc.trust.state import LOG_START, LogPosition

RECORDS: Final = frozenset(LOGGED_AS.values())
"""Ops of entries that hold signed records of files."""


class _EntryChain(Mutable):
    """How far an account's entries were followed: their number, and the hash of the last."""

    user: str
    count: int
    last: bytes

    def append(self, entry: LogEntry) -> None:
        """Advance to `entry`. Raises `BadReceipt` unless it is the next one."""
        if entry.accounts[self.user] != self.count:
            raise BadReceipt(
                f"entry {entry.seq} of the log is not the next one of this account", REPORT
            )
        self.count, self.last = self.count + 1, entry.hash


class AccountLog:
    """Reads and verifies the account's log entries over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._followed: SentLogin | None = None

    def entries(self) -> list[LogEntry]:
        """Return all entries of the account, oldest first, at least up to this session's login.
        Each is the next one, and proven to be in the log.

        Raises `BadReceipt` for a gap or a wrong entry, `Rollback` if this session's login is
        missing.
        """
        return self._entries(LOG_START)[0]

    def _entries(
        self, before: LogPosition, *, past_login: bool = True
    ) -> tuple[list[LogEntry], LogPosition]:
        """Return the account's entries after `before`, up to this session's login or `past_login`,
        and the position after them."""
        chain = _EntryChain(self._session.account.user, before.count, before.last)
        login = self._session.login
        if login is None:
            raise Unreachable("not connected")
        found: list[LogEntry] = []
        found_login = False
        with contextlib.closing(self._following(chain, before.next_seq)) as entries:
            for entry in entries:
                found.append(entry)
                found_login = found_login or login.is_logged_by(entry)
                if found_login and not past_login:
                    break
        if not found_login:
            raise Rollback("the log does not show this session's own login", REPORT)
        self.prove_entries(found)
        return found, LogPosition(found[-1].seq + 1, chain.count, chain.last)

    def entries_after(self, entries: list[LogEntry]) -> list[LogEntry]:
        """Return the account's entries after these, which are its first. Raises as `entries`."""
        chain = _EntryChain(self._session.account.user, len(entries), entries[-1].hash)
        found = list(self._following(chain, entries[-1].seq + 1))
        self.prove_entries(found)
        return found

    def _following(self, chain: _EntryChain, first: int) -> Generator[LogEntry]:
        """Yield the account's entries from seq `first` on, each the next one of the `chain`."""
        with contextlib.closing(self.read_entries(first)) as lines:
            for entry, _ in lines:
                # Other entries are ours to read for another reason, such as our acts elsewhere.
                if chain.user in entry.accounts:
                    chain.append(entry)
                    yield entry

    def follow_to_login(self) -> None:
        """Remember the newest record of each of our files that was logged before this session's
        login, so that the server cannot show an older one. Done once a login; only new entries are
        read.

        Later entries do not count: a reply to an earlier request may be older than they are. Raises
        as `entries`, and `BadRecord` for a change of our files that we did not sign.
        """
        session = self._session
        while self._followed != session.login:
            login, before = session.login, session.state.followed_log()
            if before.next_seq >= session.trust.at_login.size or self._follow_from(before):
                self._followed = login

    def _follow_from(self, before: LogPosition) -> bool:
        """Follow the log from `before` to this session's login. Return False if another process of
        this machine did so at the same time: the caller tries again from where that one ended."""
        try:
            entries, now = self._entries(before, past_login=False)
        except Rollback:
            if before == LOG_START:
                raise
            # Another process may have followed past our login. Then all entries lead to it.
            _, login = self._entries(LOG_START, past_login=False)
            if login.next_seq > before.next_seq:
                raise
            return True
        newest: dict[str, int] = {}
        for entry in entries:
            if entry.owner == self._session.account.user and entry.op in RECORDS:
                for record, _ in self.verify_records(entry):
                    newest[record.file_id] = record.rev
        return self._session.state.remember_followed_log(before, now, newest)

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

    # --- asking -------------------------------------------------------------------------------

    def read_entries(self, first: int) -> Generator[tuple[LogEntry, bytes]]:
        """Yield the entries that we may read from seq `first` on, with their lines."""

        def more(page: LogPage) -> LogEntries | None:
            return LogEntries(page.next, MAX_ENTRIES, True) if page.next else None

        last = first - 1
        for page in pages(self._session, LogEntries(first, MAX_ENTRIES, True), LogPage, more):
            for item in page.entries:
                try:
                    entry = auditlog.parse(item.data, seq=item.seq)
                except LogError as exc:
                    cause = f"the server returned a malformed log entry: {exc}"
                    raise BadReceipt(cause, REPORT) from exc
                if item.seq <= last:
                    raise BadReceipt("the server returned log entries out of order", REPORT)
                last = item.seq
                yield entry, item.data

    def prove_entry(self, entry: LogEntry) -> tuple[TreeHead, tuple[bytes, ...]]:
        """Return the present log and a verified proof that it has `entry`. Raises `BadReceipt`, and
        as `Session.refresh_log`."""
        point = self._session.refresh_log()
        proof = expect_proof(self._session.ask(LogProof(INCLUSION, entry.seq, point.size)))
        self._session.trust.check_included(entry, point, proof)
        return point, proof

    def prove_entries(self, entries: list[LogEntry]) -> None:
        """Verify that the present log has all `entries`. Raises `BadReceipt`, and as
        `Session.refresh_log`."""
        if not entries:
            return
        point = self._session.refresh_log()

        def check(entry: LogEntry, reply: Reply) -> None:
            self._session.trust.check_included(entry, point, expect_proof(reply))

        requests = ((one, LogProof(INCLUSION, one.seq, point.size)) for one in entries)
        for _ in pipelined(self._session, requests, check):
            pass
