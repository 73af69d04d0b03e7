"""Files that other users share with us: list, find by owner and name, open, leave; block an owner.

The server only names the files. Owner, name and expiry come from the file's own signed record and
sealed metadata. A listing skips invalid files and reports them: a sharer must not be able to hide
what other users share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_id, check_user_name
from protocol.codec.values import Value
from protocol.records.records import LeaveRecord, key_id, record_hash
from protocol.records.signatures import Label
from protocol.wire.messages import Done, Error, FileView
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.sharing import (
    MAX_SHARED_PAGE,
    BlockedOwners,
    BlockOwner,
    Identity,
    Inbox,
    InboxPage,
    LeaveFile,
    ListBlocked,
    Lookup,
    SharedFile,
)
from sfsc.crypto.envelope import check_name
from sfsc.errors import (
    BadReceipt,
    BadRecord,
    ConflictError,
    IntegrityError,
    NetworkError,
    NotFound,
    ProtocolFailure,
    SfscError,
    UsageError,
)
from sfsc.files.contacts import Contacts, Person
from sfsc.files.names import full_folders
from sfsc.files.versions import Space, is_within
from sfsc.session.commit import MAX_CONFLICTS
from sfsc.session.pipeline import Skip, pages
from sfsc.session.server_errors import damaged_version, expect_reply
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.trust.file_records import Entry, FileOwner, VerifiedFile
from sfsc.trust.peer_state import KnownSharedFile, PeerState, SharedEntry
from sfsc.trust.server_log import REPORT, SentChange

_PAST_ANY_CHAIN: Final = 1 << 31
"""Number of a statement that no user has."""


class Shared(Value):
    """A file that `owner` shares with us until `expires` (unix seconds, 0 for no end). `verified`
    tells whether the owner's key was ever compared."""

    owner: str
    entry: Entry
    expires: int
    verified: bool

    @property
    def expires_at(self) -> datetime | None:
        """End of the access, in UTC; None if it has none."""
        return as_datetime(self.expires)


class ReceivedFiles:
    """Lists and opens files that other users share with us."""

    def __init__(self, session: Session, contacts: Contacts) -> None:
        self._session = session
        self._contacts = contacts
        self._remembered = PeerState(session.state)

    def list_files(self, skip: Skip) -> list[Shared]:
        """Return all files shared with us now, by owner and name. The server is asked only for
        changes since the last time. Invalid files are left out and reported to `skip` as
        OWNER:FILE_ID."""
        session, remembered = self._session, self._remembered
        session.refresh_state_key()
        complete = session.trust.newest.size
        known = {(one.owner, one.file_id): one for one in remembered.shared_files()}
        since, whole = remembered.received_size(), True
        found: list[Shared] = []
        damaged: list[DamagedVersion] = []
        for item in self._changed_items(since, damaged):
            try:
                found.append(self._verify_item(item, known.get((item.owner, item.file_id))))
            except NetworkError:
                raise
            except SfscError as exc:
                skip(f"{item.owner}:{item.file_id}", exc)
                whole = False
        for one in damaged:
            # The server names it again each time, whatever was listed before.
            skip(f"{one.owner}:{one.file_id}", damaged_version(one))
        if whole:
            remembered.remember_received_size(complete)
        return sorted(found, key=lambda one: (one.owner, one.entry.name))

    def request_version(
        self,
        owner: str,
        name: str,
        version: int = 0,
        *,
        file_id: str | None = None,
        first_use: bool = False,
    ) -> RemoteVersion:
        """Request a file that `owner` shares, by name, and by id if the owner has several of that
        name.

        Raises `NotFound`, `Untrusted` if the owner was never verified and `first_use` is not set,
        and `ConflictError`, which lists the ids, if several files have the name. If none has it and
        a file of the owner is invalid, raises that file's error: it may be the one that was asked
        for.
        """
        check_name(name)
        if file_id is not None:
            try:
                check_file_id(file_id)
            except MessageError as exc:
                raise UsageError(str(exc), "`sfsc inbox --json` shows the ids") from exc
        person = self._contacts.find_trusted(owner, first_use=first_use)
        wanted = file_id or self._find_file_id(person, name)
        request = VersionRequest.build(
            self._session, wanted, version, name=name, owner=person.owner
        )
        return RemoteVersion.request(self._session, request)

    def list_folder(
        self, owner: str, folder: str, skip: Skip, *, first_use: bool = False
    ) -> tuple[FileOwner, list[Entry]]:
        """Return the owner, and every file that they share in `folder` ("": all), by name. Of
        several files with one name the first counts; the others are reported to `skip`. Raises
        `NotFound` if there is none."""
        person = self._contacts.find_trusted(owner, first_use=first_use)
        prefix = folder.strip("/")
        found: dict[str, Entry] = {}
        for one in self.list_files(skip):
            name = one.entry.name
            if one.owner != owner or not (not prefix or name.startswith(f"{prefix}/")):
                continue
            if name in found:
                skip(name, ConflictError(f"{owner} shares several files with that name"))
            else:
                found[name] = one.entry
        if not found:
            cause = f"{owner} shares no file in {prefix or 'their store'}"
            raise self._missing(owner, NotFound(cause, "see `sfsc inbox`"))
        return person.owner, list(found.values())

    def space(self, owner: str, name: str, skip: Skip) -> Space:
        """Return the space of the current versions of the file `name`, and of everything in the
        folder `name` ("": all), that `owner` shares."""
        shared = [one.entry for one in self.list_files(skip) if one.owner == owner]
        found = [entry for entry in shared if is_within(entry.name, name)]
        full = full_folders(entry.name for entry in found)
        count = sum(entry.name not in full for entry in found)
        return Space(count, 0, sum(entry.size for entry in found), 0, 0)

    def leave(self, owner: str, name: str, *, file_id: str | None = None) -> str:
        """Leave the file `name` of `owner`: nothing of it is shown to us any more, and the owner's
        client drops us as a reader. Return its id.

        `name` may also be an id, as a listing shows it for a file that it cannot show. Raises
        `NotFound`, and `ConflictError` as `request_version`.
        """
        if file_id is None:
            file_id = self._find_left_id(self._contacts.find(owner), name)
        session = self._session
        for _ in range(MAX_CONFLICTS):
            # Nothing is believed of what is shown here: the record names it by its hash only, and
            # the server refuses another hash than that of the last record.
            view = expect_reply(session.ask(Stat(owner, file_id, 0)), Stated).view
            if self._send_leave(owner, file_id, view):
                return file_id
        raise ConflictError("the owner keeps changing the file", "run the command again")

    def _find_left_id(self, person: Person, name: str) -> str:
        try:
            return self._find_file_id(person, name)
        except (NotFound, IntegrityError):
            try:
                check_file_id(name)
            except MessageError:
                pass
            else:
                return name
            raise

    def _send_leave(self, owner: str, file_id: str, view: FileView) -> bool:
        """Send the leave record onto the last record in `view`. Return False after a conflict, or
        after newer keys were adopted."""
        session = self._session
        session.adopt_newest()
        account, signer = session.account, session.record_signer()
        body = LeaveRecord(
            server=signer.server,
            user=account.user,
            first=account.first,
            generation=signer.generation,
            owner=owner,
            file_id=file_id,
            record=record_hash((view.head or view.content).record),
            created=int(time.time()),
        ).encode()
        signature, connection = signer.key.sign(Label.LEAVE, body), session.connections
        reply = session.ask(LeaveFile(body, signature))
        if isinstance(reply, Error):
            if reply.code == "not-found" and session.connections != connection:
                session.refresh_log()
                if session.log.has_left(record_hash(body)):
                    return True  # the first answer was lost
            if reply.code != "conflict":
                session.renew_keys(reply)
            return False
        signed = {key_id("ed25519", signer.key.public).hex(): signature}
        sent = SentChange("leave", account.user, owner, file_id, None, body, signed)
        session.accept_receipt(expect_reply(reply, Done).receipt, sent)
        session.link_receipts()
        return True

    def block(self, owner: str, *, blocked: bool = True) -> None:
        """Have the server show us nothing of what `owner` shares, and refuse what they share later;
        with `blocked` False, end that. Raises `NotFound` if there is no such user, and `Denied` if
        too many are blocked."""
        session, user = self._session, self._session.account.user
        try:
            check_user_name(owner)
        except MessageError as exc:
            raise UsageError(str(exc)) from exc
        if owner == user:
            raise UsageError("you cannot block yourself")
        reply = expect_reply(session.ask(BlockOwner(owner, blocked)), Done)
        sent = SentChange("block", user, user, None, None, b"", {})
        entry = session.accept_receipt(reply.receipt, sent)
        session.link_receipts()
        if (entry.detail.get("user"), entry.detail.get("blocked")) != (owner, blocked):
            raise BadReceipt("the log has another block than was asked for", REPORT)

    def blocked(self) -> tuple[str, ...]:
        """Return the owners whom we block, by name, as the server says."""
        return self._session.call(ListBlocked(), BlockedOwners).owners

    def stat(self, owner: str, name: str, file_id: str | None = None) -> Shared:
        """Return the file `name` that `owner` shares, verified; `file_id` chooses among several of
        that name. Raises `NotFound`, and `ConflictError` if there are several."""
        found = self._find(self._contacts.find(owner), name)
        ids = [one.entry.file_id for one in found]
        if file_id is None and len(ids) == 1:
            return found[0]
        if file_id in ids:
            return found[ids.index(file_id)]
        if file_id is None and ids:
            raise _not_one(owner, name, ids)
        raise self._missing(owner, _not_one(owner, name, []))

    def newest(
        self, owner: str, name: str, file_id: str | None = None
    ) -> tuple[FileOwner, VerifiedFile]:
        """Return the owner of a file as `stat` finds it, and its newest version, verified."""
        found = self.stat(owner, name, file_id).entry.file_id
        person = self._contacts.find(owner)
        view = expect_reply(self._session.ask(Stat(owner, found, 0)), Stated).view
        shared = self._remembered.shared_files()
        known = [one.revision for one in shared if (one.owner, one.file_id) == (owner, found)]
        return person.owner, person.owner.verify_newest(view, found, next(iter(known), None))

    def _find_file_id(self, person: Person, name: str) -> str:
        ids = [one.entry.file_id for one in self._find(person, name)]
        if not ids:
            raise self._missing(person.user, _not_one(person.user, name, ids))
        if len(ids) != 1:
            raise _not_one(person.user, name, ids)
        return ids[0]

    def _missing(self, owner: str, otherwise: SfscError) -> SfscError:
        """Return the error for a file that `owner` does not share: that the account was removed, or
        `otherwise`. Nothing follows from what the server says here but this text."""
        reply = self._session.ask(Lookup(owner, _PAST_ANY_CHAIN))
        if isinstance(reply, Identity) and reply.removed:
            return NotFound(f"the operator has removed {owner}, and what {owner} shared")
        return otherwise

    def _find(self, person: Person, name: str) -> list[Shared]:
        """Return the files of this name that a user shares. Raises the error of one that may be it,
        if there is none."""
        wrong: list[SfscError] = []

        def note(what: str, error: SfscError) -> None:
            if what.startswith(f"{person.user}:") and isinstance(error, IntegrityError):
                wrong.append(error)

        found = [
            one
            for one in self.list_files(note)
            if one.owner == person.user and one.entry.name == name
        ]
        if not found and wrong:
            raise wrong[0]  # it may be this file, so do not claim that there is none
        return found

    def _changed_items(self, since: int, damaged: list[DamagedVersion]) -> Iterator[SharedFile]:
        """Yield the listed files; add those that the server calls damaged to `damaged`."""

        def more(page: InboxPage) -> Inbox | None:
            return Inbox(page.next, MAX_SHARED_PAGE, since) if page.next else None

        last = ("", "")
        for page in pages(self._session, Inbox("", MAX_SHARED_PAGE, since), InboxPage, more):
            damaged += page.damaged
            for item in page.files:
                if (item.owner, item.file_id) <= last:
                    raise ProtocolFailure("the server's inbox is out of order")
                last = (item.owner, item.file_id)
                yield item

    def _verify_item(self, item: SharedFile, known: KnownSharedFile | None) -> Shared:
        """Return one file of the inbox, verified now or from the cache."""
        if item.owner == self._session.account.user:
            raise BadRecord("the server lists our own file as shared by another user")
        person = self._contacts.find(item.owner)
        if item.view is None and known is not None and known.entry is not None:
            cached = SharedEntry.unpack(known.entry)
        else:
            cached = self._verified(item, known, person)
        return Shared(item.owner, cached.entry, cached.expires, person.pinned)

    def _verified(
        self, item: SharedFile, known: KnownSharedFile | None, person: Person
    ) -> SharedEntry:
        session, owner = self._session, person.owner
        view = item.view or self._stat(item)
        file = owner.verify_newest(view, item.file_id, None if known is None else known.revision)
        if file.deleted:
            raise NotFound("the file was deleted")
        expires = self._expires(file)
        cached = SharedEntry(session.account.listing_entry(file, owner), expires)
        packed = cached.encode()
        self._remembered.remember_file(KnownSharedFile.from_file(file, packed))
        return cached

    def _stat(self, item: SharedFile) -> FileView:
        reply = self._session.ask(Stat(item.owner, item.file_id, 0))
        if isinstance(reply, Error) and reply.code == "not-found":
            raise NotFound("the file is no longer shared")
        return expect_reply(reply, Stated).view

    def _expires(self, file: VerifiedFile) -> int:
        """Return the expiry of our grant by the file's last record. Raises `BadRecord` if there is
        none."""
        account = self._session.account
        for user, first, expires in file.head.readers:
            if (user, first) == (account.user, account.first):
                return expires
        raise BadRecord("the server shows a file that its owner does not share with us")


def _not_one(owner: str, name: str, ids: list[str]) -> SfscError:
    if not ids:
        return NotFound(f"{owner} shares no file {name}", "see `sfsc inbox`")
    cause = f"{owner} shares {len(ids)} files with that name: {', '.join(ids)}"
    return ConflictError(cause, "select one with --id")
