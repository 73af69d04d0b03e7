"""Files put right after an account was taken back from somebody who had its keys.

What he signed stands in the files' histories for good, and counts for nothing. Upon it the owner
puts what the last record before it said: the content that was current then, or that there is none.
What he has destroyed (removed, replaced, or wrapped for a key of his own) is named, and the rest
goes on. Nothing is removed here; run again, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from protocol.codec.values import Value
from protocol.records.chain import RENEWING, standing
from protocol.records.records import (
    ACCESS,
    CONTENT_OPS,
    FINISH,
    PURGE,
    RECOVERY,
    REENCRYPT,
    FileRecord,
    ReaderEntry,
    Statement,
    record_hash,
)
from protocol.wire.messages.files import Stat, Stated
from sfsc.account.rewrap import wrap_items
from sfsc.crypto.envelope import Metadata
from sfsc.errors import (
    BadRecord,
    Destroyed,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
)
from sfsc.files.contacts import Contacts
from sfsc.files.history import FileHistory
from sfsc.files.shared_folders import SharedFolders
from sfsc.files.sharing import Sharing
from sfsc.log.account_log import RECORDS, AccountLog
from sfsc.session.commit import Built, build_tombstone, change_file, change_request
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.trust.file_records import Entry, VerifiedFile
from sfsc.trust.server_log import REPORT
from sfsc.trust.state import KnownFile

_UNUSABLE: Final = (IntegrityError, KeyringError, NotFound)
_How = tuple[str, int]
"""What was done to a version, and the generation of who did it."""


class _Record(Value):
    """A record of the log, its signature verified."""

    record: FileRecord
    body: bytes
    voided: bool


class Repair:
    """Over one session, whose keys are the recovered account's. `statements` are its chain."""

    def __init__(self, session: Session, people: Contacts, statements: Sequence[bytes]) -> None:
        self._session = session
        self._sharing = Sharing(session, people, SharedFolders(session))
        self._statements = statements
        self._chain = [Statement.parse(body) for body in statements]
        self._names: dict[str, str] = {}

    def run(self, told: Skip) -> None:
        """Put every file right; `told` (name or id, error) hears of what was destroyed.

        Raises `BadRecord` where the log has a record of an older key that came after its end, and
        what stops a session.
        """
        files, his = self._records(), {one.generation for one in self._his()}
        lost = self._lost()
        for file_id in sorted(files.keys() | lost.keys()):
            records = files.get(file_id, [])
            gone = _destroyed(records) | lost.get(file_id, {})
            name = self._name(file_id, records) if gone else file_id
            if any(one.voided for one in records):
                self._put_right(file_id, records, gone, told)
            elif gone:
                self._bury(file_id, gone)
            for version, (how, generation) in sorted(gone.items()):
                if generation in his:  # what an earlier one has destroyed was told then
                    told(name, Destroyed(f"somebody with stolen keys has {how} version {version}"))

    # --- what there is ------------------------------------------------------------------------

    def _records(self) -> dict[str, list[_Record]]:
        """Every record of the account's files, by file, oldest first, as the log has them."""
        found: dict[str, list[_Record]] = {}
        recovered, end = self._ends()
        ended = False
        account, log = self._session.account, AccountLog(self._session)
        for entry in log.entries():
            ended = ended or entry.rec == end
            if entry.owner == account.user and entry.op in RECORDS:
                for record, body in log.verify_records(entry):
                    one = _Record(record, body, account.is_voided(record))
                    # Who has the old key can sign in its name; he cannot put it before the end.
                    if ended and not one.voided and one.record.generation < recovered:
                        cause = "a record of the old key that was logged after it was ended"
                        raise BadRecord(cause, REPORT)
                    found.setdefault(one.record.file_id, []).append(one)
        for records in found.values():
            _check_linked(records)
        return found

    def _his(self) -> list[Statement]:
        """The statements that were undone since the last rotation which the owner has finished."""
        stand, undone = standing(self._chain)
        finished = max(one.n for one in stand if one.reason in (FINISH, "enrol"))
        before = max(
            (one.n for one in stand if one.reason == RECOVERY and one.n < finished), default=0
        )
        return [one for one in undone if one.n > before]

    def _ends(self) -> tuple[int, bytes]:
        """(the recovered generation, the exact bytes of the statement that ended the one before it:
        the first of his that began another, else the recovery itself)."""
        stand, _ = standing(self._chain)
        finished = max(one.n for one in stand if one.reason in (FINISH, "enrol"))
        recovery = next(one for one in stand if one.reason == RECOVERY and one.n > finished)
        begun = [one.n for one in self._his() if one.reason in RENEWING]
        return recovery.generation, self._statements[min([*begun, recovery.n]) - 1]

    def _lost(self) -> dict[str, dict[int, _How]]:
        """The versions whose wrap is for a key of his, by file."""
        account, found = self._session.account, dict[str, dict[int, _How]]()
        if not account.voided_wraps:
            return found
        generations = {one.key_id: one.generation for one in self._chain}
        for item in wrap_items(self._session):
            if item.wrap is None or item.owner != account.user:
                continue
            if account.is_lost((item.wrap,)) and not account.is_voided_signed(item.content):
                how = "wrapped for himself alone", generations[item.wrap.key_id]
                found.setdefault(item.file_id, {})[item.version] = how
        return found

    # --- one file -----------------------------------------------------------------------------

    def _put_right(
        self, file_id: str, records: list[_Record], gone: Mapping[int, _How], told: Skip
    ) -> None:
        """Upon his last record, what the last before it said; unless that was done already."""
        last = max(place for place, one in enumerate(records) if one.voided)
        if any(one.record.op not in (PURGE, ACCESS) for one in records[last + 1 :]):
            return
        before = next((one.record for one in reversed(records[:last]) if not one.voided), None)
        file = self._newest(file_id)
        if file.head_body != records[-1].body:
            if self._session.account.is_voided(file.head):
                raise Rollback("the store has another last record of a file than the log", REPORT)
            return  # another machine of the account was faster
        readers = () if before is None else before.readers
        # Whom he has let in is out before anything else; whom he has put out comes back after it.
        allowed = tuple(one for one in file.head.readers if one in readers)
        if allowed != file.head.readers:
            file = self._sharing.set_readers(file, allowed)
        if before is not None and before.current and before.current not in gone:
            try:
                source = self._source(file_id, before.current, records[:last])
                build, metadata = FileHistory(self._session).restoring(source)
            except _UNUSABLE as exc:
                told(self._name(file_id, records), exc)
            else:
                self._restore(file, build, metadata, readers)
                return
        self._delete(file)

    def _restore(
        self,
        file: VerifiedFile,
        build: Callable[[VerifiedFile], Built],
        metadata: Metadata,
        readers: tuple[ReaderEntry, ...],
    ) -> None:
        session = self._session
        made, body = change_file(session, file, build)
        entry = Entry.from_record(made, made, metadata)
        hidden = session.account.is_settings(file.file_id)
        known = KnownFile.from_record(made, body, entry.version)
        session.state.remember_file(known, None if hidden else entry.pack())
        if made.readers != readers:
            self._sharing.set_readers(session.fetch_newest(file.file_id), readers)

    def _bury(self, file_id: str, gone: Mapping[int, _How]) -> None:
        """A file of whose records none is his, but whose current version opens no more."""
        file = self._newest(file_id)
        if file.head.current in gone:
            self._delete(file)

    def _delete(self, file: VerifiedFile) -> None:
        session = self._session

        def build(onto: VerifiedFile) -> Built | None:
            if onto.deleted and not session.account.is_voided(onto.head):
                return None
            return build_tombstone(session, onto.head, onto.head_body), change_request()

        if (made := change_file(session, file, build)) is not None:
            record, body = made
            session.state.remember_file(KnownFile.from_record(record, body, file.version), None)

    def _newest(self, file_id: str) -> VerifiedFile:
        session = self._session
        stated = session.call(Stat(session.account.user, file_id, 0), Stated)
        return session.account.verify_voidable(stated.view, file_id)

    def _source(self, file_id: str, version: int, records: Sequence[_Record]) -> VerifiedFile:
        """A version as the last record that made it, and was not his, has it."""
        session = self._session
        stated = session.call(Stat(session.account.user, file_id, version), Stated)
        file = session.account.verify_voidable(stated.view, file_id)
        made = [one for one in records if not one.voided and one.record.version == version]
        contents = [one.body for one in made if one.record.op in CONTENT_OPS]
        if not contents or file.content_body != contents[-1]:
            raise BadRecord("the server shows another record of a version than the log", REPORT)
        if not file.metadata:
            raise NotFound(f"the content of version {version} was removed")
        return file

    def _name(self, file_id: str, records: Sequence[_Record]) -> str:
        """What the file is called where anything here still says it, else its id."""
        if not self._names:
            for known, packed in self._session.state.entries():
                self._names[known] = Entry.unpack(packed).name
        if file_id in self._names:
            return self._names[file_id]
        for version in sorted({one.record.version for one in records if one.record.version}):
            try:
                source = self._source(file_id, version, records)
                return self._session.account.open_version(source)[1].name
            except _UNUSABLE:
                continue  # of the next version perhaps
        return file_id


def _check_linked(records: Sequence[_Record]) -> None:
    rev, prev = 0, b""
    for one in records:
        if (one.record.rev, one.record.prev) != (rev + 1, prev):
            raise BadRecord("the log has a change of a file that is not the next one", REPORT)
        rev, prev = one.record.rev, record_hash(one.body)


def _destroyed(records: Sequence[_Record]) -> dict[int, _How]:
    """The versions that his records have removed or replaced."""
    stand = {one.record.version for one in records if not one.voided and one.record.version}
    found: dict[int, _How] = {}
    for one in records:
        record = one.record
        if one.voided and record.op == PURGE:
            found |= dict.fromkeys(record.purged or (), ("removed", record.generation))
        if one.voided and record.op == REENCRYPT and record.version is not None:
            found[record.version] = "replaced", record.generation
    return {version: how for version, how in found.items() if version in stand}
