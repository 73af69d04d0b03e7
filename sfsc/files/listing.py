"""List, show and delete files.

Names come from the local cache. Every session follows the log, which tells the newest record of
each file, so the server is asked only for files whose record this machine has not cached: a second
`ls` opens no file key, and verifies no signature.
"""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Self, TypeVar

from protocol.codec.values import Mutable, field
from protocol.records.records import FileRecord, record_hash
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import WrapBatches, check_any_name
from sfsc.errors import (
    Damaged,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
    SfscError,
    UsageError,
)
from sfsc.files.names import full_folders
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    TOGETHER,
    PlannedChange,
    build_tombstone,
    commit_changes,
    delete_file,
    draft_of,
    find_current_file,
    verify_head,
    with_present_wraps,
)
from sfsc.session.pipeline import Skip, changed_since, newest_views
from sfsc.session.server_errors import damaged_version
from sfsc.session.session import Session, known_file
from sfsc.trust.file_records import Entry, VerifiedFile, parse_record
from sfsc.trust.followed_log import LoggedHead
from sfsc.trust.server_log import REPORT
from sfsc.trust.state import KnownFile, MadeRecord, unpack_entry

_Result = TypeVar("_Result")


class Files:
    """Lists, shows and deletes the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def ls(
        self, prefix: str = "", skip: Skip | None = None, *, folders: bool = False
    ) -> Iterator[Entry]:
        """Return the current version of every file whose name begins with `prefix`, by name. Links
        and empty folders count as files; other folders that are stored only with `folders`.

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
            and (entry := unpack_entry(file_id, packed)).name.startswith(prefix)
        ]
        found.sort(key=lambda entry: entry.name)
        if not folders:
            full = full_folders(entry.name for entry in found)
            found = [entry for entry in found if entry.name not in full]
        if skip is None:
            return _then_raise(found, [error for _, error in unreadable])
        for name, error in unreadable:
            skip(name, error)
        return iter(found)

    def named(self, names: Iterable[str], damaged: Set[str]) -> dict[str, Entry]:
        """Return the current versions of the files, links and folders with these names, by name,
        without looking at others. Left out are invalid names, files whose id is in `damaged`, and
        what cannot be listed."""
        session, state = self._session, self._session.state
        file_ids = [session.account.file_id(name) for name in names if _is_valid(name)]
        heads = {
            file_id: head
            for file_id, head in state.logged_heads(file_ids).items()
            if not head.facts.ended and file_id not in damaged
        }
        cached = _Cached.of_log(heads)
        entries = state.cached_entries(list(heads))
        cached.update({file_id: (digest, packed) for file_id, digest, packed in entries})
        if cached.missing:
            learnt = _Learnt()
            self._ask_for(sorted(cached.missing), learnt)
            cached.update(learnt.files)
        found = [unpack_entry(*one) for one in cached.current.items()]
        return {entry.name: entry for entry in found}

    def damaged(self) -> set[str]:
        """Return the ids of the files that the server has damaged or lost, and follow the log to
        what other devices have changed."""
        damaged, changed = set[str](), False
        for page in changed_since(self._session, self._session.followed_size):
            damaged |= {one.file_id for one in page.damaged}
            changed = changed or bool(page.views)
        if changed:
            self._session.refresh_log()
        return damaged

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

    def rmdir(self, name: str) -> None:
        """Delete the folder `name` with nothing in it. Raises `NotFound` if it is not stored, and
        `UsageError` if something is in it."""
        folder = f"{name}/"
        within = list(self.ls(folder, folders=True))
        if not within:
            raise NotFound(f"no such folder: {name}", "run `sfsc ls` to see what is stored")
        if [entry.name for entry in within] != [folder]:
            raise UsageError(f"the folder {name} is not empty", "delete what is in it, or use -r")
        for _ in self.rm_many(within):
            pass

    def rm_many(
        self, entries: Iterable[Entry], skip: Skip | None = None, *, only_version: bool = False
    ) -> Iterator[Entry]:
        """Delete entries that `ls` returned, many together; entries that are gone by now are
        yielded too. Those that fail are passed to `skip`. With `only_version`, a file that has
        another version by now stays, and is not yielded."""
        found = ((one.file_id, one.name, one) for one in entries)
        changes = deletions(self._session, found)
        if only_version:
            changes = map(_of_one_version, changes)
        return commit_changes(self._session, changes, skip)

    def _refresh(self) -> tuple[dict[str, SfscError], dict[str, bytes]]:
        """Update the cache. Return what is wrong with each file that cannot be listed, and the
        packed entries of the others, both by file_id.

        The log decides which files there are: an entry counts only if it describes the file's
        newest record in the log. Other files are asked for: most of them by a listing, which begins
        with the change of one of them, the rest one by one. A listing also names the files that the
        server has damaged or lost, so there is one in any case.
        """
        session, state = self._session, self._session.state
        session.refresh_state_key()
        size = session.followed_size
        cached, learnt = self._cached(), _Learnt()
        for page in changed_since(session, cached.start_of_listing(size)):
            views = [(None, view) for view in page.views if not cached.has(view)]
            self._remember_views(views, size, learnt)
            learnt.unreadable |= {one.file_id: damaged_version(one) for one in page.damaged}
        self._ask_for(sorted(cached.missing.keys() - learnt.file_ids), learnt)
        if not state.is_current:
            return self._refresh()  # another process replaced the state's key: nothing was cached
        if session.followed_size != size:
            cached = self._cached()
        cached.update(learnt.files)
        for file_id in sorted(cached.missing.keys() - learnt.unreadable.keys()):
            # It has changed meanwhile, or the server has shown another file instead.
            self._examine(file_id, learnt)
        cached.update(learnt.files)
        return learnt.unreadable, cached.current

    def _cached(self) -> _Cached:
        """Return what is cached of all files."""
        state = self._session.state
        cached = _Cached.of_log(state.logged_heads())
        cached.update(
            {file_id: (digest, None) for file_id, digest in state.deleted_files().items()}
        )
        entries = {file_id: (digest, packed) for file_id, digest, packed in state.cached_entries()}
        # What was known before must be in the log.
        cached.missing |= dict.fromkeys(entries.keys() - cached.logged.keys(), 0)
        cached.update(entries)
        return cached

    def _ask_for(self, file_ids: Sequence[str], learnt: _Learnt) -> None:
        """Ask for files that the listing has not shown."""
        since = self._session.followed_size
        for asked, views in newest_views(self._session, file_ids):
            self._remember_views(list(views.items()), since, learnt)
            for file_id in asked:
                if file_id not in views:
                    self._examine(file_id, learnt)

    def _examine(self, file_id: str, learnt: _Learnt) -> None:
        """Ask for a file that the listing should have shown."""
        session = self._session
        try:
            file = session.fetch_newest(file_id)
            entry = None if file.deleted else session.account.listing_entry(file).pack()
        except NotFound as exc:
            unknown = Rollback("this machine knows the file, but the server does not", REPORT)
            unknown.__cause__ = exc
            learnt.unreadable[file_id] = unknown
        except (IntegrityError, KeyringError) as exc:
            learnt.unreadable[file_id] = exc
        else:
            session.state.remember_file(known_file(file), entry)
            learnt.files[file_id] = record_hash(file.head_body), entry

    def _name_unreadable(
        self, errors: Mapping[str, SfscError], prefix: str
    ) -> list[tuple[str, SfscError]]:
        """Return (name, error) pairs by name, without files known to be outside of `prefix`."""
        state, found = self._session.state, list[tuple[str, SfscError]]()
        for file_id, error in errors.items():
            packed = state.last_entry(file_id)
            name = None if packed is None else unpack_entry(file_id, packed).name
            if self._session.account.is_settings(file_id):
                found.append(("the account's settings", error))
            elif name is None or name.startswith(prefix):
                found.append((name or file_id, error))
        return sorted(found, key=lambda one: one[0])

    def _remember_name(self, file: VerifiedFile) -> None:
        """Remember the name of a file whose older revision was shown, to name it in errors."""
        state = self._session.state
        if state.file(file.file_id) is None and not file.deleted:
            with contextlib.suppress(IntegrityError, KeyringError):
                entry = self._session.account.listing_entry(file).pack()
                state.remember_file(known_file(file), entry)
                state.drop_entry(file.file_id)

    def _remember_views(
        self, views: Sequence[tuple[str | None, FileView]], since: int, learnt: _Learnt
    ) -> None:
        """Verify views, each of the wanted file, or of any file of ours if that is None, and cache
        them. `since` is the size to which the log was followed when they were asked for."""
        session, account = self._session, self._session.account
        files: list[tuple[VerifiedFile, int]] = []
        for wanted, view in views:
            try:
                files.append((account.verify_newest(view, wanted, None), view.at))
            except IntegrityError as exc:
                session.keep_evidence(exc)
                learnt.unreadable[wanted or parse_record(view.content).file_id] = exc
        if any(at > session.followed_size for _, at in files):
            session.refresh_log()
        saved = session.state.logged_heads([file.file_id for file, _ in files])
        found: list[tuple[KnownFile, bytes | None]] = []
        for file, at in files:
            entry = None
            try:
                session.check_head(file.head, file.head_body, at, since, saved)
            except IntegrityError as exc:
                session.keep_evidence(exc)
                learnt.unreadable[file.file_id] = exc
                self._remember_name(file)
                continue
            try:
                if not file.deleted:
                    entry = account.listing_entry(file).pack()
                learnt.files[file.file_id] = record_hash(file.head_body), entry
            except (IntegrityError, KeyringError) as exc:
                learnt.unreadable[file.file_id] = exc
            found.append((known_file(file), entry))
        session.state.remember_files(found)


def _is_valid(name: str) -> bool:
    try:
        check_any_name(name)
    except UsageError:
        return False
    return True


class _Learnt(Mutable):
    """Files that the server has shown, by file_id: `files` has the hash of the last record with the
    packed entry, None if the file is deleted; `unreadable` says why a file cannot be listed."""

    files: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)
    unreadable: dict[str, SfscError] = field(default_factory=dict)

    @property
    def file_ids(self) -> set[str]:
        return self.files.keys() | self.unreadable.keys()


class _Cached(Mutable):
    """Cache of all files: `logged` has the hash of the newest record of each in the log,
    and the entry that logged it; `current` the packed entries that describe these records, and
    `missing` the other files, which are not known to be deleted."""

    logged: dict[str, tuple[bytes, int]]
    current: dict[str, bytes]
    missing: dict[str, int]
    hashes: set[bytes] | None = None

    @classmethod
    def of_log(cls, heads: Mapping[str, LoggedHead]) -> Self:
        """Return a cache of these files in which all of them are missing."""
        logged = {file_id: (head.hash, head.seq) for file_id, head in heads.items()}
        return cls(logged, {}, {file_id: head.seq for file_id, head in heads.items()})

    def update(self, files: Mapping[str, tuple[bytes, bytes | None]]) -> None:
        """Add files, as `_Learnt` has them. One of another record than the log has is ignored."""
        for file_id, (digest, packed) in files.items():
            if file_id in self.logged and self.logged[file_id][0] == digest:
                self.missing.pop(file_id, None)
                if packed is not None:
                    self.current[file_id] = packed

    def has(self, view: FileView) -> bool:
        """Return whether nothing of what the server shows is new: the record is cached, and its
        content is not lost. Nothing else of the view is read."""
        last = view.content if view.head is None else view.head
        if self.hashes is None:
            known = self.logged.keys() - self.missing.keys()
            self.hashes = {self.logged[file_id][0] for file_id in known}
        return bool(view.metadata) and record_hash(last.record) in self.hashes

    def start_of_listing(self, end: int) -> int:
        """Return the log entry from which on at least half of the changed files are missing: those
        before it are cheaper to ask for one by one. `end` stands for none."""
        changed = sorted(seq for _, seq in self.logged.values()) if self.missing else []
        start = end
        for count, seq in enumerate(sorted(self.missing.values(), reverse=True), 1):
            if len(changed) - bisect_left(changed, seq) <= 2 * count:
                start = seq
        return start


class Deletion(PlannedChange[_Result]):
    """The deletion of a file, as it is or as it has become; `result` is the change's result."""

    def __init__(
        self, session: Session, file_id: str, name: str, result: _Result, known: KnownFile | None
    ) -> None:
        """`known` is the file's verified record, if there is one: it names readers, and an attacker
        could write another one into the state file."""
        self.name = name
        self._session = session
        self._file_id = file_id
        self.result = result
        self._known = known
        self.only_version: int | None = None
        """The version that is deleted; None for any. A file with another one stays."""

    @property
    def _stays(self) -> bool:
        only, known = self.only_version, self._known
        return only is not None and known is not None and known.version != only

    def draft(self, _batches: WrapBatches) -> Draft | None:
        if self._known is None:
            self._known = known_file(self._session.fetch_newest(self._file_id))
        if self._known.deleted or self._stays:
            return None
        head = FileRecord.parse(self._known.record)
        return draft_of(build_tombstone(self._session, head, self._known.record))

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        self._known = known_file(verify_head(session, self._file_id, head, since))

    def unneeded(self) -> Iterable[_Result]:
        return () if self._stays else (self.result,)

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return ((draft.record, draft.body, 0 if self._known is None else self._known.version),)

    def committed(self, _draft: Draft, _receipt: Receipt | None) -> _Result:
        return self.result


def deletions(
    session: Session, files: Iterable[tuple[str, str, _Result]]
) -> Iterator[Deletion[_Result]]:
    """Yield the deletions of files, given as (file_id, name, result of the change)."""
    coming = iter(files)
    while some := list(itertools.islice(coming, TOGETHER)):
        known = session.state.verified_files([file_id for file_id, _, _ in some])
        for file_id, name, result in some:
            yield Deletion(session, file_id, name, result, known.get(file_id))


def _of_one_version(deletion: Deletion[Entry]) -> Deletion[Entry]:
    """Let a deletion apply only to the version of its entry."""
    deletion.only_version = deletion.result.version
    return deletion


def _then_raise(entries: Iterable[Entry], errors: Sequence[SfscError]) -> Iterator[Entry]:
    """Yield the entries, then raise the first error, if there is one."""
    yield from entries
    if errors:
        raise errors[0]
