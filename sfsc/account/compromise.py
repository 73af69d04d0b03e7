"""After a theft of keys: which contents get new ones, and that nothing the thief signed since is
taken over.

Who has the old key can sign in its name; he cannot put a record before what is logged. So one of an
older generation counts only where the log had it before the rotation began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocol.records.records import COMPROMISED, PUT, REENCRYPT, Statement, record_hash
from protocol.wire.messages.base import SignedRecord
from protocol.wire.messages.rotation import WrapItem
from sfsc.errors import BadReceipt, BadRecord
from sfsc.files.history import FileHistory, PastReaders
from sfsc.log.account_log import RECORDS, OwnLog
from sfsc.session.commit import find
from sfsc.session.session import Session
from sfsc.transfer.reencrypt import Reencryption
from sfsc.trust.file_records import parse_record
from sfsc.trust.server_log import REPORT


class Theft:
    """Over one session, whose keys are the new ones already; `statements` is the account's chain,
    which holds the statement that began them."""

    def __init__(self, session: Session, statements: Sequence[bytes]) -> None:
        self._session = session
        begun = next(
            body for body in reversed(statements) if Statement.parse(body).reason == COMPROMISED
        )
        self._generation = Statement.parse(begun).generation
        generations = {body: Statement.parse(body).generation for body in statements}
        self._before = self._logged_before(begun, generations)

    def _logged_before(self, begun: bytes, generations: Mapping[bytes, int]) -> frozenset[bytes]:
        """Hashes of all records of this account that the log had before the rotation began, each
        before its own key was ended: that may be by an earlier one, which was not finished.
        `generations` are those of the chain's statements."""
        user, newest, found = self._session.account.user, 0, set[bytes]()
        for entry in OwnLog(self._session).entries():
            if entry.rec == begun:
                return frozenset(found)
            newest = max(newest, generations.get(entry.rec or b"", 0))
            if entry.owner == user and entry.op in RECORDS:
                # Whose signature each has is asked where it is taken over.
                signed = [SignedRecord(body, ()) for body, _ in entry.records]
                found |= {
                    record_hash(one.record)
                    for one in signed
                    if parse_record(one).generation >= newest
                }
        raise BadReceipt("the log does not have the beginning of this rotation", REPORT)

    def check(self, signed: SignedRecord) -> None:
        """Raise `BadRecord` for a record of an older key that is not from before its end."""
        if parse_record(signed).generation >= self._generation:
            return  # of a key made since: another device was dropped before this was finished
        if record_hash(signed.record) not in self._before:
            raise BadRecord("a record of the old key that was logged after it was ended", REPORT)

    def reencrypt(self, items: Iterable[WrapItem], chosen: frozenset[str] | None) -> None:
        """Every version whose content the old keys open, trash included, under a new key; only of
        the files `chosen`, by id, where they are given."""
        session, account = self._session, self._session.account
        reencryption = Reencryption(session, PastReaders(session).of_version)
        for item in list(items):
            if item.wrap is None or item.owner != account.user:
                continue  # what others share, only they can encrypt anew
            if account.is_lost((item.wrap,)) or (chosen is not None and item.file_id not in chosen):
                continue
            record = account.verify_record(item.content, item.file_id)
            if record.generation == session.author.generation:
                # A restore or a move takes over a content that is older than it.
                if record.op in (PUT, REENCRYPT):
                    continue
            else:
                self.check(item.content)
            reencryption.version(item.file_id, item.version)


def files_of(session: Session, names: Iterable[str]) -> frozenset[str]:
    """The ids of these files, and of all that they were renamed from or to: what a name has left
    behind lies there under the same key. Raises `NotFound`."""
    versions = FileHistory(session)
    waiting = [find(session, name).file_id for name in names]
    found: set[str] = set()
    while waiting:
        file_id = waiting.pop()
        if file_id in found:
            continue
        found.add(file_id)
        for record in versions.records(session.newest(file_id)):
            waiting += [record.to] if record.to is not None else []
            waiting += [record.from_[0]] if record.from_ is not None else []
    return frozenset(found)
