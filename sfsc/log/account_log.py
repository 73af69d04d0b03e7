"""What the log has of one's own account, without a gap.

Of what belongs to an account each entry says how many came before and the hash of the last
(``detail.accounts``). So from one entry that is proven to stand in the log, this session's own
login, all before it follow, and none can be left out or put in.
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
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from protocol.wire.messages.log import (
    INCLUSION,
    MAX_ENTRIES,
    LogEntries,
    LogPage,
    LogProof,
)
from sfsc.errors import BadReceipt, BadRecord, Rollback
from sfsc.session.pipeline import pages
from sfsc.session.server_errors import expect_proof
from sfsc.session.session import LOGGED_AS, Session
from sfsc.trust.server_log import REPORT, TreeHead
from sfsc.trust.state import LOG_START, LogPosition

RECORDS: Final = frozenset(LOGGED_AS.values())
"""Entries of these ops hold signed records of files."""


class _Chain(Mutable):
    """How far an account's entries were followed: their number, and the hash of the last."""

    user: str
    count: int
    last: bytes

    def take(self, entry: LogEntry) -> None:
        """Raise `BadReceipt` unless it is the next one."""
        if entry.accounts[self.user] != (self.count, self.last):
            raise BadReceipt(
                f"entry {entry.seq} of the log is not the next one of this account", REPORT
            )
        self.count, self.last = self.count + 1, entry.hash


class OwnLog:
    """Over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._followed = b""

    def entries(self) -> list[LogEntry]:
        """All of the account's entries, oldest first, up to this session's login at least; each
        follows from the one before it, and the last is proven to stand in the log.

        Raises `BadReceipt` for a gap or an entry that is not right, `Rollback` where this very
        login is left out.
        """
        return self._entries(LOG_START)[0]

    def _entries(
        self, before: LogPosition, *, beyond: bool = True
    ) -> tuple[list[LogEntry], LogPosition]:
        """The account's entries behind `before`, those `beyond` this session's login too or not,
        and the place behind them."""
        chain = _Chain(self._session.account.user, before.count, before.last)
        found: list[LogEntry] = []
        shown = False
        with contextlib.closing(self._behind(chain, before.next_seq)) as entries:
            for entry in entries:
                found.append(entry)
                shown = shown or entry.rec == self._session.login_record
                if shown and not beyond:
                    break
        if not shown:
            raise Rollback("the log does not show this session's own login", REPORT)
        self.prove(found[-1])
        return found, LogPosition(found[-1].seq + 1, chain.count, chain.last)

    def later(self, entries: list[LogEntry]) -> list[LogEntry]:
        """The account's entries behind these, which are its first. Raises as `entries`."""
        chain = _Chain(self._session.account.user, len(entries), entries[-1].hash)
        found = list(self._behind(chain, entries[-1].seq + 1))
        if found:
            self.prove(found[-1])
        return found

    def _behind(self, chain: _Chain, first: int) -> Generator[LogEntry]:
        """The account's entries from seq `first` on, each the next one of the `chain`."""
        with contextlib.closing(self.lines(first)) as lines:
            for entry, _ in lines:
                # One that is not of it is shown for another reason, as what we did elsewhere.
                if chain.user in entry.accounts:
                    chain.take(entry)
                    yield entry

    def follow(self) -> None:
        """Learn the newest record of each of our files that was logged before this session began,
        so that an older one cannot be shown for it. Once a login; only what is new is read.

        What was logged since does not count: what the server was asked for meanwhile may be older.
        Raises as `entries`, and `BadRecord` for a change of our files that we did not sign.
        """
        session = self._session
        while self._followed != session.login_record:
            login, before = session.login_record, session.state.followed_log()
            if before.next_seq >= session.trust.at_login.size or self._follow_on(before):
                self._followed = login

    def _follow_on(self, before: LogPosition) -> bool:
        """Follow from there to this session's login; False where another process of this machine
        did so at the same time, from whose end on it is to be tried again."""
        try:
            entries, now = self._entries(before, beyond=False)
        except Rollback:
            if before == LOG_START:
                raise
            # It may have followed past our login: then all from the beginning on leads there.
            _, login = self._entries(LOG_START, beyond=False)
            if login.next_seq > before.next_seq:
                raise
            return True
        newest: dict[str, int] = {}
        for entry in entries:
            if entry.owner == self._session.account.user and entry.op in RECORDS:
                for record, _ in self.records(entry):
                    newest[record.file_id] = record.rev
        return self._session.state.remember_followed_log(before, now, newest)

    def records(self, entry: LogEntry) -> list[tuple[FileRecord, bytes]]:
        """The records of an entry of our files, each with its exact bytes, and signed by a key of
        ours, be it one that was ended, or undone: those stand in the chain of records all the same.

        Raises `BadRecord`.
        """
        account, found = self._session.account, list[tuple[FileRecord, bytes]]()
        for body, sigs in entry.records:
            try:
                generation = FileRecord.parse(body).generation
            except RemoteProtocolError as exc:
                raise BadRecord(f"entry {entry.seq} of the log holds no record", REPORT) from exc
            signatures = (GenerationSignature(generation, one) for one in sigs.values())
            signed = SignedRecord(body, tuple(signatures))
            found.append((account.verify_record(signed, None, historic=True), body))
        return found

    # --- asking -------------------------------------------------------------------------------

    def lines(self, first: int) -> Generator[tuple[LogEntry, bytes]]:
        """The entries that are ours to read from seq `first` on, and their lines."""

        def more(page: LogPage) -> LogEntries | None:
            return LogEntries(page.next, MAX_ENTRIES, True) if page.next else None

        last = first - 1
        for page in pages(self._session, LogEntries(first, MAX_ENTRIES, True), LogPage, more):
            for item in page.entries:
                try:
                    entry = auditlog.parse(item.data, seq=item.seq)
                except LogError as exc:
                    raise BadReceipt(f"the log shows an entry that is none: {exc}", REPORT) from exc
                if item.seq <= last:
                    raise BadReceipt("the log's entries come out of order", REPORT)
                last = item.seq
                yield entry, item.data

    def prove(self, entry: LogEntry) -> tuple[TreeHead, tuple[bytes, ...]]:
        """The log as it is now, and the proof that it has `entry`, verified. Raises `BadReceipt`,
        and as `refresh`."""
        point = self._session.refresh_log()
        proof = expect_proof(self._session.ask(LogProof(INCLUSION, entry.seq, point.size)))
        self._session.trust.check_included(entry, point, proof)
        return point, proof
