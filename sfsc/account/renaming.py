"""Files under the ids of a new name key, after a theft: who has the old one can no longer tell
whether a name that he guesses exists.

Each version is encrypted anew straight under the new id, in order, and its bytes under the old id
go once that is durable. Until the last of them has moved the file counts under its old id, whatever
stands under the new one (`Session.file_id`); that last step is an ordinary move, one change of both
files. So a rotation that is cut leaves no file half moved, and what another machine puts onto the
old id meanwhile is one version more to move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from protocol.codec.values import changed
from protocol.records.records import CONTENT_OPS, PURGE, PUT, FileRecord
from protocol.wire.messages import Error
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.rotation import WrapItem
from sfsc.crypto.envelope import content_record
from sfsc.errors import ConflictError, NotFound
from sfsc.files.contacts import Contacts
from sfsc.files.history import FileHistory
from sfsc.files.rename import Renames
from sfsc.files.shared_folders import SharedFolders
from sfsc.files.sharing import Sharing
from sfsc.log.seen_checkpoints import refresh
from sfsc.session.commit import MAX_CONFLICTS, change_file, purge, tombstone
from sfsc.session.session import Session, known_file
from sfsc.transfer.blob import Blob, Wanted
from sfsc.transfer.reencrypt import Anew, encrypt_anew, store
from sfsc.trust.file_records import SETTINGS, VerifiedFile, has_moved
from sfsc.trust.state import KnownFile

_FASTER: Final = "another machine was faster"
_AGAIN: Final = "run the command again"


class Renaming:
    """Over one session, whose keys are the new ones already. Where there is one name key there is
    nothing to do, and nothing is asked."""

    def __init__(self, session: Session, people: Contacts) -> None:
        self._session = session
        self._people = people
        self._sharing = Sharing(session, people, SharedFolders(session))
        self._settled: set[str] = set()

    def move(self, items: Iterable[WrapItem]) -> None:
        """Every file of these that lies under an older name key. Raises `ConflictError` where
        others keep changing one, and as `encrypt_anew`."""
        if len(self._session.account.name_keys) == 1:
            return  # and nobody has to list them
        found: list[tuple[int, str, tuple[str, ...]]] = []
        left = {item.file_id: item.version for item in items if self.is_left(item)}
        for file_id, version in left.items():
            ids = self._ids(file_id, version)
            if ids is None:
                continue  # another version of the file is met by the next sweep
            if file_id == ids[-1]:
                self._settled.add(file_id)
            else:
                found.append((ids.index(file_id), file_id, ids))
        # What lies under a newer key has left an older one before, and is older than what is there.
        for place, _, ids in sorted(found, reverse=True):
            self._file(ids, place)
            self._settled.add(ids[-1])

    def is_left(self, item: WrapItem) -> bool:
        """Whether this may still lie under an older name key: a file of ours that was not looked
        at, in a version of which we have the key. What a thief has stored or taken stays where it
        is: nobody here can open it."""
        account = self._session.account
        if len(account.name_keys) == 1 or item.file_id in self._settled:
            return False
        if item.owner != account.user or item.wrap is None:
            return False
        return not account.is_lost((item.wrap,)) and not account.is_voided_signed(item.content)

    def _ids(self, file_id: str, version: int) -> tuple[str, ...] | None:
        """All ids of the name that the file has, None where the version is gone by now."""
        account = self._session.account
        file = self._version(self._session.newest(file_id), version)
        if file is None:
            return None
        _, metadata = account.open_version(file)
        return account.file_ids(SETTINGS if account.is_settings(file_id) else metadata.name)

    def _version(self, newest: VerifiedFile, version: int) -> VerifiedFile | None:
        """A version, None where nothing is left of it that we can open."""
        session = self._session
        stated = session.call(Stat(session.account.user, newest.file_id, version), Stated)
        file = session.account.verify_version(
            stated.view, newest.file_id, version, known_file(newest).revision
        )
        lost = session.account.is_lost(file.wraps)
        return None if lost or not file.metadata else file

    # --- one file -----------------------------------------------------------------------------

    def _file(self, ids: Sequence[str], place: int) -> None:
        """From the one in this `place` among the ids of its name, to the last. Another machine may
        do the same: what is gone by now, it has moved."""
        for left in reversed(range(MAX_CONFLICTS)):
            try:
                self._move(ids, place)
                return
            except (ConflictError, NotFound):
                if not left:
                    raise

    def _move(self, ids: Sequence[str], place: int) -> None:
        """All that is kept of it now. Every record is put onto what was read here and nothing else:
        raises `ConflictError` where anything changes meanwhile, by another machine that does the
        same perhaps, and then all is looked at again."""
        newer, to = ids[place + 1 :], ids[-1]
        self._people.follow()
        # Ahead of the old one: what is under the new one by then cannot be missed as a copy.
        target = self._session.find(to)
        file = self._session.newest(ids[place])
        if not file.deleted and self._is_arriving(ids, place):
            file = self._bury(file)
        records = FileHistory(self._session).records(file)
        if target is not None:
            refresh(self._session)  # for `_is_copy`, in whoever looks at what is put from here on
        taken, copy = _taken(records, newer), target
        kept = self._kept(file, records)
        for one in kept:
            if one.version == file.head.current:
                file, target = self._arrive(file, target, to)
            elif one.version not in taken:
                if target is None or not self._is_copy(copy, one, records):
                    target = self._put(one, target, to)
                copy = None
                if one is kept[-1]:
                    target = self._bury(target)
                    if target.head.readers != file.head.readers:
                        readers = file.head.readers
                        target = self._sharing.set_readers(target, readers, unchanged=True)
            file = self._purge(file, one.version)

    def _is_arriving(self, ids: Sequence[str], place: int) -> bool:
        """Whether the file still counts under an older id than the one in this `place`: a rotation
        that was cut, and followed by another name key, had not moved all of it."""
        older = [(at, self._session.find(one)) for at, one in enumerate(ids[:place], 1)]
        return any(
            file is not None and not has_moved(file.head, file.version, ids[at:])
            for at, file in older
        )

    def _kept(self, file: VerifiedFile, records: Sequence[FileRecord]) -> list[VerifiedFile]:
        """The versions that still have a content, oldest first; none that a thief has made."""
        gone = {version for record in records for version in record.purged or ()}
        made = {one.version: one for one in records if one.version and one.op in CONTENT_OPS}
        there = [
            self._version(file, version)
            for version, record in sorted(made.items())
            if version not in gone and not self._session.account.is_voided(record)
        ]
        return [one for one in there if one is not None]

    def _is_copy(
        self, copy: VerifiedFile | None, one: VerifiedFile, records: Sequence[FileRecord]
    ) -> bool:
        """Whether the version `one`, the first that is kept, is there as `copy` already: it was put
        before a rotation was cut. Equal contents that were stored one after the other are told
        apart: who put a version, or purged one, had seen all that stood here and there before."""
        if copy is None or not copy.metadata or copy.content.op != PUT:
            return False
        purges = [record.seen[0] for record in records if record.op == PURGE]
        if purges and copy.content.seen[0] <= purges[-1]:
            return False
        if copy.content.created != one.content.created:
            return False
        account = self._session.account
        if account.open_version(copy)[1] != account.open_version(one)[1]:
            return False
        return self._digest(copy) == self._digest(one)

    def _digest(self, file: VerifiedFile) -> bytes:
        """SHA-256 of a version's plaintext."""
        digest, session = hashlib.sha256(), self._session
        blob = Blob.ask(session, Wanted.of_id(session, file.file_id, file.version))
        for segment in blob.segments():
            digest.update(segment)
        return digest.digest()

    # --- records ------------------------------------------------------------------------------

    def _put(self, one: VerifiedFile, target: VerifiedFile | None, to: str) -> VerifiedFile:
        """A version under a fresh key as the next one of `target`, which it makes where that is
        not there. It has no readers yet: they would see versions that they have no key of."""
        session = self._session

        def commit(anew: Anew) -> VerifiedFile:
            record = content_record(
                session.author,
                anew.key,
                file_id=to,
                head=None if target is None else target.head_body,
                version=1 if target is None else target.version + 1,
                ciphertext_size=anew.blob.size,
                segments_root=anew.root,
                metadata=anew.sealed,
                readers=() if target is None else target.head.readers,
                seen=session.seen,
                created=one.content.created,
            )
            head = None if target is None else target.head
            stored = store(session, anew, record, head, record.version or 0)
            if isinstance(stored, Error):
                if stored.code != "conflict":
                    session.renew(stored)
                raise ConflictError(_FASTER, _AGAIN)
            body = stored.body
            return VerifiedFile(record, body, record, body, anew.sealed, stored.wraps)

        return encrypt_anew(session, (one.file_id, one.version), to, commit)

    def _arrive(
        self, file: VerifiedFile, target: VerifiedFile | None, to: str
    ) -> tuple[VerifiedFile, VerifiedFile]:
        """The current version, with its readers: from here on the file is the one under the new
        id. Its key is the old one yet, until contents are encrypted anew (`Theft`)."""
        if target is not None:
            target = self._bury(target)
        return Renames(self._session).to_id(file, target, to)

    def _bury(self, target: VerifiedFile) -> VerifiedFile:
        if target.deleted:
            return target
        return self._changed(
            target, lambda onto: tombstone(self._session, onto.head, onto.head_body)
        )

    def _purge(self, file: VerifiedFile, version: int) -> VerifiedFile:
        return self._changed(file, lambda onto: purge(self._session, onto, (version,)))

    def _changed(
        self, file: VerifiedFile, build: Callable[[VerifiedFile], FileRecord]
    ) -> VerifiedFile:
        """The file with a record upon the very one it has."""
        session = self._session

        def built(onto: VerifiedFile) -> tuple[FileRecord, bytes, tuple[()]] | None:
            return (build(onto), b"", ()) if onto.head_body == file.head_body else None

        made = change_file(session, file, built)
        if made is None:
            raise ConflictError(_FASTER, _AGAIN)
        record, body = made
        session.state.remember_file(KnownFile.from_record(record, body, file.version), None)
        return changed(file, head=record, head_body=body)


def _taken(records: Iterable[FileRecord], newer: Collection[str]) -> set[int]:
    """The versions that a move has taken to one of the `newer` ids."""
    found: set[int] = set()
    newest = 0
    for record in records:
        newest = max(newest, record.version or 0)
        if record.to in newer:
            found.add(newest)
    return found
