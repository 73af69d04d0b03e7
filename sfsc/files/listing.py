"""List, show and delete files.

A listing is answered from the local cache after it was updated. The server is asked only for
changes since the last listing, so a second `ls` opens no file key and verifies nothing twice.
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
from sfsc.session.commit import build_tombstone, delete_file, find_current_file
from sfsc.session.pipeline import changed_since, pipelined
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session, known_file
from sfsc.trust.file_records import Entry, KnownRevision, VerifiedFile
from sfsc.trust.signature_cache import verify_in_background
from sfsc.trust.state import KnownFile


class _Deletion(Value):
    """A tombstone in flight; `made` is what will be known of the file."""

    entry: Entry
    made: KnownFile
    record: FileRecord
    signature: bytes
    request: Record


class Files:
    """Lists, shows and deletes the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ls(self, prefix: str = "") -> Iterator[Entry]:
        """Return the current version of every file whose name begins with `prefix`, by name."""
        self._refresh()
        # An entry without these bytes cannot have such a name, and is not unpacked. No name has a
        # lone surrogate, so a prefix with one matches nothing in either case.
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
        """Return the current version of `name` from the server. Raises `NotFound`."""
        return self._session.account.listing_entry(find_current_file(self._session, name))

    def rm(self, name: str) -> Entry:
        """Delete `name` with a signed record and return what was deleted; its versions stay. Raises
        `NotFound` if there is nothing to delete."""
        session = self._session
        file = find_current_file(session, name)
        deleted = delete_file(session, file, lambda onto: onto.deleted)
        return session.account.listing_entry(deleted)

    def rm_many(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Delete entries that `ls` returned, as a pipeline; entries that are gone by now are
        yielded too."""
        deletions = map(self._deletion, entries)
        requests = ((deletion, deletion.request) for deletion in deletions)
        yield from pipelined(self._session, requests, self._deleted)
        self._session.link_receipts()

    def _deletion(self, entry: Entry) -> _Deletion:
        session = self._session
        # Use only a verified record: it names readers, and an attacker could write one into the
        # state file.
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
        """Process a reply. A file that was changed meanwhile is deleted with another request."""
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

    def _refresh(self) -> None:
        """Update the cache with all changes since the last listing."""
        session, state = self._session, self._session.state
        session.refresh_state_key()
        # Anything appended from here on is fetched next time, whether this listing has it or not.
        complete = session.trust.newest.size
        since, known = state.listed_size(), state.all_revisions()
        ids: dict[bytes, str] = {}
        for page in changed_since(session, since):
            if page.views and not ids:
                ids = {revision.hash: file_id for file_id, revision in known.items()}
            views = self._uncached_views(page.views, ids)
            with verify_in_background(session.account.signature_checks(views)), state.transaction():
                self._remember_views(views, known)
        if state.is_current:
            state.remember_listed_size(complete)
        else:
            self._refresh()  # another process replaced the state's key, so nothing was cached

    def _uncached_views(
        self, views: Sequence[FileView], ids: Mapping[bytes, str]
    ) -> list[FileView]:
        """Return the views whose last record has no cached entry. `ids` maps the hashes of known
        files' last records to their ids. Nothing else in the view of a cached file is read."""
        last = (view.content if view.head is None else view.head for view in views)
        found = [ids.get(record_hash(one.record)) for one in last]
        cached = self._session.state.cached_revisions([one for one in found if one is not None])
        pairs = zip(views, found, strict=True)
        return [view for view, one in pairs if one is None or cached[one] is None]

    def _remember_views(self, views: Sequence[FileView], known: dict[str, KnownRevision]) -> None:
        """Verify views, and save them in the cache."""
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
        raise LocalError(f"the cached entry of file {file_id} is malformed: {exc}") from exc
