"""Versions of all files: the trash, the space that versions take, many versions fetched at once.

The followed log tells which versions there are, how large they are, when each was made or deleted,
and which contents were removed. Only the names of deleted files that this machine has never listed
are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, TypeVar

from protocol.codec.values import Value, changed
from protocol.records.records import record_hash
from protocol.wire.messages.files import Stat, Stated
from sfsc.crypto.envelope import check_name
from sfsc.crypto.segments import plaintext_size
from sfsc.errors import IntegrityError, KeyringError, NotFound, Rollback, SfscError, Tampered
from sfsc.files.listing import Files, deletions
from sfsc.files.names import both_kinds, full_folders
from sfsc.session.commit import STOPPING, commit_changes
from sfsc.session.pipeline import Skip, pipelined
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.trust.file_records import Entry, VerifiedFile
from sfsc.trust.followed_log import LoggedVersion, VersionFacts
from sfsc.trust.server_log import REPORT
from sfsc.trust.state import LoggedFile, unpack_entry

_Change = TypeVar("_Change")
_TOGETHER: Final = 256
"""Versions that are verified together."""
Place = tuple[str, int]
"""A version of a file of ours: (file_id, number)."""


class StoredFile(Value):
    """A file of ours that exists or has existed, with what the log has of it."""

    name: str
    file_id: str
    logged: LoggedFile


class DeletedFile(Value):
    """A deleted file that can be restored. `version` is its newest version with a content, `size`
    the bytes of that, and `versions` the number of its versions with a content. `deleted` is when
    it was deleted, in unix seconds by the clock of the machine that did it."""

    name: str
    file_id: str
    version: int
    size: int
    versions: int
    deleted: int

    @property
    def deleted_at(self) -> datetime | None:
        """Time of the deletion, in UTC."""
        return as_datetime(self.deleted)


class Space(Value):
    """Bytes of file contents on the server: of current versions (`live`), of older versions of
    files that exist (`versions`), and of deleted files (`trash`). A content that several versions
    have counts once. `files` is the number of files that exist, `deleted` that of deleted files
    that can be restored."""

    files: int
    deleted: int
    live: int
    versions: int
    trash: int

    @property
    def total(self) -> int:
        return self.live + self.versions + self.trash


class StoredFiles:
    """Finds files with all their versions."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files = Files(session)

    def find(self, prefix: str, skip: Skip) -> list[StoredFile]:
        """Return every file that has a content and whose name begins with `prefix`, deleted or not,
        by name. Those that cannot be listed are passed to `skip`."""
        living = {entry.file_id: entry.name for entry in self._files.ls(prefix, skip, folders=True)}
        logged = self._logged()
        found = [StoredFile(name, one, logged[one]) for one, name in living.items()]
        gone = {one: file for one, file in logged.items() if file.deleted and file.kept}
        for file_id, entry in self._last_entries(gone, skip):
            if entry.name.startswith(prefix):
                found.append(StoredFile(entry.name, file_id, gone[file_id]))
        return sorted(found, key=lambda file: file.name)

    def deleted(self, prefix: str, skip: Skip) -> list[DeletedFile]:
        """Return the deleted files that can be restored and whose names begin with `prefix`, by
        name. A file that was renamed is none: its versions belong to one that exists. Those that
        cannot be named are passed to `skip`."""
        found = self.trash(prefix, skip)
        full = full_folders(file.name for file in found)
        return [
            DeletedFile(
                file.name,
                file.file_id,
                file.logged.kept[-1],
                _size(file.logged.versions[file.logged.kept[-1]]),
                len(file.logged.kept),
                file.logged.head.facts.ended,
            )
            for file in found
            if file.name not in full
        ]

    def trash(self, prefix: str, skip: Skip) -> list[StoredFile]:
        """Return the files of `deleted`, as `find` does."""
        self._session.refresh_log()
        gone = {one: file for one, file in self._logged().items() if is_trash(file)}
        named = self._last_entries(gone, skip)
        found = [
            StoredFile(entry.name, file_id, gone[file_id])
            for file_id, entry in named
            if entry.name.startswith(prefix)
        ]
        return sorted(found, key=lambda file: file.name)

    def in_folder(self, name: str, skip: Skip) -> list[StoredFile]:
        """Return every file in the folder `name` ("": all), as `find` does; the file `name` if
        there is no such folder. Raises `NotFound`, and `UsageError` if a folder and a file that
        exists have this name and no slash at its end says which is meant."""
        top = name.strip("/")
        found = self.find(f"{top}/" if top else "", skip)
        if top and not name.endswith("/"):
            files = self.by_names([top], lambda _name, _error: None)
            if found and files and not files[0].logged.deleted:
                raise both_kinds(top)
            found = found or files
        if not found:
            hint = "see `sfsc ls` and `sfsc ls --deleted`"
            raise NotFound(f"there is no file in {top or 'the store'}", hint)
        return found

    def again(self, files: Iterable[StoredFile]) -> list[StoredFile]:
        """Return files with what the log has of them by now."""
        self._session.refresh_log()
        logged = self._logged()
        return [changed(one, logged=logged[one.file_id]) for one in files]

    def by_names(self, names: Iterable[str], skip: Skip) -> list[StoredFile]:
        """Return files, deleted or not, each once. Those that never existed are passed to
        `skip`."""
        session, found = self._session, list[StoredFile]()
        session.refresh_log()
        for name in dict.fromkeys(names):
            try:
                check_name(name)
                file_id = session.account.file_id(name)
                if file_id not in session.state.logged_heads([file_id]):
                    raise NotFound(f"no such file: {name}", "run `sfsc ls` to see what is stored")
                found.append(StoredFile(name, file_id, session.state.logged_file(file_id)))
            except SfscError as exc:
                skip(name, exc)
        return found

    def rm_many(self, names: Iterable[str], skip: Skip) -> Iterator[str]:
        """Delete files, and yield their names. Those that do not exist, or are deleted, are passed
        to `skip`."""
        living = list[tuple[str, str, str]]()
        for file in self.by_names(names, skip):
            if file.logged.deleted:
                hint = "run `sfsc history` to see its versions"
                skip(file.name, NotFound(f"the file {file.name} was deleted", hint))
            else:
                living.append((file.file_id, file.name, file.name))
        return commit_changes(self._session, deletions(self._session, living), skip)

    def space(self, name: str, skip: Skip) -> Space:
        """Return the space of the file `name` and of everything in the folder `name` ("": all)."""
        found = self.find(name.rstrip("/"), skip)
        found = [file for file in found if is_within(file.name, name)]
        full = full_folders(file.name for file in found)
        counted = [file.logged for file in found if file.name not in full]
        living = sum(not file.deleted for file in counted)
        deleted = sum(map(is_trash, counted))
        return Space(living, deleted, *_sizes(file.logged for file in found))

    def sizes(self) -> tuple[int, int, int]:
        """Return the bytes of all contents: `Space.live`, `versions` and `trash`."""
        self._session.refresh_log()
        return _sizes(self._logged().values())

    def _logged(self) -> dict[str, LoggedFile]:
        session = self._session
        found = session.state.logged_files()
        found.pop(session.account.settings_id, None)
        return found

    def _last_entries(
        self, files: Mapping[str, LoggedFile], skip: Skip
    ) -> Iterator[tuple[str, Entry]]:
        """Yield the file_id, and the entry of the newest version with a content, of each file."""
        session, missing = self._session, dict[str, int]()
        cached = dict(session.state.last_entries())
        for file_id, file in files.items():
            packed = cached.get(file_id)
            entry = None if packed is None else unpack_entry(file_id, packed)
            if entry is not None and entry.version == file.kept[-1]:
                yield file_id, entry
            else:
                missing[file_id] = file.kept[-1]
        learnt = dict[str, bytes]()
        for fetched in fetch_versions(session, missing.items(), skip):
            try:
                entry = session.account.listing_entry(fetched)
            except (IntegrityError, KeyringError) as exc:
                session.keep_evidence(exc)
                skip(fetched.file_id, exc)
                continue
            learnt[fetched.file_id] = entry.pack()
            yield fetched.file_id, entry
        if learnt:
            session.state.remember_last_entries(learnt)


def is_within(name: str, folder: str) -> bool:
    """Return whether `name` is the file `folder` or in the folder of that name ("": all)."""
    top = folder.rstrip("/")
    return not top or name == folder or name.startswith(f"{top}/")


def is_trash(file: LoggedFile) -> bool:
    """Return whether a file was deleted, not renamed, and still has a content."""
    return file.deleted and not file.head.facts.moved and bool(file.kept)


def fetch_versions(
    session: Session, places: Iterable[Place], skip: Skip, *, removed: bool = False
) -> Iterator[VerifiedFile]:
    """Fetch versions of files of ours, as a pipeline; yield each in order, confirmed to be the one
    that the log has, with the file's present head. A version that cannot be shown is passed to
    `skip` with the file_id; so is one that has no content any more, unless `removed`."""
    account, wanted = session.account, iter(places)
    while some := list(itertools.islice(wanted, _TOGETHER)):
        since = session.followed_size
        asked = ((place, Stat(account.user, *place)) for place in some)
        replies = list(pipelined(session, asked, lambda place, reply: (place, reply)))
        shown = [reply.view.at for _, reply in replies if isinstance(reply, Stated)]
        if max(shown, default=0) > session.followed_size:
            session.refresh_log()
        heads, versions = session.logged_versions(some)
        for place, reply in replies:
            try:
                view = expect_reply(reply, Stated).view
                file = account.verify_version(view, *place, None)
                session.check_head(file.head, file.head_body, view.at, since, heads)
                confirmed = _confirmed(file, versions.get(place))
                if not confirmed.metadata and not removed:
                    cause = f"the content of version {place[1]} was removed"
                    raise NotFound(cause, "see `sfsc history`")
            except STOPPING:
                raise
            except SfscError as exc:
                session.keep_evidence(exc)
                skip(place[0], exc)
            else:
                yield confirmed


def planned(
    files: Iterable[VerifiedFile], plan: Callable[[VerifiedFile], _Change], skip: Skip
) -> Iterator[_Change]:
    """Yield the change that `plan` makes of each file. One that fails is passed to `skip` with the
    file_id."""
    for file in files:
        try:
            change = plan(file)
        except STOPPING:
            raise
        except SfscError as exc:
            skip(file.file_id, exc)
        else:
            yield change


def _confirmed(file: VerifiedFile, logged: LoggedVersion | None) -> VerifiedFile:
    """Return a version that the log has, as confirmed. Raises `Rollback` if it has another one."""
    if logged is None or logged.content != record_hash(file.content_body):
        cause = f"the server shows another version {file.version} of a file than its log has"
        raise Rollback(cause, REPORT)
    return changed(file, confirmed=True)


def _sizes(files: Iterable[LoggedFile]) -> tuple[int, int, int]:
    """Return the bytes of contents in current versions, older ones and trash. A content of several
    versions counts as the most current one."""
    current, older, trash = dict[bytes, int](), dict[bytes, int](), dict[bytes, int]()
    for file in files:
        for number in file.kept:
            facts = file.versions[number]
            kind = trash if is_trash(file) else older
            if number == file.head.version and not file.deleted:
                kind = current
            kind[facts.content_id] = _size(facts)
    for content_id in current.keys() | older.keys():
        trash.pop(content_id, None)
    for content_id in current:
        older.pop(content_id, None)
    return sum(current.values()), sum(older.values()), sum(trash.values())


def _size(facts: VersionFacts) -> int:
    """Return the bytes of a version's content; those of its ciphertext if none has this size."""
    try:
        return plaintext_size(facts.size)
    except Tampered:
        return facts.size
