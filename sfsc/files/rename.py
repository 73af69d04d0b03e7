"""Rename: one change stores the content under the new name and a tombstone under the old one.

Only the metadata, which holds the name, is encrypted and sent again. Older versions stay under the
old name, for `history` and `restore`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from protocol.codec.values import Value, changed
from protocol.records.records import MOVE, record_hash
from protocol.wire.messages import FileView, Receipt
from sfsc.crypto.envelope import Metadata, WrapBatches, check_any_name, check_name, content_record
from sfsc.errors import ConflictError, NotFound, SfscError, UsageError
from sfsc.files.listing import Files
from sfsc.files.names import NameTree, both_kinds, full_folders
from sfsc.files.versions import fetch_versions, is_within, planned
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    PlannedChange,
    build_tombstone,
    commit_change,
    commit_changes,
    find_current_file,
    with_present_wraps,
)
from sfsc.session.pipeline import Skip
from sfsc.session.session import Session
from sfsc.trust.file_records import Entry, VerifiedFile, parse_record
from sfsc.trust.state import KnownFile, MadeRecord


class Renamed(Value):
    """A file that was called `before` and is `entry` now."""

    before: str
    entry: Entry


class Renames:
    """Renames the user's files."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mv(self, name: str, to: str) -> Entry:
        """Rename the file `name` to `to`, and return its entry. Raises `NotFound`, and
        `ConflictError` if `to` exists."""
        check_name(to)
        if name == to:
            raise UsageError("the old and the new name are the same")
        return commit_change(self._session, Move(self._session, name, to))

    def mv_many(self, names: Sequence[str], to: str, skip: Skip) -> Iterator[Renamed]:
        """Rename files and folders as the `mv` of a shell does; see `Store.mv_many`. Many files are
        changed together. Raises `UsageError` and `NotFound` before anything is changed, and the
        error of a file that is the only one."""
        session = self._session
        unreadable = dict[str, SfscError]()
        entries = {
            one.name: one for one in Files(session).ls("", unreadable.__setitem__, folders=True)
        }
        for name, error in unreadable.items():
            if name in names:
                raise error
            if any(is_within(name, one) for one in names):
                skip(name, error)
        moves = plan_moves(list(entries), names, to)
        old = {entries[name].file_id: name for name in moves}
        new = {session.account.file_id(after): name for name, after in moves.items()}

        def note(file_id: str, error: SfscError) -> None:
            if report is None:
                raise error
            report(old.get(file_id) or new[file_id], error)

        report = skip if len(moves) > 1 else None

        heads = session.state.logged_heads(list(new))
        places = [(file_id, head.version) for file_id, head in heads.items()]
        found = fetch_versions(session, places, note, removed=True)
        targets: dict[str, VerifiedFile | None] = {file.file_id: file for file in found}
        targets |= dict.fromkeys(new.keys() - heads.keys())
        ready = {name: targets[file_id] for file_id, name in new.items() if file_id in targets}
        places = [(entries[name].file_id, entries[name].version) for name in ready]

        def moved(file: VerifiedFile) -> Move:
            name = old[file.file_id]
            target = ready[name]
            fresh = target is None or record_hash(target.head_body) == heads[target.file_id].hash
            # What another device has changed since the listing is asked for again.
            found = (file, target) if fresh and file.head.current == file.version else None
            return Move(session, name, moves[name], found)

        changes = planned(fetch_versions(session, places, note), moved, note)
        full, before = full_folders(moves.values()), {new: name for name, new in moves.items()}
        return (
            Renamed(before[entry.name], entry)
            for entry in commit_changes(session, changes, report)
            if entry.name not in full
        )


def plan_moves(listed: Sequence[str], names: Sequence[str], to: str) -> dict[str, str]:
    """Return {name: new name} of the files in `listed`, which is sorted, that `mv NAMES... TO`
    renames. Raises `UsageError` and `NotFound`."""
    tree = NameTree(listed)
    into = to.endswith("/") or len(names) > 1 or tree.has_folder(to)
    if into and not to.endswith("/") and tree.has_file(to):
        if tree.has_folder(to):
            raise both_kinds(to)
        raise UsageError(f"{to} is a file, not a folder", "name a folder as the last argument")
    if "" in [name.rstrip("/") for name in names]:
        raise UsageError("the whole store cannot be moved", "name the files and folders in it")
    target, moved = to.strip("/"), dict[str, str]()
    for name in dict.fromkeys(names):
        old = name.rstrip("/")
        new = "/".join([*filter(None, [target]), old.rpartition("/")[2]]) if into else target
        check_name(new)
        if new == old:
            raise UsageError("the old and the new name are the same")
        if not tree.is_folder(name):
            found = {old: new}
        elif new.startswith(f"{old}/"):
            raise UsageError(f"{old} cannot be moved into itself", "choose another folder")
        elif tree.has_file(new) or tree.has_folder(new):
            raise ConflictError(f"{new} exists already", "choose another name")
        else:
            found = {one: new + one[len(old) :] for one in tree.files_in(old)}
        for one in found.values():
            check_any_name(one)
        moved |= found
    if len(set(moved.values())) < len(moved):
        raise UsageError("two files would get the same name", "rename them one by one")
    return moved


class Move(PlannedChange[Entry]):
    """The change of one name to another."""

    def __init__(
        self,
        session: Session,
        name: str,
        to: str,
        found: tuple[VerifiedFile, VerifiedFile | None] | None = None,
    ) -> None:
        """`found` are the newest versions of the file and of the one that `to` named before, which
        the server is asked for by default."""
        self._session = session
        self.name = name
        self._to = to
        self._file_id = session.account.file_id(to)
        self.metadata: Metadata
        if found is None:
            self._find(session)
        else:
            self._file, self._target = session.without_left(found[0]), found[1]

    def _find(self, session: Session) -> None:
        self._file = session.without_left(find_current_file(session, self.name))
        self._target = session.find_newest(self._file_id)

    def draft(self, batches: WrapBatches) -> Draft:
        session, file, target = self._session, self._file, self._target
        if file.deleted:
            raise NotFound(f"{self.name} was deleted meanwhile")
        if target is not None and not target.deleted:
            raise ConflictError(
                f"there is a file {self._to} already", "delete it first, or choose another name"
            )
        file = self._file = with_present_wraps(session, file)
        key, metadata = session.account.open_version(file)
        self.metadata = changed(metadata, name=self._to)
        sealed = key.seal_metadata(self.metadata)
        version = 1 if target is None else target.version + 1
        record = content_record(
            session.author,
            key,
            file_id=self._file_id,
            head=None if target is None else target.head_body,
            version=version,
            ciphertext_size=file.content.ciphertext_size or 0,
            segments_root=file.content.segments_root or b"",
            metadata=sealed,
            readers=file.head.readers,
            seen=session.seen,
            created=int(time.time()),
            op=MOVE,
            origin=(file.file_id, file.version),
        )
        left = build_tombstone(session, file.head, file.head_body, self._file_id)
        wraps = session.wrap(key, version, record.readers, batches)
        body, tombstone = record.encode(), (left, left.encode())
        return Draft(record, body, sealed, wraps, tombstone=tombstone)

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        shown = "" if head is None else parse_record(head.head or head.content).file_id
        if head is None:
            self._find(session)
        elif shown == self._file.file_id:
            self._file = session.verify_newest(head, shown, since)
        else:
            self._target = session.verify_newest(head, self._file_id, since)

    def renewed(self, session: Session) -> None:
        self._find(session)

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return () if draft.tombstone is None else ((*draft.tombstone, self._file.version),)

    def committed(self, draft: Draft, _receipt: Receipt | None) -> Entry:
        made = draft.record
        entry = Entry.from_record(made, made, self.metadata)
        known = KnownFile.from_record(made, draft.body, entry.version)
        self._session.state.remember_file(known, entry.pack())
        return entry
