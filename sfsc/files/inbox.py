"""What others share with us: listed, found by owner and name, opened.

The server says only which files; who shares one, its name and until when, its own signed record and
sealed metadata say. A listing goes on past what is not right, and tells of it: a sharer is not
trusted with what he calls his files, nor can he spoil the sight of what others share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from protocol.codec import encoding
from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.fields import Count, Struct
from protocol.codec.names import check_file_id
from protocol.codec.values import Value
from protocol.wire.messages import Error, FileView
from protocol.wire.messages.files import Stat, Stated
from protocol.wire.messages.sharing import MAX_SHARED_PAGE, Inbox, InboxPage, SharedFile
from sfsc.crypto.envelope import check_name
from sfsc.errors import (
    BadRecord,
    ConflictError,
    IntegrityError,
    LocalError,
    NetworkError,
    NotFound,
    ProtocolFailure,
    SfscError,
    UsageError,
)
from sfsc.files.contacts import Contacts, Person
from sfsc.session.pipeline import Skip, pages
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.transfer.remote_version import RemoteVersion, VersionRequest
from sfsc.trust.file_records import Entry, FileOwner, VerifiedFile
from sfsc.trust.peer_state import KnownSharedFile, PeerState


class Shared(Value):
    """A file that `owner` lets us read until `expires` (unix seconds, 0 for no end), as a listing
    shows it; `verified` whether his key was ever compared."""

    owner: str
    entry: Entry
    expires: int
    verified: bool


class _Cached(Struct):
    AS_MAP: ClassVar[bool] = True

    entry: Entry
    expires: Count

    def pack(self) -> bytes:
        return encoding.pack(self.to_map())

    @classmethod
    def unpack(cls, packed: bytes) -> _Cached:
        try:
            return cls.from_map(encoding.unpack(packed))
        except (EncodingError, MessageError) as exc:
            raise LocalError(f"what is remembered of a shared file is malformed: {exc}") from exc


class ReceivedFiles:
    """Over one session."""

    def __init__(self, session: Session, people: Contacts) -> None:
        self._session = session
        self._people = people
        self._remembered = PeerState(session.state)

    def all(self, skip: Skip) -> list[Shared]:
        """Everything that is shared with us now, by owner and name.

        The server is asked only for what has changed since the last time. What is not right is told
        to `skip`, as OWNER:FILE_ID, and left out.
        """
        session, remembered = self._session, self._remembered
        session.refresh_state_key()
        complete = session.trust.newest.size
        known = {(one.owner, one.file_id): one for one in remembered.shared_files()}
        since, whole = remembered.received_size(), True
        found: list[Shared] = []
        for item in self._items(since):
            try:
                found.append(self._take_up(item, known.get((item.owner, item.file_id))))
            except NetworkError:
                raise
            except SfscError as exc:
                skip(f"{item.owner}:{item.file_id}", exc)
                whole = False
        if whole:
            remembered.remember_received_size(complete)
        return sorted(found, key=lambda one: (one.owner, one.entry.name))

    def open(
        self,
        owner: str,
        name: str,
        version: int = 0,
        *,
        file_id: str | None = None,
        first_use: bool = False,
    ) -> RemoteVersion:
        """A file that `owner` shares, by its name; by its id too where he has several of that name.

        Raises `NotFound`, `Untrusted` for an owner who was never verified, unless `first_use`, and
        `ConflictError`, which lists their ids, where the name is that of several; where it is that
        of none, what is wrong with a file of the owner whose name could not be read.
        """
        check_name(name)
        if file_id is not None:
            _check_id(file_id)
        person = self._people.trusted(owner, first_use=first_use)
        wanted = file_id or self._find(person, name)
        request = VersionRequest.build(
            self._session, wanted, version, name=name, owner=person.owner
        )
        return RemoteVersion.request(self._session, request)

    def inside(
        self, owner: str, folder: str, skip: Skip, *, first_use: bool = False
    ) -> tuple[FileOwner, list[Entry]]:
        """Every file that `owner` shares in the `folder` ("": all), by name. Raises `NotFound` for
        none; of several with one name only the first counts, the others are told to `skip`."""
        person = self._people.trusted(owner, first_use=first_use)
        prefix = folder.strip("/")
        found: dict[str, Entry] = {}
        for one in self.all(skip):
            name = one.entry.name
            if one.owner != owner or not (not prefix or name.startswith(f"{prefix}/")):
                continue
            if name in found:
                skip(name, ConflictError(f"{owner} shares several files of that name"))
            else:
                found[name] = one.entry
        if not found:
            raise NotFound(f"{owner} shares nothing in {prefix or 'his store'}", "see `sfsc inbox`")
        return person.owner, list(found.values())

    def _find(self, person: Person, name: str) -> str:
        wrong: list[SfscError] = []

        def note(what: str, error: SfscError) -> None:
            if what.startswith(f"{person.user}:") and isinstance(error, IntegrityError):
                wrong.append(error)

        ids = [
            one.entry.file_id
            for one in self.all(note)
            if one.owner == person.user and one.entry.name == name
        ]
        if not ids and wrong:
            raise wrong[0]  # it may be the very file: nobody is told that there is none
        if not ids:
            raise NotFound(
                f"{person.user} shares no file {name}", "`sfsc inbox` shows what there is"
            )
        if len(ids) > 1:
            raise ConflictError(
                f"{person.user} shares {len(ids)} files of that name: {', '.join(ids)}",
                "say which one with --id",
            )
        return ids[0]

    # --- asking -------------------------------------------------------------------------------

    def _items(self, since: int) -> Iterator[SharedFile]:
        def more(page: InboxPage) -> Inbox | None:
            return Inbox(page.next, MAX_SHARED_PAGE, since) if page.next else None

        last = ("", "")
        for page in pages(self._session, Inbox("", MAX_SHARED_PAGE, since), InboxPage, more):
            for item in page.files:
                if (item.owner, item.file_id) <= last:
                    raise ProtocolFailure("the server's inbox is out of order")
                last = (item.owner, item.file_id)
                yield item

    def _take_up(self, item: SharedFile, known: KnownSharedFile | None) -> Shared:
        """One file of the inbox, verified, or as it was when it was."""
        if item.owner == self._session.account.user:
            raise BadRecord("the server shows a file of ours as shared by another")
        person = self._people.find(item.owner)
        if item.view is None and known is not None and known.entry is not None:
            cached = _Cached.unpack(known.entry)
        else:
            cached = self._verified(item, known, person)
        return Shared(item.owner, cached.entry, cached.expires, person.pinned)

    def _verified(self, item: SharedFile, known: KnownSharedFile | None, person: Person) -> _Cached:
        session, owner = self._session, person.owner
        view = item.view or self._stat(item)
        file = owner.verify_newest(view, item.file_id, None if known is None else known.revision)
        if file.deleted:
            raise NotFound("the file was deleted")
        expires = self._expires(file)
        cached = _Cached(session.account.listing_entry(file, owner), expires)
        self._remembered.remember_file(KnownSharedFile.from_file(file, cached.pack()))
        return cached

    def _stat(self, item: SharedFile) -> FileView:
        reply = self._session.ask(Stat(item.owner, item.file_id, 0))
        if isinstance(reply, Error) and reply.code == "not-found":
            raise NotFound("the file is shared no more")
        return expect_reply(reply, Stated).view

    def _expires(self, file: VerifiedFile) -> int:
        """Until when we may read it, by its last record. Raises `BadRecord` where we may not."""
        account = self._session.account
        for user, first, expires in file.head.readers:
            if (user, first) == (account.user, account.first):
                return expires
        raise BadRecord("the server shows a file that its owner does not share with us")


def _check_id(file_id: str) -> None:
    try:
        check_file_id(file_id)
    except MessageError as exc:
        raise UsageError(str(exc), "`sfsc inbox --json` shows the ids") from exc
