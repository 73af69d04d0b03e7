"""Looking at files, and deleting them.

A listing is answered from what is remembered, brought up to date first: the server is asked only
for what changed since the last time, so that a second `ls` opens no file key. What was verified
once is not verified again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, overload

from protocol.errors import EncodingError, MessageError
from protocol.messages import Done, Error, FileView
from protocol.messages.base import Wrap
from protocol.messages.files import MAX_PAGE, List, Listing, Record, RecordChange
from protocol.records import DELETE, FileRecord, record_hash
from sfsc.envelope import check_name
from sfsc.errors import ConflictError, LocalError, NotFound, ProtocolFailure
from sfsc.identity import Entry, File
from sfsc.session import Session, answered, known_file, refusal
from sfsc.state import KnownFile

MAX_CONFLICTS: Final = 16
"""How often someone may be faster before a change gives up."""
Built = tuple[FileRecord, bytes, tuple[Wrap, ...]]
"""A record, and the sealed metadata and the wraps that go with it."""


class Files:
    """Lists, shows and deletes files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ls(self, prefix: str = "") -> Iterator[Entry]:
        """The current version of every file whose name begins with `prefix`, by name."""
        self._follow()
        found = [
            entry
            for file_id, packed in self._session.state.entries()
            if (entry := _unpack(file_id, packed)).name.startswith(prefix)
        ]
        return iter(sorted(found, key=lambda entry: entry.name))

    def stat(self, name: str) -> Entry:
        """The current version of `name`, as the server has it now. Raises `NotFound`."""
        return self._session.account.entry(self._living(name))

    def rm(self, name: str) -> Entry:
        """Delete `name`: a signed record says so from now on. What it deleted; its versions stay.

        Raises `NotFound` where there is nothing to delete.
        """
        file = self._living(name)

        def build(onto: File) -> Built | None:
            nonlocal file
            file = onto
            return None if onto.deleted else (self._tombstone(onto), b"", ())

        if (made := change_file(self._session, file, build)) is not None:
            record, body = made
            self._session.state.remember_file(KnownFile.of(record, body, file.version), None)
        return self._session.account.entry(file)

    def _living(self, name: str) -> File:
        check_name(name)
        missing = NotFound(f"there is no file {name}", "`sfsc ls` shows what there is")
        try:
            file = self._session.newest(self._session.account.file_id(name))
        except NotFound as exc:
            raise missing from exc
        if file.deleted:
            raise missing
        return file

    def _tombstone(self, file: File) -> FileRecord:
        author = self._session.author
        return FileRecord(
            server=author.server,
            owner=author.owner,
            actor=author.actor,
            generation=author.generation,
            file_id=file.file_id,
            rev=file.head.rev + 1,
            op=DELETE,
            prev=record_hash(file.head_body),
            seen=self._session.seen,
            created=int(time.time()),
            readers=file.head.readers,
            current=0,
        )

    # --- following the server -----------------------------------------------------------------

    def _follow(self) -> None:
        """Bring what is remembered up to date: all that changed since the last listing."""
        session, state = self._session, self._session.state
        # What is appended from here on is seen next time, whether this listing has it or not.
        complete = session.trust.newest.size
        since, known = state.listed(), state.revisions()
        after = ""
        while True:
            page = session.call(List(after, MAX_PAGE, since), Listing)
            with state.changing():
                for view in page.views:
                    self._take_up(view, known)
            if page.next == "":
                break
            if page.next <= after:
                raise ProtocolFailure("the server's listing goes round in circles")
            after = page.next
        state.remember_listed(complete)

    def _take_up(self, view: FileView, known: dict[str, tuple[int, bytes]]) -> None:
        session = self._session
        file = session.account.newest(view, None, None)
        file.check_not_older(known.get(file.file_id))
        present = known_file(file)
        if session.state.has_entry(present.file_id, present.hash):
            return
        entry = None if file.deleted else session.account.entry(file).pack()
        session.state.remember_file(present, entry)


@overload
def change_file(
    session: Session, file: File, build: Callable[[File], Built]
) -> tuple[FileRecord, bytes]: ...
@overload
def change_file(
    session: Session, file: File, build: Callable[[File], Built | None]
) -> tuple[FileRecord, bytes] | None: ...
def change_file(
    session: Session, file: File, build: Callable[[File], Built | None]
) -> tuple[FileRecord, bytes] | None:
    """Put the record that `build` makes onto the head of `file`, without new ciphertext.

    Where someone was faster, it is built again onto the newer head; None from `build` says that
    nothing is left to do. Returns the record and its exact bytes, proven to stand in the log.
    Raises `ConflictError` where others keep changing the file.
    """
    for _ in range(MAX_CONFLICTS):
        built = build(file)
        if built is None:
            return None
        record, metadata, wraps = built
        body = record.encode()
        signature = session.sign(body)
        reply = session.ask(Record((RecordChange(body, signature, metadata, wraps),)))
        if not isinstance(reply, Error):
            session.proven(answered(reply, Done).receipt, record, body, signature)
            session.join()
            return record, body
        if reply.code != "conflict" or reply.head is None:
            raise refusal(reply)
        file = session.learn(reply.head, record.file_id, known_file(file))
    raise ConflictError("others keep changing the file", "run the command again")


def _unpack(file_id: str, packed: bytes) -> Entry:
    try:
        return Entry.unpack(packed)
    except (EncodingError, MessageError) as exc:
        raise LocalError(f"what is remembered of file {file_id} is malformed: {exc}") from exc
