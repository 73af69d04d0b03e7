"""After a theft of keys: encrypt contents again, and reject records signed with the old key since.

A thief with the old key can sign records, but cannot insert one before what is logged. So a record
of an older generation counts only if it was logged before the rotation began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from protocol.records.records import COMPROMISED, PUT, REENCRYPT, Statement, record_hash
from protocol.wire.messages.base import SignedRecord
from sfsc.account.rewrap import SERVER_FAULTS, LeftOut, place_of, wrap_items
from sfsc.errors import BadReceipt, BadRecord, IntegrityError
from sfsc.files.history import FileHistory, PastReaders
from sfsc.log.account_log import RECORDS, AccountLog
from sfsc.session.commit import find_file
from sfsc.session.session import Session
from sfsc.transfer.reencrypt import Reencryption
from sfsc.trust.file_records import parse_record
from sfsc.trust.server_log import REPORT


class CompromiseResponse:
    """Checks records and encrypts contents again after a theft. The session has the new keys
    already."""

    def __init__(self, session: Session, statements: Sequence[bytes]) -> None:
        """`statements` is the account's chain, including the statement that began the new keys."""
        self._session = session
        begun = next(
            body for body in reversed(statements) if Statement.parse(body).reason == COMPROMISED
        )
        self._generation = Statement.parse(begun).generation
        generations = {body: Statement.parse(body).generation for body in statements}
        self._before = self._logged_before(begun, generations)

    def _logged_before(self, begun: bytes, generations: Mapping[bytes, int]) -> frozenset[bytes]:
        """Return the hashes of the account's records that were logged before their key ended. The
        key ended with the rotation that `begun` starts, or with an earlier unfinished rotation.
        `generations` maps the chain's statements to their generations. Raises `BadReceipt` if the
        log does not have `begun`."""
        user, newest, found = self._session.account.user, 0, set[bytes]()
        for entry in AccountLog(self._session).entries():
            if entry.rec == begun:
                return frozenset(found)
            newest = max(newest, generations.get(entry.rec or b"", 0))
            if entry.owner == user and entry.op in RECORDS:
                # Signatures are verified when a record is used, not here.
                found |= {
                    record_hash(body)
                    for body, _ in entry.records
                    if parse_record(SignedRecord(body, ())).generation >= newest
                }
        raise BadReceipt("the log does not contain the start of this rotation", REPORT)

    def check(self, signed: SignedRecord) -> None:
        """Raise `BadRecord` if an old key's record was not logged before that key ended."""
        if parse_record(signed).generation >= self._generation:
            return  # a newer key: another device was removed before this rotation finished
        if record_hash(signed.record) not in self._before:
            raise BadRecord("a record of an old key was logged after that key ended", REPORT)

    def reencrypt(self, chosen: frozenset[str] | None, left_out: LeftOut) -> LeftOut:
        """Encrypt again every version whose content the old keys open, trash included. `chosen`
        holds the ids of the files to do this for; None means all. Return the versions whose content
        is damaged; those in `left_out` are not tried. Raises like `check` and
        `Reencryption.version`."""
        damaged: LeftOut = {}
        session, account = self._session, self._session.account
        reencryption = Reencryption(session, PastReaders(session).readers_of_version)
        for item in list(wrap_items(session)):
            if item.wrap is None or item.owner != account.user:
                continue  # only its owner can encrypt a shared file again
            if place_of(item) in left_out:
                continue
            if account.is_lost((item.wrap,)) or (chosen is not None and item.file_id not in chosen):
                continue
            record = account.verify_record(item.content, item.file_id)
            if record.generation == session.author.generation:
                # The content of a restore or a move is older than its record.
                if record.op in (PUT, REENCRYPT):
                    continue
            else:
                self.check(item.content)
            try:
                reencryption.version(item.file_id, item.version)
            except SERVER_FAULTS:
                raise
            except IntegrityError as exc:
                damaged[place_of(item)] = exc
        return damaged


def files_of(session: Session, names: Iterable[str]) -> frozenset[str]:
    """Return the ids of these files and of all files that they were renamed from or to. A rename
    leaves the same content key under the old name. Raises `NotFound`."""
    versions = FileHistory(session)
    waiting = [find_file(session, name).file_id for name in names]
    found: set[str] = set()
    while waiting:
        file_id = waiting.pop()
        if file_id in found:
            continue
        found.add(file_id)
        for record in versions.records(session.fetch_newest(file_id)):
            waiting += [record.to] if record.to is not None else []
            waiting += [record.from_[0]] if record.from_ is not None else []
    return frozenset(found)
