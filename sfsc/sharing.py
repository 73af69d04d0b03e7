"""Sharing one's files: readers added and dropped by signed records, with the keys they need.

Who may read is in the file's last record, so a server can neither add a reader nor keep one. A
version's key is wrapped for a reader's present key, which his identity chain proves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol.messages import Done, Error
from protocol.messages.files import Stat, Stated
from protocol.messages.sharing import SetReaders, VersionWrap
from protocol.records import ACCESS, FileRecord, Reader
from sfsc.changes import MAX_CONFLICTS, find, find_living, landed, onto
from sfsc.envelope import Recipient, check_name
from sfsc.errors import ConflictError, NotFound, UsageError
from sfsc.folders import Folder, Folders
from sfsc.identity import File
from sfsc.listing import Files
from sfsc.people import People, Person
from sfsc.reencryption import Reencryption
from sfsc.refusals import answered
from sfsc.session import Session, known_file
from sfsc.state import KnownFile

PER_CHANGE: Final = 128
"""Versions that one change of the readers touches."""


@dataclass(frozen=True, slots=True)
class Grant:
    """That `user` may read a file, or a folder, until `expires` (unix seconds, 0 for no end)."""

    name: str
    user: str
    expires: int


class Sharing:
    """Over one session."""

    def __init__(self, session: Session, people: People, folders: Folders) -> None:
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
        file = find_living(self._session, name)
        person = self._people.trusted(user, first_use=first_use)
        self._share(file, person, expires, history=history)
        return Grant(name, user, expires)

    def unshare(self, name: str, user: str, *, reencrypt: bool = False) -> Grant:
        """Let `user` read `name` no more, from its acknowledgement on. With `reencrypt` the present
        version gets a new key as well: one that he kept opens nothing that is there.

        Raises `NotFound` where he is no reader of it.
        """
        file = find(self._session, name)
        if all(reader[0] != user for reader in file.head.readers):
            raise NotFound(f"{name} is not shared with {user}", "`sfsc stat` shows its readers")
        file = self._drop(file, user)
        if reencrypt and not file.deleted:
            Reencryption(self._session).version(file.file_id, file.head.current)
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
        for file in self._inside(prefix):
            if not file.deleted:
                self._share(file, person, expires, history=history)
                yield Grant(self._session.account.entry(file).name, user, expires)

    def unshare_tree(self, folder: str, user: str, *, reencrypt: bool = False) -> Iterator[Grant]:
        """Share the `folder` no more, nor any file in it."""
        prefix = _prefix(folder)
        self._folders.unshare(prefix, user)
        for file in self._inside(prefix):
            if any(reader[0] == user for reader in file.head.readers):
                name = self._session.account.entry(file).name
                dropped = self._drop(file, user)
                if reencrypt and not dropped.deleted:
                    Reencryption(self._session).version(file.file_id, dropped.head.current)
                yield Grant(name, user, 0)

    def readers(self, name: str) -> list[Grant]:
        """Who may read `name` beside us, by user."""
        head = find_living(self._session, name).head
        return [Grant(name, user, expires) for user, _, expires in head.readers]

    def _inside(self, prefix: str) -> Iterator[File]:
        entries = list(Files(self._session).ls(f"{prefix}/" if prefix else ""))
        for entry in entries:
            yield self._session.newest(entry.file_id)

    # --- one file -----------------------------------------------------------------------------

    def _share(self, file: File, person: Person, expires: int, *, history: bool) -> None:
        """One record that makes him a reader, with the newest wraps, and as many more as it takes
        for older versions."""
        older = _older(file) if history else []
        file = self._grant(file, person, expires, [file.version, *older[: PER_CHANGE - 1]])
        for start in range(PER_CHANGE - 1, len(older), PER_CHANGE):
            file = self._grant(file, person, expires, older[start : start + PER_CHANGE])

    def _grant(self, file: File, person: Person, expires: int, versions: list[int]) -> File:
        user, first = person.user, person.fingerprint

        def readers(head: FileRecord) -> tuple[Reader, ...]:
            others = [one for one in head.readers if one[0] != user]
            return tuple(sorted([*others, (user, first, expires)]))

        def wraps(present: File) -> list[VersionWrap]:
            # Anew for each try: his key may be another by now.
            recipient = self._people.recipient(self._people.known(user, first))
            wanted = [present.version if one == file.version else one for one in versions]
            found = [self._wrap(present, version, recipient) for version in wanted]
            return [one for one in found if one is not None]

        return self._change(file, readers, wraps)

    def _drop(self, file: File, user: str) -> File:
        def readers(head: FileRecord) -> tuple[Reader, ...]:
            return tuple(one for one in head.readers if one[0] != user)

        # A record drops the wraps of a bounded number of versions; who has more needs more.
        for _ in range(0, file.version, PER_CHANGE):
            file = self._change(file, readers, lambda _present: [])
        return file

    def _wrap(self, file: File, version: int, recipient: Recipient) -> VersionWrap | None:
        """The key of one version for a reader; None where its content was removed."""
        session, shown = self._session, file
        if version != file.version:
            stated = session.call(Stat(session.account.user, file.file_id, version), Stated)
            known = known_file(file).known
            shown = session.account.opened(stated.view, file.file_id, version, known)
        if not shown.metadata:
            return None
        key, _ = session.account.open(shown)
        (wrap,) = key.wrap(session.account.server_id, session.account.first, [recipient])
        return VersionWrap(version, wrap)

    def _change(
        self,
        file: File,
        readers: Callable[[FileRecord], tuple[Reader, ...]],
        wraps: Callable[[File], list[VersionWrap]],
    ) -> File:
        """Put an access record onto the head of `file`; the file as it is then."""
        session = self._session
        for _ in range(MAX_CONFLICTS):
            self._people.check_newest(file.head)
            head = file.head
            made = readers(head)
            record = onto(
                session, head, file.head_body, op=ACCESS, current=head.current, readers=made
            )
            body = record.encode()
            signature, connection = session.sign(body), session.connections
            reply = session.ask(SetReaders(body, signature, tuple(wraps(file))))
            if not isinstance(reply, Error):
                session.proven(answered(reply, Done).receipt, record, body, signature)
                session.join()
                return self._after(file, record, body)
            if reply.code != "conflict" or reply.head is None:
                session.renew(reply)
                continue
            if session.connections != connection and landed(session, record, body):
                return self._after(file, record, body)
            file = session.learn(reply.head, record.file_id, known_file(file))
        raise ConflictError("others keep changing the file", "run the command again")

    def _after(self, file: File, record: FileRecord, body: bytes) -> File:
        self._session.state.remember_file(KnownFile.of(record, body, file.version), None)
        return File(file.content, file.content_body, record, body, file.metadata, file.wraps)


def _older(file: File) -> list[int]:
    """Versions before the newest, newest first."""
    return list(range(file.version - 1, 0, -1))


def _prefix(folder: str) -> str:
    prefix = folder.strip("/")
    if prefix:
        check_name(prefix)
    elif folder not in ("", "/"):
        raise UsageError("that is no folder")
    return prefix
