"""List, show and delete files.

A listing is answered from the local cache after it was updated. The server is asked only for
changes since the last listing, so a second `ls` opens no file key and verifies nothing twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from protocol.codec.errors import EncodingError, MessageError
from protocol.records.records import FileRecord, record_hash
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import WrapBatches
from sfsc.errors import (
    Damaged,
    IntegrityError,
    KeyringError,
    LocalError,
    NotFound,
    Rollback,
    SfscError,
)
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    PlannedChange,
    build_tombstone,
    commit_changes,
    delete_file,
    draft_of,
    find_current_file,
    verify_head,
    with_present_wraps,
)
from sfsc.session.pipeline import Skip, changed_since
from sfsc.session.server_errors import damaged_version
from sfsc.session.session import Session, known_file
from sfsc.trust.file_records import Entry, VerifiedFile, parse_record
from sfsc.trust.server_log import REPORT
from sfsc.trust.signature_cache import verify_in_background
from sfsc.trust.state import KnownFile


class Files:
    """Lists, shows and deletes the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ls(self, prefix: str = "", skip: Skip | None = None) -> Iterator[Entry]:
        """Return the current version of every file whose name begins with `prefix`, by name.

        Each file that the server does not show, although it is known or in the account's log, and
        each that is damaged is passed to `skip`, under its name or its id if no name is known.
        Without `skip`, the first of these errors is raised after the last entry.
        """
        errors, current = self._refresh()
        unreadable = self._name_unreadable(errors, prefix)
        # An entry without these bytes cannot have such a name, and is not unpacked. No name has a
        # lone surrogate, so a prefix with one matches nothing in either case.
        part = prefix.encode(errors="surrogatepass")
        found = [
            entry
            for file_id, packed in current.items()
            if part in packed
            and file_id not in errors
            and not self._session.account.is_settings(file_id)
            and (entry := _unpack(file_id, packed)).name.startswith(prefix)
        ]
        found.sort(key=lambda entry: entry.name)
        if skip is None:
            return _then_raise(found, [error for _, error in unreadable])
        for name, error in unreadable:
            skip(name, error)
        return iter(found)

    def stat(self, name: str) -> Entry:
        """Return the current version of `name` from the server. Raises `NotFound`."""
        return self._session.account.listing_entry(find_current_file(self._session, name))

    def rm(self, name: str) -> Entry:
        """Delete `name` with a signed record and return what was deleted; its versions stay. Raises
        `NotFound` if there is nothing to delete."""
        session = self._session
        file = find_current_file(session, name)
        deleted = delete_file(session, file, lambda onto: onto.deleted)
        try:
            # Another device may have deleted it first: then the head names no content.
            shown = with_present_wraps(session, session.confirm_version(deleted))
            return session.account.listing_entry(shown)
        except (Damaged, KeyringError):
            made = deleted.content  # its metadata is lost or does not open: size and mode unknown
            size, when = made.ciphertext_size or 0, made.created
            revision, version = deleted.head.rev, deleted.version
            return Entry(name, file.file_id, version, revision, 0, size, when, None, when)

    def rm_many(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Delete entries that `ls` returned, many together; entries that are gone by now are
        yielded too."""
        return commit_changes(self._session, (_Deletion(self._session, entry) for entry in entries))

    def _refresh(self) -> tuple[dict[str, SfscError], dict[str, bytes]]:
        """Update the cache with all changes since the last listing. Return what is wrong with each
        file that cannot be listed, and the packed entries of the others, both by file_id.

        The log decides which files there are: an entry counts only if it describes the file's
        newest record in the log. Any other file is fetched."""
        session, state = self._session, self._session.state
        session.refresh_state_key()
        unreadable: dict[str, SfscError] = {}
        # Anything appended from here on is fetched next time, whether this listing has it or not.
        complete = session.followed_size
        since, known = state.listed_size(), state.all_revisions()
        ids: dict[bytes, str] = {}
        damaged: dict[str, SfscError] = {}
        invalid: dict[str, SfscError] = {}
        for page in changed_since(session, since):
            if page.views and not ids:
                ids = {revision.hash: file_id for file_id, revision in known.items()}
            views = self._uncached_views(page.views, ids)
            with verify_in_background(session.account.signature_checks(views)), state.transaction():
                invalid |= self._remember_views(views, complete)
            damaged |= {one.file_id: damaged_version(one) for one in page.damaged}
        if state.is_current:
            # The server names damaged files each time, and invalid ones are fetched again.
            if all(isinstance(error, Damaged) for error in invalid.values()):
                state.remember_listed_size(complete)
        else:
            return self._refresh()  # another process replaced the state's key: nothing was cached
        unreadable |= damaged | invalid
        logged = {file_id: head.hash for file_id, head in state.logged_heads().items()}
        gone, current = state.deleted_files(), dict[str, bytes]()
        others = {file_id for file_id, digest in logged.items() if gone.get(file_id) != digest}
        for file_id, digest, packed in state.cached_entries():
            if logged.get(file_id) == digest:
                current[file_id] = packed
                others.discard(file_id)
            else:
                others.add(file_id)
        for file_id in sorted(others - unreadable.keys()):
            try:
                if (entry := self._examine(file_id)) is not None:
                    current[file_id] = entry
            except (IntegrityError, KeyringError) as exc:
                unreadable[file_id] = exc
        return unreadable, current

    def _examine(self, file_id: str) -> bytes | None:
        """Ask for a file that the listing should have shown. Return its packed entry, None if it
        was deleted. Raises what is wrong with it."""
        session = self._session
        try:
            file = session.fetch_newest(file_id)
        except NotFound as exc:
            session.state.drop_entry(file_id)
            raise Rollback("this machine knows the file, but the server does not", REPORT) from exc
        entry = None if file.deleted else session.account.listing_entry(file).pack()
        session.state.remember_file(known_file(file), entry)
        return entry

    def _name_unreadable(
        self, errors: Mapping[str, SfscError], prefix: str
    ) -> list[tuple[str, SfscError]]:
        """Return (name, error) pairs by name, without files known to be outside of `prefix`."""
        state, found = self._session.state, list[tuple[str, SfscError]]()
        for file_id, error in errors.items():
            packed = state.last_entry(file_id)
            name = None if packed is None else _unpack(file_id, packed).name
            if self._session.account.is_settings(file_id):
                found.append(("the account's settings", error))
            elif name is None or name.startswith(prefix):
                found.append((name or file_id, error))
        return sorted(found, key=lambda one: one[0])

    def _uncached_views(
        self, views: Sequence[FileView], ids: Mapping[bytes, str]
    ) -> list[FileView]:
        """Return the views whose last record has no cached entry, and those without content. `ids`
        maps the hashes of known files' last records to their ids. Nothing else in the view of a
        cached file is read."""
        last = (view.content if view.head is None else view.head for view in views)
        found = [ids.get(record_hash(one.record)) for one in last]
        cached = self._session.state.cached_revisions([one for one in found if one is not None])
        pairs = zip(views, found, strict=True)
        return [
            view for view, one in pairs if one is None or cached[one] is None or not view.metadata
        ]

    def _remember_name(self, file: VerifiedFile) -> None:
        """Remember the name of a file whose older revision was shown, to name it in errors."""
        state = self._session.state
        if state.file(file.file_id) is None and not file.deleted:
            with contextlib.suppress(IntegrityError, KeyringError):
                entry = self._session.account.listing_entry(file).pack()
                state.remember_file(known_file(file), entry)
                state.drop_entry(file.file_id)

    def _remember_views(self, views: Sequence[FileView], since: int) -> dict[str, SfscError]:
        """Verify views, and save them in the cache. Return the errors of those that are not valid
        or do not open, by file_id."""
        session, files = self._session, list[VerifiedFile]()
        invalid: dict[str, SfscError] = {}
        for view in views:
            try:
                file = session.account.verify_newest(view, None, None)
            except IntegrityError as exc:
                session.keep_evidence(exc)
                invalid[parse_record(view.content).file_id] = exc
                continue
            try:
                session.check_head(file.head, file.head_body, view.at, since)
            except IntegrityError as exc:
                session.keep_evidence(exc)
                invalid[file.file_id] = exc
                self._remember_name(file)
            else:
                files.append(file)
        cached = session.state.cached_revisions([file.file_id for file in files])
        learnt: list[tuple[KnownFile, bytes | None]] = []
        for file in files:
            present = known_file(file)
            entry = None
            try:
                if not file.deleted and (
                    cached[file.file_id] != present.revision or not file.metadata
                ):
                    entry = session.account.listing_entry(file).pack()
            except (IntegrityError, KeyringError) as exc:
                invalid[file.file_id] = exc
                session.state.drop_entry(file.file_id)
            if cached[file.file_id] != present.revision:
                learnt.append((present, entry))
        session.state.remember_files(learnt)
        return invalid


class _Deletion(PlannedChange[Entry]):
    """A tombstone for an entry of a listing, as it is or as it has become."""

    def __init__(self, session: Session, entry: Entry) -> None:
        self._session = session
        self._entry = entry
        # Use only a verified record: it names readers, and an attacker could write one into the
        # state file.
        self._known = session.state.verified_file(entry.file_id)

    def draft(self, _batches: WrapBatches) -> Draft | None:
        if self._known is None:
            self._known = known_file(self._session.fetch_newest(self._entry.file_id))
        if self._known.deleted:
            return None
        head = FileRecord.parse(self._known.record)
        return draft_of(build_tombstone(self._session, head, self._known.record))

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._known = known_file(verify_head(session, self._entry.file_id, head, since))

    def unneeded(self) -> Iterable[Entry]:
        return (self._entry,)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> Entry:
        version = 0 if self._known is None else self._known.version
        made = KnownFile.from_record(draft.record, draft.body, version)
        self._session.state.remember_file(made, None)
        return self._entry


def _then_raise(entries: Iterable[Entry], errors: Sequence[SfscError]) -> Iterator[Entry]:
    """Yield the entries, then raise the first error, if there is one."""
    yield from entries
    if errors:
        raise errors[0]


def _unpack(file_id: str, packed: bytes) -> Entry:
    try:
        return Entry.unpack(packed)
    except (EncodingError, MessageError) as exc:
        raise LocalError(f"the cached entry of file {file_id} is malformed: {exc}") from exc
