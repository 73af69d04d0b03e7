"""Share files: signed records add and remove readers, together with the keys they need.

The file's last record lists its readers, so a server can neither add nor keep one. The key of a
version is wrapped for a reader's present key, which their identity chain proves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from protocol.codec.errors import SignatureError
from protocol.codec.values import Value
from protocol.records.records import ACCESS, FileRecord, LeaveRecord, ReaderEntry
from protocol.records.signatures import Label, verify_signature
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import Recipient, VersionWrap, WrapBatches, check_name
from sfsc.errors import Damaged, IntegrityError, NotFound, SfscError, ShareRefused, UsageError
from sfsc.files.contacts import Contacts, Person
from sfsc.files.history import PastReaders
from sfsc.files.listing import Files
from sfsc.files.settings import Folder
from sfsc.files.shared_folders import SharedFolders
from sfsc.library_log import log_warning
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    PlannedChange,
    build_record,
    commit_change,
    commit_changes,
    fetch_version,
    find_current_file,
    find_file,
    verify_head,
    with_present_wraps,
)
from sfsc.session.pipeline import Skip, newest_views
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.transfer.reencrypt import Reencryption
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.followed_log import SignedLeave
from sfsc.trust.server_log import REPORT
from sfsc.trust.state import MadeRecord

PER_CHANGE: Final = 128
"""Versions that one change of the readers can affect."""
_FETCHED: Final = 2048
"""Files that are fetched together, before the first of them is changed. While changes are in
flight, the server answers as of a newer log than this machine has followed."""


class Grant(Value):
    """A grant: `user` may read a file or folder until `expires` (unix seconds, 0 for no end)."""

    name: str
    user: str
    expires: int

    @property
    def expires_at(self) -> datetime | None:
        """End of the access, in UTC; None if it has none."""
        return as_datetime(self.expires)


class Sharing:
    """Shares the user's files."""

    def __init__(self, session: Session, contacts: Contacts, folders: SharedFolders) -> None:
        self._session = session
        self._contacts = contacts
        self._folders = folders

    def share(
        self,
        name: str,
        user: str,
        *,
        expires: int | None = None,
        history: bool = False,
        first_use: bool = False,
    ) -> Grant:
        """Let `user` read the present and later versions of `name` until `expires` (unix seconds, 0
        for no end, None for that of a grant that has not ended, else for no end); with
        `history`, all versions that still have content. Raises `Untrusted` if the
        user was never verified and `first_use` is not set, `WeakRecipient`, `NotFound`."""
        file = self._session.without_left(find_current_file(self._session, name))
        person = self._contacts.find_trusted(user, first_use=first_use)
        file = self._change(file, self._add_reader(person, expires))
        if history:
            self._share_older(file, person, expires)
        return _grant(name, user, file)

    def unshare(self, name: str, user: str, *, reencrypt: bool = False) -> Grant:
        """Stop sharing `name` with `user`; this holds once the server confirmed it. With
        `reencrypt` the present version gets a new key too, so that a key which the user kept opens
        nothing that is stored. Raises `NotFound` if the user is not a reader, and `Rollback` if a
        server says so by hiding a logged record."""
        file = find_file(self._session, name)
        if not self._reads(file, user):
            raise NotFound(f"{name} is not shared with {user}", "`sfsc stat` shows its readers")
        self._finish_unshare(self._change(file, _drop_reader(user)), user, reencrypt=reencrypt)
        return Grant(name, user, 0)

    def share_tree(
        self,
        folder: str,
        user: str,
        *,
        expires: int | None = None,
        history: bool = False,
        first_use: bool = False,
    ) -> Iterator[Grant]:
        """Share every file in `folder` ("": all), and every file stored there later. `expires` None
        keeps the end of each grant, also that of the folder, which new grants get. If some files
        cannot be listed, the error of one is raised at the end."""
        prefix = _parse_folder(folder)
        person = self._contacts.find_trusted(user, first_use=first_use)
        self._contacts.recipient(person)
        folder_end = self._folder_expiry(prefix, user) if expires is None else expires
        self._folders.share(Folder(prefix, user, person.fingerprint, folder_end))
        unreadable: list[SfscError] = []
        names = self._list_folder(prefix, unreadable)
        self._session.progress.expect_items(len(names))
        found = self._fetch_files(names, unreadable)
        files = (self._session.without_left(file) for file in found if not file.deleted)
        change = self._add_reader(person, expires, default=folder_end)
        for file in self._changed_many(files, change):
            if history:
                self._share_older(file, person, expires)
            yield _grant(names[file.file_id], user, file)
        _raise_first(unreadable)

    def unshare_tree(self, folder: str, user: str, *, reencrypt: bool = False) -> Iterator[Grant]:
        """Stop sharing `folder` and every file in it. Raises like `share_tree`."""
        prefix = _parse_folder(folder)
        self._folders.unshare(prefix, user)
        unreadable: list[SfscError] = []
        names = self._list_folder(prefix, unreadable)
        self._session.progress.expect_items(len(names))
        found = self._fetch_files(names, unreadable)
        files = (file for file in found if self._reads(file, user))
        for file in self._changed_many(files, _drop_reader(user)):
            self._finish_unshare(file, user, reencrypt=reencrypt)
            yield Grant(names[file.file_id], user, 0)
        _raise_first(unreadable)

    def add_folder_readers(self, name: str, *, deleted: bool = False) -> VerifiedFile | None:
        """Add the readers of the folders of `name` to those of the file, and return the file; None
        if nothing was added. With `deleted` only to a deleted file, of which they get no key."""
        found = self._folders.readers_of(name)
        file = self._session.find_newest(self._session.account.file_id(name)) if found else None
        if file is None or file.deleted != deleted:
            return None
        # Who has left the file gets it again only if it is shared by its name.
        left = self._left_of(file, found)
        having = {reader[0] for reader in file.head.readers} | left
        while added := [reader for reader in found if reader[0] not in having]:
            try:
                return self.set_readers(file, tuple(sorted([*file.head.readers, *added])))
            except ShareRefused as exc:
                if not exc.readers:
                    raise
                self._folders.leave_out(exc.readers, exc.cause)
                having |= set(exc.readers)
        return None

    def drop_left(self, file: VerifiedFile) -> VerifiedFile:
        """Drop the readers who have left the file, as they have signed; return the file as it is
        then. A leave record that its reader has not signed is ignored, with a warning."""
        gone = self._left_of(file, file.head.readers)
        return self._change(file, _drop_readers(gone)) if gone else file

    def _left_of(self, file: VerifiedFile, readers: Iterable[ReaderEntry]) -> set[str]:
        """Return those of `readers` who have left the file, and were not added again."""
        left = self._session.log.left_readers(file.file_id)
        return {
            user
            for user, first, _ in readers
            if user in left and self._has_signed(left[user], user, first)
        }

    def _has_signed(self, leave: SignedLeave, user: str, first: bytes) -> bool:
        """Return whether the reader with this first statement has signed the leave record."""
        try:
            # The reader may have rotated since.
            keys = self._contacts.find_by_first(user, first).owner.former
            record = LeaveRecord.parse(leave.body)
            public = keys.get(record.generation, b"")
            verify_signature(Label.LEAVE, leave.body, leave.signature, public)
        except Damaged:
            return False  # the chain, which has the key, cannot be read now
        except SignatureError as exc:
            cause = f"the log says that they left, without their signature: {exc}"
            log_warning(f"{user} stays a reader", cause, REPORT)
            return False
        return (record.server, record.first) == (self._session.trust.pin, first)

    def _folder_expiry(self, prefix: str, user: str) -> int:
        present = [one for one in self._folders.list_folders() if one.prefix == prefix]
        return _kept_expiry(((one.user, one.expires) for one in present), user, 0)

    def _reads(self, file: VerifiedFile, user: str) -> bool:
        """Return whether the last record names the user."""
        return any(reader[0] == user for reader in file.head.readers)

    def readers(self, name: str) -> list[Grant]:
        """Return the other readers of `name`, by user."""
        head = find_current_file(self._session, name).head
        return [Grant(name, user, expires) for user, _, expires in head.readers]

    def list_grants(self, skip: Skip | None = None) -> Iterator[Grant]:
        """Yield who may read each present file, by name and user. Files that cannot be listed are
        passed to `skip`; without it, the first of their errors is raised at the end."""
        state = self._session.state
        found = Files(self._session).ls("", skip, folders=True)
        while some := list(itertools.islice(found, _FETCHED)):
            ids = [entry.file_id for entry in some]
            heads, known = state.logged_heads(ids), state.verified_files(ids)
            for entry in some:
                file, head = known.get(entry.file_id), heads.get(entry.file_id)
                if file is None or head is None or file.hash != head.hash:
                    yield from self.readers(entry.name)  # it has changed since it was listed
                    continue
                for user, _, expires in FileRecord.parse(file.record).readers:
                    yield Grant(entry.name, user, expires)

    def _list_folder(self, prefix: str, unreadable: list[SfscError]) -> dict[str, str]:
        """Return the names of the present files of a folder by file_id, by name. Add the errors of
        those that cannot be listed to `unreadable`."""
        found = Files(self._session).ls(
            f"{prefix}/" if prefix else "",
            lambda _name, error: unreadable.append(error),
            folders=True,
        )
        return {entry.file_id: entry.name for entry in found}

    def _fetch_files(
        self, file_ids: Iterable[str], unreadable: list[SfscError]
    ) -> Iterator[VerifiedFile]:
        """Fetch and verify the newest versions of files, many at once. Add the errors of those that
        the server cannot show to `unreadable`."""
        session, wanted = self._session, iter(file_ids)
        while some := list(itertools.islice(wanted, _FETCHED)):
            since = session.followed_size
            found: list[VerifiedFile] = []
            for asked, views in newest_views(session, some):
                found += session.verify_all_newest(list(views.items()), since)
                for file_id in asked:
                    if file_id not in views:
                        try:
                            found.append(session.fetch_newest(file_id))
                        except IntegrityError as exc:
                            unreadable.append(exc)
            yield from found

    def set_readers(self, file: VerifiedFile, readers: tuple[ReaderEntry, ...]) -> VerifiedFile:
        """Make `readers` (sorted) the readers of `file`. New ones get the newest version's key."""
        session = self._session

        def wraps(present: VerifiedFile, batches: WrapBatches) -> list[VersionWrap]:
            having = {one[0] for one in present.head.readers}
            added = tuple(one for one in readers if one[0] not in having)
            if not added or present.deleted:
                return []
            key, _ = session.account.open_version(with_present_wraps(session, present))
            recipients = self._contacts.recipients(added)
            return batches.wrap_version(key, present.version, recipients)

        return self._change(file, _ReaderChange(lambda _head: readers, wraps))

    def _share_older(self, file: VerifiedFile, person: Person, expires: int | None) -> None:
        """Wrap the versions before the newest, newest first, in as many records as needed."""
        older = list(range(file.version - 1, 0, -1))
        for start in range(0, len(older), PER_CHANGE - 1):
            chosen = older[start : start + PER_CHANGE - 1]
            file = self._change(file, self._add_reader(person, expires, chosen))

    def _finish_unshare(self, file: VerifiedFile, user: str, *, reencrypt: bool) -> None:
        """Remove what the first record, which removed the reader, has left."""
        # One record removes the wraps of a limited number of versions.
        for _ in range(PER_CHANGE, file.version, PER_CHANGE):
            file = self._change(file, _drop_reader(user))
        if reencrypt and not file.deleted:
            history = PastReaders(self._session)
            Reencryption(self._session, history.readers_of_version).version(
                file.file_id, file.head.current
            )

    def _add_reader(
        self,
        person: Person,
        expires: int | None,
        older: Sequence[int] = (),
        *,
        default: int = 0,
    ) -> _ReaderChange:
        """Return the change that adds a reader, with wraps of the newest version and of `older`
        ones. Without `expires` the end of a present grant stays; a new grant gets `default`."""
        user, first = person.user, person.fingerprint

        def readers(head: FileRecord) -> tuple[ReaderEntry, ...]:
            others = [one for one in head.readers if one[0] != user]
            present = ((name, end) for name, _, end in head.readers)
            end = _kept_expiry(present, user, default) if expires is None else expires
            return tuple(sorted([*others, (user, first, end)]))

        def wraps(present: VerifiedFile, batches: WrapBatches) -> list[VersionWrap]:
            # Looked up for each attempt, because the user's key may have changed.
            recipient = self._contacts.recipient(self._contacts.find_by_first(user, first))
            found = [
                self._wrap(present, one, recipient, batches) for one in (present.version, *older)
            ]
            return [one for one in found if one is not None]

        return _ReaderChange(readers, wraps)

    def _wrap(
        self, file: VerifiedFile, version: int, recipient: Recipient, batches: WrapBatches
    ) -> VersionWrap | None:
        """Wrap one version's key for a reader; None if its content was removed or is damaged."""
        session = self._session
        try:
            shown = fetch_version(session, file, version)
        except Damaged:
            return None  # it opens for nobody
        if not shown.metadata:
            return None
        key = session.account.open_content_key(shown)
        return batches.wrap_version(key, version, [recipient])[0]

    def _change(self, file: VerifiedFile, change: _ReaderChange) -> VerifiedFile:
        """Append an access record to `file`, and return the file as it is then."""
        return commit_change(self._session, _Access(self._session, file, change))

    def _changed_many(
        self, files: Iterable[VerifiedFile], change: _ReaderChange
    ) -> Iterator[VerifiedFile]:
        """Like `_change`, many together; results in input order."""
        changes = (_Access(self._session, file, change) for file in files)
        return commit_changes(self._session, changes)


class _ReaderChange(Value):
    """Computes the new readers from a file's head, and the (version, wrap) that they need."""

    readers: Callable[[FileRecord], tuple[ReaderEntry, ...]]
    wraps: Callable[[VerifiedFile, WrapBatches], list[VersionWrap]]


class _Access(PlannedChange[VerifiedFile]):
    """A change of one file's readers. The result is the file with its new record."""

    def __init__(self, session: Session, file: VerifiedFile, change: _ReaderChange) -> None:
        self._session = session
        self._file = file
        self._change = change

    def draft(self, batches: WrapBatches) -> Draft:
        head, body = self._file.head, self._file.head_body
        readers = self._change.readers(head)
        record = build_record(
            self._session, head, body, op=ACCESS, current=head.current, readers=readers
        )
        wraps = tuple(self._change.wraps(self._file, batches))
        return Draft(record, record.encode(), wraps=wraps)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._file = verify_head(session, self._file.file_id, head, since)

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return ((draft.record, draft.body, self._file.version),)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> VerifiedFile:
        file = self._file
        return VerifiedFile(
            file.content, file.content_body, draft.record, draft.body, file.metadata, file.wraps
        )


def _kept_expiry(grants: Iterable[tuple[str, int]], user: str, default: int) -> int:
    """Return the end of the grant of `user` among `grants`; `default` if there is none or it has
    ended."""
    now = time.time()
    return next((end for name, end in grants if name == user and not 0 < end <= now), default)


def _grant(name: str, user: str, file: VerifiedFile) -> Grant:
    return Grant(name, user, next(end for one, _, end in file.head.readers if one == user))


def _drop_reader(user: str) -> _ReaderChange:
    return _drop_readers({user})


def _drop_readers(users: Collection[str]) -> _ReaderChange:
    def readers(head: FileRecord) -> tuple[ReaderEntry, ...]:
        return tuple(one for one in head.readers if one[0] not in users)

    return _ReaderChange(readers, lambda _file, _batches: [])


def _parse_folder(folder: str) -> str:
    prefix = folder.strip("/")
    if prefix:
        check_name(prefix)
    elif folder not in ("", "/"):
        raise UsageError(f"not a folder: {folder}")
    return prefix


def _raise_first(errors: Sequence[SfscError]) -> None:
    if errors:
        raise errors[0]
