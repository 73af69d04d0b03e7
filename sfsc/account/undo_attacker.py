"""Repair files after an account was taken back from an attacker.

The attacker's records stay in the histories but count for nothing. The owner appends what the last
valid record said: its current content, or none. Versions that the attacker destroyed (removed,
replaced, or wrapped for the attacker alone) are reported, and the rest is repaired. Nothing is
removed here. Run again, it continues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.codec.values import Value, changed
from protocol.records.chain import split_voided
from protocol.records.records import (
    ACCESS,
    CONTENT_OPS,
    ENROL,
    FINISH,
    PURGE,
    RECOVERY,
    REENCRYPT,
    FileRecord,
    Statement,
)
from protocol.wire.messages.files import Stat, Stated
from sfsc.account.rewrap import LeftOut, wrap_items
from sfsc.errors import (
    BadRecord,
    Damaged,
    Destroyed,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
)
from sfsc.files.contacts import Contacts
from sfsc.files.history import FileHistory
from sfsc.files.settings import AccountSettings
from sfsc.files.shared_folders import SharedFolders
from sfsc.files.sharing import Sharing
from sfsc.log.account_log import RECORDS, AccountLog
from sfsc.session.commit import delete_file
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.trust.file_records import Entry, VerifiedFile
from sfsc.trust.server_log import REPORT

_UNUSABLE: Final = (IntegrityError, KeyringError, NotFound)
_Damage = tuple[str, int]
"""The damage to a version, and the generation that did it."""


class _Record(Value):
    """A record of the log with a verified signature."""

    record: FileRecord
    body: bytes
    voided: bool


class FileRepair:
    """Repairs the files of a recovered account. `statements` is its chain; the session has its
    keys."""

    def __init__(self, session: Session, contacts: Contacts, statements: Sequence[bytes]) -> None:
        self._session = session
        self._sharing = Sharing(session, contacts, SharedFolders(AccountSettings(session)))
        chain = [Statement.parse(body) for body in statements]
        self._wrap_generations = {one.key_id: one.generation for one in chain}
        valid, void = split_voided(chain)
        finished = max(one.n for one in valid if one.reason in (FINISH, ENROL))
        recoveries = [one for one in valid if one.reason == RECOVERY]
        earlier = max((one.n for one in recoveries if one.n < finished), default=0)
        # Statements undone since the last rotation that the owner finished.
        undone = [one for one in void if one.n > earlier]
        self._void_generations = {one.generation for one in undone}

    def repair_files(self, on_destroyed: Skip) -> None:
        """Repair every file. `on_destroyed` gets (name or id, error) for each destroyed version.
        Raises as `AccountLog.entries`."""
        files, false = self._records(), LeftOut()
        lost = self._lost_versions(false)
        for (_, file_id, _), error in sorted(false.items(), key=lambda one: one[0]):
            if not isinstance(error, Damaged):  # the rotation names those
                on_destroyed(self._find_name(file_id, files.get(file_id, [])), error)
        for file_id in sorted(files.keys() | lost.keys()):
            records = files.get(file_id, [])
            gone = _destroyed(records) | lost.get(file_id, {})
            name = self._find_name(file_id, records) if gone else file_id
            try:
                if any(one.voided for one in records):
                    self._repair_file(file_id, records, gone, on_destroyed)
                elif gone and (file := self._fetch(file_id)).head.current in gone:
                    self._delete(file)
            except Damaged as exc:
                on_destroyed(self._find_name(file_id, records), exc)  # the others are repaired
            for version, (how, generation) in sorted(gone.items()):
                if generation in self._void_generations:  # earlier damage was reported then
                    on_destroyed(
                        name, Destroyed(f"somebody with stolen keys has {how} version {version}")
                    )

    def _records(self) -> dict[str, list[_Record]]:
        """Return all records of the account's files from the log: by file, oldest first."""
        found: dict[str, list[_Record]] = {}
        account, log = self._session.account, AccountLog(self._session)
        for entry in log.entries():
            if entry.owner == account.user and entry.op in RECORDS:
                for record, body in log.verify_records(entry):
                    one = _Record(record, body, account.is_voided(record))
                    found.setdefault(record.file_id, []).append(one)
        return found

    def _lost_versions(self, left_out: LeftOut) -> dict[str, dict[int, _Damage]]:
        """Return the versions wrapped for an attacker's key, by file. Those of which the log does
        not say so are added to `left_out`, as by `wrap_items`."""
        account, found = self._session.account, dict[str, dict[int, _Damage]]()
        if not account.voided_wraps:
            return found
        for item in wrap_items(self._session, left_out):
            if item.wrap is None or item.owner != account.user:
                continue
            if account.is_lost((item.wrap,)) and not account.is_voided_signed(item.content):
                how = "wrapped for themselves alone", self._wrap_generations[item.wrap.key_id]
                found.setdefault(item.file_id, {})[item.version] = how
        return found

    def _repair_file(
        self, file_id: str, records: list[_Record], gone: Mapping[int, _Damage], on_destroyed: Skip
    ) -> None:
        """Append what the last valid record said, unless that was done already."""
        last = max(place for place, one in enumerate(records) if one.voided)
        if any(one.record.op not in (PURGE, ACCESS) for one in records[last + 1 :]):
            return
        before = next((one.record for one in reversed(records[:last]) if not one.voided), None)
        file = self._fetch(file_id)
        if file.head_body != records[-1].body:
            if self._session.account.is_voided(file.head):
                raise Rollback(
                    "the server shows another last record of a file than the log", REPORT
                )
            return  # another device was first
        readers = () if before is None else before.readers
        # Remove readers that the attacker added first; add back removed readers last.
        allowed = tuple(one for one in file.head.readers if one in readers)
        if allowed != file.head.readers:
            file = self._sharing.set_readers(file, allowed)
        history = FileHistory(self._session)
        if before is not None and before.current and before.current not in gone:
            try:
                source = self._fetch_version(file_id, before.current, records[:last])
                build, metadata = history.build_restore(source)
            except _UNUSABLE as exc:
                on_destroyed(self._find_name(file_id, records), exc)
            else:
                made, _ = history.apply_restore(file, build, metadata)
                if made.readers != readers:
                    self._sharing.set_readers(self._session.fetch_newest(file_id), readers)
                return
        self._delete(file)

    def _delete(self, file: VerifiedFile) -> None:
        is_voided = self._session.account.is_voided
        delete_file(self._session, file, lambda onto: onto.deleted and not is_voided(onto.head))

    def _fetch(self, file_id: str, version: int = 0) -> VerifiedFile:
        session = self._session
        since = session.followed_size
        stated = session.call(Stat(session.account.user, file_id, version), Stated)
        file = session.account.verify_voidable(stated.view, file_id)
        session.check_head(file.head, file.head_body, stated.view.at, since)
        return file

    def _fetch_version(
        self, file_id: str, version: int, records: Sequence[_Record]
    ) -> VerifiedFile:
        """Return a version as the last valid record made it."""
        file = self._fetch(file_id, version)
        made = [one for one in records if not one.voided and one.record.version == version]
        contents = [one.body for one in made if one.record.op in CONTENT_OPS]
        if not contents or file.content_body != contents[-1]:
            raise BadRecord("the server shows another record of a version than the log", REPORT)
        if not file.metadata:
            raise NotFound(f"the content of version {version} was removed")
        return changed(file, confirmed=True)

    def _find_name(self, file_id: str, records: Sequence[_Record]) -> str:
        """Return the file's name if anything here still tells it, else its id."""
        packed = self._session.state.last_entry(file_id)
        if packed is not None:
            return Entry.unpack(packed).name
        for version in sorted({one.record.version for one in records if one.record.version}):
            try:
                source = self._fetch_version(file_id, version, records)
                return self._session.account.open_version(source)[1].name
            except _UNUSABLE:
                continue  # another version may tell it
        return file_id


def _destroyed(records: Sequence[_Record]) -> dict[int, _Damage]:
    """Return the versions that void records have removed or replaced."""
    valid = {one.record.version for one in records if not one.voided and one.record.version}
    found: dict[int, _Damage] = {}
    for one in records:
        record = one.record
        if one.voided and record.op == PURGE:
            found |= dict.fromkeys(record.purged or (), ("removed", record.generation))
        if one.voided and record.op == REENCRYPT and record.version is not None:
            found[record.version] = "replaced", record.generation
    return {version: how for version, how in found.items() if version in valid}
