"""Restore files: what was deleted, an old version, or a whole folder as it was at some time.

No content is encrypted or sent again: a signed record makes an old content the newest version. Many
files are fetched as a pipeline and committed together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from protocol.codec.values import Value
from protocol.records.records import record_hash
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import Metadata, WrapBatches
from sfsc.errors import NotFound, SfscError, UsageError
from sfsc.files.history import draft_restore, remember_restored
from sfsc.files.listing import deletions
from sfsc.files.names import full_folders
from sfsc.files.versions import StoredFile, StoredFiles, fetch_versions, is_trash, planned
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    PlannedChange,
    commit_changes,
    verify_head,
    with_present_wraps,
)
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.state import LoggedFile

RESTORED: Final = "restored"
DELETED: Final = "deleted"


class Restored(Value):
    """A file that was changed by a restore: `status` is ``restored``, with the new `version` and
    its `size` in bytes, or ``deleted``: it did not exist at the time that was restored."""

    name: str
    version: int
    size: int
    status: str


class Restores:
    """Restores many of the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stored = StoredFiles(session)

    def names(self, names: Iterable[str], skip: Skip) -> Iterator[Restored]:
        """Bring back deleted files, each with what it held last. Those that fail are passed to
        `skip`."""
        wanted = list[tuple[StoredFile, int]]()
        for file in self._stored.by_names(names, skip):
            if not file.logged.deleted:
                hint = "name the --version to bring back"
                skip(file.name, UsageError("the file is not deleted", hint))
            elif not file.logged.kept:
                skip(file.name, NotFound("the contents of all versions were removed"))
            else:
                wanted.append((file, file.logged.kept[-1]))
        return self._restore(wanted, skip, only_deleted=True)

    def folder(self, folder: str, at: int | None, skip: Skip) -> Iterator[Restored]:
        """Bring back every deleted file in `folder` ("": all). With `at`, in unix seconds, make the
        folder what it was then: changed files get the version of that time, and files that did not
        exist are deleted. Files that were not changed since are left out; those that fail are
        passed to `skip`. Raises `NotFound` if no file is or was in the folder, or was then."""
        found = self._stored.in_folder(folder, skip)
        full = full_folders(file.name for file in found)
        for one in self._restore_folder(found, at, skip):
            if one.name not in full:
                yield one

    def _restore_folder(
        self, found: Sequence[StoredFile], at: int | None, skip: Skip
    ) -> Iterator[Restored]:
        if at is None:
            wanted = [(one, one.logged.kept[-1]) for one in found if is_trash(one.logged)]
            yield from self._restore(wanted, skip, only_deleted=True)
            return
        wanted, later = [], list[StoredFile]()
        versions = {file.file_id: file.logged.version_at(at) for file in found}
        if not any(versions.values()):
            raise NotFound("there was no file in it at that time", "`sfsc rm -r` deletes a folder")
        for file in found:
            version = versions[file.file_id]
            current = 0 if file.logged.deleted else file.logged.head.version
            if not version and current:
                later.append(file)
            elif version not in (0, current) and not _same_content(file.logged, version, current):
                wanted.append((file, version))
        self._session.progress.expect_items(len(wanted) + len(later))
        yield from self._restore(wanted, skip, only_deleted=False)
        gone = ((one.file_id, one.name, Restored(one.name, 0, 0, DELETED)) for one in later)
        yield from commit_changes(self._session, deletions(self._session, gone), skip)

    def _restore(
        self, wanted: Iterable[tuple[StoredFile, int]], skip: Skip, *, only_deleted: bool
    ) -> Iterator[Restored]:
        """Make these versions the newest ones of their files."""
        found = {file.file_id: (file, version) for file, version in wanted}
        places = [(file_id, version) for file_id, (_, version) in found.items()]

        def note(file_id: str, error: SfscError) -> None:
            skip(found[file_id][0].name, error)

        def restoration(source: VerifiedFile) -> _Restoration:
            name = found[source.file_id][0].name
            return _Restoration(self._session, name, source, only_deleted=only_deleted)

        changes = planned(fetch_versions(self._session, places, note), restoration, note)
        return commit_changes(self._session, changes, skip)


def _same_content(file: LoggedFile, version: int, other: int) -> bool:
    """Return whether two versions of a file have the same content."""
    facts = file.versions
    return other > 0 and facts[version].content_id == facts[other].content_id


class _Restoration(PlannedChange[Restored]):
    """The version `source` becomes the newest one of its file; if `only_deleted`, unless another
    device has stored or restored the file meanwhile."""

    def __init__(
        self, session: Session, name: str, source: VerifiedFile, *, only_deleted: bool
    ) -> None:
        self.name = name
        self._session = session
        self._source = source
        self._only_deleted = only_deleted
        self._metadata: Metadata
        logged = session.state.logged_heads([source.file_id])[source.file_id]
        left = source.head.readers and session.log.left_readers(source.file_id)
        if logged.hash == record_hash(source.head_body) and not left:
            self._onto = source.head, source.head_body, logged.version
        else:
            self._set_newest(session.fetch_newest(source.file_id))

    def _set_newest(self, newest: VerifiedFile) -> None:
        newest = self._session.without_left(newest)
        self._onto = newest.head, newest.head_body, newest.version

    def draft(self, batches: WrapBatches) -> Draft | None:
        session, (head, body, version) = self._session, self._onto
        if self._only_deleted and head.current:
            return None
        self._source = with_present_wraps(session, self._source)
        key, self._metadata = session.account.open_version(self._source)
        onto = head, body, version + 1
        return draft_restore(session, self._source, key, self._metadata, onto, batches)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._set_newest(verify_head(session, self._source.file_id, head, since))

    def committed(self, draft: Draft, _receipt: Receipt | None) -> Restored:
        entry = remember_restored(self._session, draft.record, draft.body, self._metadata)
        return Restored(self.name, entry.version, entry.size, RESTORED)
