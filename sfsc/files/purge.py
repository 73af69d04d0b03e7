"""Remove contents permanently: the old versions of files that exist, and deleted files.

Which versions still have a content is known from the log. So many files are purged without a
request for each, by signed records that are sent together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from protocol.codec.values import Value
from protocol.records.records import PURGED_AT_ONCE, FileRecord, record_hash
from protocol.wire.messages import FileView, Receipt
from protocol.wire.messages.files import Stat, Stated
from sfsc.crypto.envelope import WrapBatches
from sfsc.errors import ConflictError, SfscError, UsageError
from sfsc.files.endorse import endorse_rebuilt, is_endorsed
from sfsc.files.history import FileHistory
from sfsc.files.listing import deletions
from sfsc.files.names import full_folders
from sfsc.files.versions import StoredFile, StoredFiles
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    TOGETHER,
    PlannedChange,
    build_purge,
    commit_changes,
    draft_of,
    verify_head,
)
from sfsc.session.pipeline import Skip, pipelined
from sfsc.session.session import Session, known_file
from sfsc.trust.state import KnownFile, LoggedFile, MadeRecord

ALL: Final = 0
"""Number of versions to keep, of a deleted file: none."""


class Purged(Value):
    """A file of which the contents of `versions` were removed."""

    name: str
    versions: tuple[int, ...]


class Purges:
    """Purges many of the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stored = StoredFiles(session)

    def prune(self, names: Iterable[str], keep: int, skip: Skip) -> Iterator[Purged]:
        """Purge all but the newest `keep` versions of files, deleted or not."""
        _check_keep(keep)
        return purge_files(self._session, self._stored.by_names(names, skip), keep, skip)

    def prune_tree(self, folder: str, keep: int, skip: Skip) -> Iterator[Purged]:
        """Purge all but the newest `keep` versions of all files in `folder`, deleted or not."""
        _check_keep(keep)
        files = self._stored.in_folder(folder, skip)
        return self._without_folders(purge_files(self._session, files, keep, skip), files)

    def purge(self, name: str) -> list[int]:
        """Purge a deleted file. Return the versions whose contents were removed."""

        def fail(_name: str, error: SfscError) -> None:
            raise error

        files = self._stored.by_names([name], fail)
        if not files[0].logged.deleted:
            raise UsageError("the file is not deleted", "delete it first: `sfsc rm --purge`")
        found = purge_files(self._session, files, ALL, fail)
        return [version for one in found for version in one.versions]

    def delete_and_purge(self, names: Iterable[str], skip: Skip) -> Iterator[Purged]:
        """Delete files, if needed, and purge them. Yield also those that had no content left."""
        return self._delete_and_purge(self._stored.by_names(names, skip), skip)

    def purge_tree(self, folder: str, skip: Skip) -> Iterator[Purged]:
        """Delete and purge all files in `folder`, also those that were deleted before."""
        files = self._stored.in_folder(folder, skip)
        return self._without_folders(self._delete_and_purge(files, skip), files)

    def purge_trash(self, before: int | None, skip: Skip) -> Iterator[Purged]:
        """Purge the deleted files, or only those that were deleted `before` a unix time."""
        trash = self._stored.trash("", skip)
        old = [one for one in trash if before is None or one.logged.head.facts.ended < before]
        return self._without_folders(purge_files(self._session, old, ALL, skip), old)

    def _without_folders(
        self, found: Iterable[Purged], files: Iterable[StoredFile]
    ) -> Iterator[Purged]:
        """Yield what is reported: not the folders in which there is one of the `files`."""
        full = full_folders(file.name for file in files)
        return (one for one in found if one.name not in full)

    def _delete_and_purge(self, files: list[StoredFile], skip: Skip) -> Iterator[Purged]:
        living = [one for one in files if not one.logged.deleted]
        found = ((one.file_id, one.name, one) for one in living)
        deleted = list(commit_changes(self._session, deletions(self._session, found), skip))
        gone = [one for one in files if one.logged.deleted]
        for file in (now := self._stored.again([*gone, *deleted])):
            if not file.logged.kept:
                yield Purged(file.name, ())
        yield from purge_files(self._session, now, ALL, skip)


def _check_keep(keep: int) -> None:
    if keep < 1:
        raise UsageError("nothing would be kept", "use `sfsc rm --purge` to remove the whole file")


def removable(file: LoggedFile, keep: int) -> list[int]:
    """Return the versions that have a content, without the newest `keep` and the current one."""
    kept = file.kept
    current = 0 if file.deleted else file.head.version
    return [version for version in kept[: max(len(kept) - keep, 0)] if version != current]


def purge_files(
    session: Session, files: Iterable[StoredFile], keep: int, skip: Skip | None = None
) -> Iterator[Purged]:
    """Permanently remove the contents of all but the newest `keep` versions of each file, never
    that of the current version. Yield the files of which something was removed. With `keep` 0 the
    files must be deleted. A file that fails is passed to `skip`; without it, its error is raised at
    the end: `ConflictError` if it was put or restored meanwhile."""
    pending = {one.file_id: one for one in files if removable(one.logged, keep)}
    session.progress.expect_items(len(pending))
    removed: dict[str, list[int]] = {file_id: [] for file_id in pending}
    unreported = dict(pending)
    todo: Iterable[_Purge] = _purges(session, pending.values(), keep)
    while True:
        again = list[_Purge]()
        for change in commit_changes(session, todo, skip):
            file_id = change.file.file_id
            removed[file_id] = sorted([*removed[file_id], *change.chosen])
            if change.left:
                again.append(change)
            else:
                yield Purged(unreported.pop(file_id).name, tuple(removed[file_id]))
        if not again:
            break
        todo = again
    for file_id, file in unreported.items():
        if removed[file_id]:  # the rest failed, or another device has removed it
            yield Purged(file.name, tuple(removed[file_id]))
    _endorse_rebuilt(session, pending, removed)


class _Purge(PlannedChange["_Purge"]):
    """The removal of as many versions of one file as a record can name. The result is itself."""

    def __init__(
        self, session: Session, file: StoredFile, keep: int, known: KnownFile | None
    ) -> None:
        """`known` is the file's verified record, if there is one: it names readers, and an attacker
        could write another one into the state file."""
        self.file = file
        self.name = file.name
        self.chosen: list[int] = []
        """The versions that the last draft removes."""
        self._session = session
        self._keep = keep
        self._removed = set[int]()
        self._logged = file.logged
        self._known = known

    @property
    def left(self) -> list[int]:
        """The versions that are still to be removed."""
        return [one for one in removable(self._logged, self._keep) if one not in self._removed]

    def draft(self, _batches: WrapBatches) -> Draft | None:
        session = self._session
        if self._known is None:
            self._known = known_file(session.fetch_newest(self.file.file_id))
        if self._keep == ALL and not self._known.deleted:
            raise ConflictError("the file is no longer deleted", "it was put or restored meanwhile")
        self.chosen = self.left[:PURGED_AT_ONCE]
        if not self.chosen:
            return None
        head, body = FileRecord.parse(self._known.record), self._known.record
        return draft_of(build_purge(session, head, body, self.chosen))

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._known = known_file(verify_head(session, self.file.file_id, head, since))
        session.refresh_log()  # another device may be purging too
        self._logged = session.state.logged_file(self.file.file_id)

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return ((draft.record, draft.body, 0 if self._known is None else self._known.version),)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> _Purge:
        if self._known is not None:
            made = draft.record, draft.body, self._known.version
            self._known = KnownFile.from_record(*made)
        self._removed.update(self.chosen)
        return self


def _purges(session: Session, files: Iterable[StoredFile], keep: int) -> Iterator[_Purge]:
    coming = iter(files)
    while some := list(islice(coming, TOGETHER)):
        known = dict[str, KnownFile]()
        for deleted in (False, True):
            ids = [one.file_id for one in some if one.logged.deleted == deleted]
            known |= session.state.verified_files(ids, deleted=deleted)
        for one in some:
            yield _Purge(session, one, keep, known.get(one.file_id))


def _endorse_rebuilt(
    session: Session, files: Mapping[str, StoredFile], removed: Mapping[str, Iterable[int]]
) -> None:
    """Endorse the records of purged versions whose sidecars were damaged, and built again from the
    log, where no endorsements are. Only records of former keys need one."""
    user, valid = session.account.user, session.account.signers
    places = [
        (file_id, version)
        for file_id, versions in removed.items()
        for version in versions
        if files[file_id].logged.versions[version].generation not in valid
    ]
    asked = ((place, Stat(user, *place)) for place in places)
    damaged: dict[str, list[int]] = {}
    for (file_id, version), reply in pipelined(session, asked, lambda place, reply: (place, reply)):
        if not isinstance(reply, Stated) or not is_endorsed(reply.view, valid):
            damaged.setdefault(file_id, []).append(version)
    for file_id, versions in damaged.items():
        records = FileHistory(session).records(session.fetch_newest(file_id))
        known = {record_hash(one.encode()) for one in records}
        endorse_rebuilt(session, file_id, sorted(versions), known)
