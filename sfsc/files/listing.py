"""Looking at files, and deleting them.

A listing is answered from what is remembered, brought up to date first: the server is asked only
for what changed since the last time, so that a second `ls` opens no file key. What was verified
once is not verified again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from protocol.codec.errors import EncodingError, MessageError
from protocol.codec.values import Value
from protocol.records.records import FileRecord, record_hash
from protocol.wire.messages import Done, Error, FileView, Reply
from protocol.wire.messages.files import Record, RecordChange
from sfsc.errors import LocalError, NotFound
from sfsc.session.commit import (
    Built,
    build_tombstone,
    change_file,
    change_request,
    find_current_file,
)
from sfsc.session.pipeline import Window, changed_since
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.trust.file_records import Entry, KnownRevision, VerifiedFile
from sfsc.trust.signature_cache import verify_in_background
from sfsc.trust.state import KnownFile


class _Deletion(Value):
    """A tombstone on its way; `made` is what will be known of the file."""

    entry: Entry
    made: KnownFile
    record: FileRecord
    signature: bytes
    request: Record


class Files:
    """Lists, shows and deletes files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ls(self, prefix: str = "") -> Iterator[Entry]:
        """The current version of every file whose name begins with `prefix`, by name."""
        self._follow()
        # What does not have these bytes in it has no such name, and is not read. No name has a lone
        # surrogate, so that no more than that is lost where a prefix does.
        part = prefix.encode(errors="surrogatepass")
        found = [
            entry
            for file_id, packed in self._session.state.entries()
            if part in packed
            and not self._session.account.is_settings(file_id)
            and (entry := _unpack(file_id, packed)).name.startswith(prefix)
        ]
        return iter(sorted(found, key=lambda entry: entry.name))

    def stat(self, name: str) -> Entry:
        """The current version of `name`, as the server has it now. Raises `NotFound`."""
        return self._session.account.listing_entry(find_current_file(self._session, name))

    def rm(self, name: str) -> Entry:
        """Delete `name`: a signed record says so from now on. What it deleted; its versions stay.

        Raises `NotFound` where there is nothing to delete.
        """
        session, file = self._session, find_current_file(self._session, name)

        def build(onto: VerifiedFile) -> Built | None:
            nonlocal file
            file = onto
            if onto.deleted:
                return None
            return build_tombstone(session, onto.head, onto.head_body), change_request()

        if (made := change_file(session, file, build)) is not None:
            record, body = made
            session.state.remember_file(KnownFile.from_record(record, body, file.version), None)
        return session.account.listing_entry(file)

    def rm_many(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Delete what `ls` gave, without waiting for each; those that are gone by now too."""
        window = Window[_Deletion](self._session)
        try:
            for entry in entries:
                if window.full:
                    yield self._deleted(*window.take())
                deletion = self._deletion(entry)
                window.send(deletion, deletion.request)
            while window:
                yield self._deleted(*window.take())
        finally:
            window.abandon()
        self._session.link_receipts()

    def _deletion(self, entry: Entry) -> _Deletion:
        session = self._session
        # Who can write the state's file must have no record of his signed upon: it names readers.
        known = session.state.verified_file(entry.file_id)
        if known is None:
            known = known_file(session.fetch_newest(entry.file_id))
        record = build_tombstone(session, FileRecord.parse(known.record), known.record)
        body = record.encode()
        signature = session.sign(body)
        request = Record((RecordChange(body, signature, b"", ()),))
        return _Deletion(
            entry, KnownFile.from_record(record, body, known.version), record, signature, request
        )

    def _deleted(self, deletion: _Deletion, reply: Reply) -> Entry:
        """Follow up on a reply: what was changed meanwhile is deleted by itself."""
        session, made = self._session, deletion.made
        if isinstance(reply, Error):
            if reply.code != "conflict":
                session.renew_keys(reply)
            with contextlib.suppress(NotFound):
                self.rm(deletion.entry.name)
            return deletion.entry
        receipt = expect_reply(reply, Done).receipt
        session.verify_receipt(receipt, deletion.record, made.record, deletion.signature)
        session.state.remember_file(made, None)
        return deletion.entry

    # --- following the server -----------------------------------------------------------------

    def _follow(self) -> None:
        """Bring what is remembered up to date: all that changed since the last listing."""
        session, state = self._session, self._session.state
        session.refresh_state_key()
        # What is appended from here on is seen next time, whether this listing has it or not.
        complete = session.trust.newest.size
        since, known = state.listed_size(), state.all_revisions()
        ids: dict[bytes, str] = {}
        for page in changed_since(session, since):
            if page.views and not ids:
                ids = {revision.hash: file_id for file_id, revision in known.items()}
            views = self._news(page.views, ids)
            with verify_in_background(session.account.signature_checks(views)), state.transaction():
                self._take_up(views, known)
        if state.is_current:
            state.remember_listed_size(complete)
        else:
            self._follow()  # it was changed under our hands, and these are not cached

    def _news(self, views: Sequence[FileView], ids: Mapping[bytes, str]) -> list[FileView]:
        """Those of whose last record no entry is cached. `ids` are the files that are known, by the
        hash of their last record. Of one that is known and cached there is nothing to be learnt,
        whatever else the server shows with it, and nothing of it is read."""
        last = (view.content if view.head is None else view.head for view in views)
        found = [ids.get(record_hash(one.record)) for one in last]
        cached = self._session.state.cached_revisions([one for one in found if one is not None])
        pairs = zip(views, found, strict=True)
        return [view for view, one in pairs if one is None or cached[one] is None]

    def _take_up(self, views: Sequence[FileView], known: dict[str, KnownRevision]) -> None:
        session, files = self._session, list[VerifiedFile]()
        for view in views:
            file = session.account.verify_newest(view, None, None)
            file.check_not_older(known.get(file.file_id))
            files.append(file)
        cached = session.state.cached_revisions([file.file_id for file in files])
        learnt: list[tuple[KnownFile, bytes | None]] = []
        for file in files:
            present = known_file(file)
            if cached[file.file_id] != present.revision:
                entry = None if file.deleted else session.account.listing_entry(file).pack()
                learnt.append((present, entry))
        session.state.remember_files(learnt)


def _unpack(file_id: str, packed: bytes) -> Entry:
    try:
        return Entry.unpack(packed)
    except (EncodingError, MessageError) as exc:
        raise LocalError(f"what is remembered of file {file_id} is malformed: {exc}") from exc
