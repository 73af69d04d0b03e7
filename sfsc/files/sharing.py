"""Sharing one's files: readers added and dropped by signed records, with the keys they need.

Who may read is in the file's last record, so a server can neither add a reader nor keep one. A
version's key is wrapped for a reader's present key, which his identity chain proves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, cast

from protocol.codec.values import Value
from protocol.records.records import ACCESS, FileRecord, ReaderEntry
from protocol.wire.messages import Done, Error, Reply
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.sharing import SetReaders, VersionWrap
from sfsc.crypto.envelope import Recipient, check_name
from sfsc.errors import ConflictError, NotFound, UsageError
from sfsc.files.contacts import Contacts, Person
from sfsc.files.history import PastReaders
from sfsc.files.listing import Files
from sfsc.files.shared_folders import Folder, SharedFolders
from sfsc.session.commit import (
    MAX_CONFLICTS,
    build_record,
    find_current_file,
    find_file,
    was_accepted,
)
from sfsc.session.pipeline import Window
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.transfer.reencrypt import Reencryption
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import KnownFile

PER_CHANGE: Final = 128
"""Versions that one change of the readers touches."""


class Grant(Value):
    """That `user` may read a file, or a folder, until `expires` (unix seconds, 0 for no end)."""

    name: str
    user: str
    expires: int


class Sharing:
    """Over one session."""

    def __init__(self, session: Session, people: Contacts, folders: SharedFolders) -> None:
        self._session = session
        self._people = people
        self._folders = folders

    def share(
        self,
        name: str,
        user: str,
        *,
        expires: int = 0,
        history: bool = False,
        first_use: bool = False,
    ) -> Grant:
        """Let `user` read `name` until `expires` (unix seconds, 0: until it is unshared), in its
        present and later versions; with `history` in all that are kept.

        Raises `Untrusted` for one who was never verified, unless `first_use`; `WeakRecipient`,
        `NotFound`.
        """
        file = find_current_file(self._session, name)
        person = self._people.trusted(user, first_use=first_use)
        file = self._change(file, self._adding(person, expires))
        if history:
            self._share_older(file, person, expires)
        return Grant(name, user, expires)

    def unshare(self, name: str, user: str, *, reencrypt: bool = False) -> Grant:
        """Let `user` read `name` no more, from its acknowledgement on. With `reencrypt` the present
        version gets a new key as well: one that he kept opens nothing that is there.

        Raises `NotFound` where he is no reader of it, `Rollback` where a server says so that hides
        what the log has.
        """
        self._people.follow()
        file = find_file(self._session, name)
        if not self._reads(file, user):
            raise NotFound(f"{name} is not shared with {user}", "`sfsc stat` shows its readers")
        self._dropped(self._change(file, _dropping(user)), user, reencrypt=reencrypt)
        return Grant(name, user, 0)

    def share_tree(
        self,
        folder: str,
        user: str,
        *,
        expires: int = 0,
        history: bool = False,
        first_use: bool = False,
    ) -> Iterator[Grant]:
        """Share every file in the `folder` ("": all), and every one that is put there later."""
        prefix = _prefix(folder)
        person = self._people.trusted(user, first_use=first_use)
        self._people.recipient(person)
        self._folders.share(Folder(prefix, user, person.fingerprint, expires))
        files = (file for file in self._inside(prefix) if not file.deleted)
        for file in self._changed_many(files, self._adding(person, expires)):
            if history:
                self._share_older(file, person, expires)
            yield Grant(self._session.account.listing_entry(file).name, user, expires)

    def unshare_tree(self, folder: str, user: str, *, reencrypt: bool = False) -> Iterator[Grant]:
        """Share the `folder` no more, nor any file in it."""
        prefix = _prefix(folder)
        self._people.follow()
        self._folders.unshare(prefix, user)
        files = (file for file in self._inside(prefix) if self._reads(file, user))
        for file in self._changed_many(files, _dropping(user)):
            self._dropped(file, user, reencrypt=reencrypt)
            yield Grant(self._session.account.listing_entry(file).name, user, 0)

    def _reads(self, file: VerifiedFile, user: str) -> bool:
        """Whether he does by its last record. Raises `Rollback` where the log has a later one."""
        self._people.check_newest(file.head)
        return any(reader[0] == user for reader in file.head.readers)

    def readers(self, name: str) -> list[Grant]:
        """Who may read `name` beside us, by user."""
        head = find_current_file(self._session, name).head
        return [Grant(name, user, expires) for user, _, expires in head.readers]

    def _inside(self, prefix: str) -> Iterator[VerifiedFile]:
        """The files in a folder as they are now, each verified; many are asked for at once."""
        session = self._session
        window = Window[tuple[str, KnownFile | None]](session)
        try:
            for entry in list(Files(session).ls(f"{prefix}/" if prefix else "")):
                if window.full:
                    yield self._stated(*window.take())
                wanted = (entry.file_id, session.state.file(entry.file_id))
                window.send(wanted, Stat(session.account.user, entry.file_id, 0))
            while window:
                yield self._stated(*window.take())
        finally:
            window.abandon()

    def _stated(self, wanted: tuple[str, KnownFile | None], reply: Reply) -> VerifiedFile:
        return self._session.verify_newest(expect_reply(reply, Stated).view, *wanted)

    # --- one file -----------------------------------------------------------------------------

    def set_readers(self, file: VerifiedFile, readers: tuple[ReaderEntry, ...]) -> VerifiedFile:
        """Make `readers`, sorted, the readers of `file`. New ones get the newest version's key."""
        session = self._session

        def wraps(present: VerifiedFile) -> list[VersionWrap]:
            having = {one[0] for one in present.head.readers}
            added = tuple(one for one in readers if one[0] not in having)
            if not added or present.deleted:
                return []
            key, _ = session.account.open_version(present)
            recipients = self._people.recipients(present.head, added)
            made = key.wrap_for(session.account.server_id, session.account.first, recipients)
            return [VersionWrap(present.version, wrap) for wrap in made]

        return self._change(file, _Change(lambda _head: readers, wraps))

    def _share_older(self, file: VerifiedFile, person: Person, expires: int) -> None:
        """Wraps of the versions before the newest, newest first, in as many records as it takes."""
        older = list(range(file.version - 1, 0, -1))
        for start in range(0, len(older), PER_CHANGE - 1):
            chosen = older[start : start + PER_CHANGE - 1]
            file = self._change(file, self._adding(person, expires, chosen))

    def _dropped(self, file: VerifiedFile, user: str, *, reencrypt: bool) -> None:
        """What is left to do once the record that drops him was accepted."""
        # A record drops the wraps of a bounded number of versions; who has more needs more.
        for _ in range(PER_CHANGE, file.version, PER_CHANGE):
            file = self._change(file, _dropping(user))
        if reencrypt and not file.deleted:
            history = PastReaders(self._session)
            Reencryption(self._session, history.of_version).version(file.file_id, file.head.current)

    def _adding(self, person: Person, expires: int, older: Sequence[int] = ()) -> _Change:
        """He reads a file until `expires`: a wrap of its newest version, and of `older` ones."""
        user, first = person.user, person.fingerprint

        def readers(head: FileRecord) -> tuple[ReaderEntry, ...]:
            others = [one for one in head.readers if one[0] != user]
            return tuple(sorted([*others, (user, first, expires)]))

        def wraps(present: VerifiedFile) -> list[VersionWrap]:
            # Anew for each try: his key may be another by now.
            recipient = self._people.recipient(self._people.known(user, first))
            found = [self._wrap(present, one, recipient) for one in (present.version, *older)]
            return [one for one in found if one is not None]

        return _Change(readers, wraps)

    def _wrap(self, file: VerifiedFile, version: int, recipient: Recipient) -> VersionWrap | None:
        """The key of one version for a reader; None where its content was removed."""
        session, shown = self._session, file
        if version != file.version:
            stated = session.call(Stat(session.account.user, file.file_id, version), Stated)
            known = known_file(file).revision
            shown = session.account.verify_version(stated.view, file.file_id, version, known)
        if not shown.metadata:
            return None
        key, _ = session.account.open_version(shown)
        (wrap,) = key.wrap_for(session.account.server_id, session.account.first, [recipient])
        return VersionWrap(version, wrap)

    # --- records ------------------------------------------------------------------------------

    def _change(self, file: VerifiedFile, change: _Change) -> VerifiedFile:
        """Put an access record onto the head of `file`; the file as it is then."""
        for _ in range(MAX_CONFLICTS):
            attempt = self._attempt(file, change)
            reply = self._session.ask(attempt.request)
            if (done := self._settled(attempt, reply)) is not None:
                self._session.link_receipts()
                return done
            file = self._present(attempt, reply)
        raise ConflictError("others keep changing the file", "run the command again")

    def _changed_many(
        self, files: Iterable[VerifiedFile], change: _Change
    ) -> Iterator[VerifiedFile]:
        """As `_change`, without waiting for each; answers in order. That all their receipts are of
        one log is proven last."""
        window = Window[_Attempt](self._session)
        try:
            for file in files:
                if window.full:
                    yield self._finished(*window.take())
                attempt = self._attempt(file, change)
                window.send(attempt, attempt.request)
            while window:
                yield self._finished(*window.take())
        finally:
            window.abandon()
        self._session.link_receipts()

    def _finished(self, attempt: _Attempt, reply: Reply) -> VerifiedFile:
        done = self._settled(attempt, reply)
        return done or self._change(self._present(attempt, reply), attempt.change)

    def _attempt(self, file: VerifiedFile, change: _Change) -> _Attempt:
        session, head = self._session, file.head
        self._people.check_newest(head)
        made = change.readers(head)
        record = build_record(
            session, head, file.head_body, op=ACCESS, current=head.current, readers=made
        )
        body = record.encode()
        signature = session.sign(body)
        request = SetReaders(body, signature, tuple(change.wraps(file)))
        return _Attempt(file, change, record, body, request, session.connections)

    def _settled(self, attempt: _Attempt, reply: Reply) -> VerifiedFile | None:
        """The file as the record has left it, None where it did not land."""
        session, record, body = self._session, attempt.record, attempt.body
        if not isinstance(reply, Error):
            receipt = expect_reply(reply, Done).receipt
            session.verify_receipt(receipt, record, body, attempt.request.signature)
        elif not was_accepted(session, attempt.connection, reply, record, body):
            return None
        file = attempt.file
        session.state.remember_file(KnownFile.from_record(record, body, file.version), None)
        return VerifiedFile(
            file.content, file.content_body, record, body, file.metadata, file.wraps
        )

    def _present(self, attempt: _Attempt, reply: Reply) -> VerifiedFile:
        """What the next attempt is to be put onto. Raises what stands against one."""
        error = cast(Error, reply)
        if error.code != "conflict" or error.head is None:
            self._session.renew_keys(error)
            return attempt.file
        known = known_file(attempt.file)
        return self._session.verify_newest(error.head, attempt.record.file_id, known)


class _Change(Value):
    """Whom a file has for readers after this one, by its head, and which wraps that takes."""

    readers: Callable[[FileRecord], tuple[ReaderEntry, ...]]
    wraps: Callable[[VerifiedFile], list[VersionWrap]]


class _Attempt(Value):
    """A change of a file's readers as it was sent."""

    file: VerifiedFile
    change: _Change
    record: FileRecord
    body: bytes
    request: SetReaders
    connection: int


def _dropping(user: str) -> _Change:
    def readers(head: FileRecord) -> tuple[ReaderEntry, ...]:
        return tuple(one for one in head.readers if one[0] != user)

    return _Change(readers, lambda _file: [])


def _prefix(folder: str) -> str:
    prefix = folder.strip("/")
    if prefix:
        check_name(prefix)
    elif folder not in ("", "/"):
        raise UsageError("that is no folder")
    return prefix
