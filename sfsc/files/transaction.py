"""Puts, deletions and moves that become visible together or not at all.

The changes are collected first. A small content is encrypted at once and kept in memory; a large
one is encrypted and uploaded, which nobody else can see. When the block ends, all records are
signed together and sent as one atomic changeset (`Committer.commit_set`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal, Self

from protocol.codec.values import Value, field
from protocol.records.records import FileRecord
from protocol.wire.messages import FileView, Receipt
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.changes import MAX_CHANGES
from sfsc.crypto.envelope import WrapBatches, check_name
from sfsc.errors import NotFound, Unreachable, UsageError
from sfsc.files.rename import Move
from sfsc.session.changeset import Draft
from sfsc.session.commit import (
    SET_LIMITS,
    Committer,
    PlannedChange,
    UploadLost,
    build_tombstone,
    draft_of,
    find_current_file,
    verify_head,
)
from sfsc.session.session import Session, known_file
from sfsc.threadguard import ThreadGuard, single_threaded
from sfsc.transfer.source import Source
from sfsc.transfer.upload import NewVersion, Uploads
from sfsc.trust.state import KnownFile, MadeRecord

_USED_TWICE: Final = "a transaction changes each file once: use the last content, or two of them"


class Changed(Value):
    """A change that a transaction has made.

    `name` is the file's name, `to` its new one after a move. `version` is the version that was
    stored under it, or the one that a deletion has ended; `size` is that of its plaintext in bytes,
    None for a deletion. `receipt`, `record` and `unstable` are as in `Put`.
    """

    op: Literal["put", "delete", "move"]
    name: str
    to: str | None
    file_id: str
    version: int
    size: int | None
    receipt: Receipt | None = field(repr=False)
    record: bytes = field(repr=False)
    unstable: bool = False


@single_threaded
class Transaction:
    """Changes of one account that are made together or not at all; see `Store.transaction`."""

    def __init__(self, session: Session, uploads: Uploads, moved: Callable[[str], object]) -> None:
        """`moved` is called with the new name of each file that was renamed, afterwards."""
        self.thread_guard: ThreadGuard = session.thread_guard
        self._session = session
        self._uploads = uploads
        self._moved = moved
        self._state: Literal["new", "open", "ended"] = "new"
        self._planned: list[_Planned] = []
        self._names: set[str] = set()
        self._inline = 0
        self._results: tuple[Changed, ...] | None = None

    def put(self, name: str, source: Source, *, expected: int | None = None) -> None:
        """Store the content of `source`, a path or a binary stream, as the newest version of
        `name`. It is read now, and uploaded now if it has more than 256 KiB.

        With `expected`, `ConflictError` is raised at the end of the block unless that is the
        current version (0: no such file)."""
        self._check(name)
        change = self._uploads.stage(source, name, expected)
        if self._inline + len(change.ciphertext) > PIECE:
            raise UsageError("the files do not fit into one changeset", SET_LIMITS)
        self._inline += len(change.ciphertext)
        self._add(_Planned("put", name, None, change))

    def delete(self, name: str) -> None:
        """Delete `name`. Its versions stay as trash. `NotFound` is raised at the end of the block
        if there is no such file."""
        self._check(name)
        self._add(_Planned("delete", name, None, _Deletion(self._session, name)))

    def move(self, name: str, to: str) -> None:
        """Rename the file `name` to `to`. At the end of the block `NotFound` is raised if there is
        no such file, and `ConflictError` if `to` exists."""
        self._check(name, to)
        self._add(_Planned("move", name, to, None))

    def for_thread(self) -> Self:
        """Return this transaction: all of its calls use one connection."""
        return self

    @property
    def results(self) -> tuple[Changed, ...]:
        """The changes that were made, in the order of the calls, once the block has ended. Raises
        `UsageError` if none was."""
        if self._results is None:
            raise UsageError("the transaction has made nothing", "see the error that ended it")
        return self._results

    def _check(self, *names: str) -> None:
        """Raise `UsageError` unless a change of these names can be added."""
        if self._state != "open":
            cause = "the transaction has ended" if self._state == "ended" else "it has not begun"
            raise UsageError(cause, "use it in a block: `with store.transaction() as change:`")
        for name in names:
            check_name(name)
            if name in self._names or names.count(name) > 1:
                raise UsageError(f"{name} is changed twice in one transaction", _USED_TWICE)
        if len(self._names) + len(names) > MAX_CHANGES:
            raise UsageError("the changes do not fit into one changeset", SET_LIMITS)

    def _add(self, planned: _Planned) -> None:
        self._planned.append(planned)
        self._names.update(name for name in (planned.name, planned.to) if name is not None)

    def __enter__(self) -> Self:
        if self._state != "new":
            raise UsageError("a transaction is used once", "begin another one")
        self._state = "open"
        self._session.uploading += 1  # closing the store drops the uploads
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._state = "ended"
        try:
            if error is None:
                with self.thread_guard:
                    self._results = self._commit()
                    for one in self._results:
                        if one.to is not None:
                            self._moved(one.to)
        finally:
            self._session.uploading -= 1
            if self._results is None and not self.thread_guard.ended:
                staged = (one.change for one in self._planned)
                self._uploads.discard(one for one in staged if isinstance(one, NewVersion))

    def _commit(self) -> tuple[Changed, ...]:
        if not self._planned:
            return ()
        session = self._session
        put = [one.name for one in self._planned if one.op == "put"]
        self._uploads.look_up([session.account.file_id(name) for name in put])
        changes: list[PlannedChange[object]] = [
            Move(session, one.name, one.to or "") if one.change is None else one.change
            for one in self._planned
        ]
        try:
            made = Committer[object](session).commit_set(changes)
        except UploadLost as exc:
            raise Unreachable("the server has lost an upload", "run all of it again") from exc
        finally:
            self._uploads.remember()
        return tuple(
            _result(planned, change, draft, receipt)
            for planned, change, (_, draft, receipt) in zip(
                self._planned, changes, made, strict=True
            )
        )


class _Planned(Value):
    """One call. A move is looked up at the end."""

    op: Literal["put", "delete", "move"]
    name: str
    to: str | None
    change: NewVersion | _Deletion | None


class _Deletion(PlannedChange[None]):
    """A tombstone for a file."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name
        self._file_id = session.account.file_id(name)
        self._known: KnownFile | None = None
        self.version = 0

    def draft(self, _batches: WrapBatches) -> Draft:
        session = self._session
        if self._known is None:
            # Use only a verified record: it names readers, and an attacker could write one into the
            # state file. If it is not the newest one, the server refuses what builds on it.
            self._known = session.state.verified_file(self._file_id)
        if self._known is None or self._known.deleted:
            self._known = known_file(session.without_left(find_current_file(session, self.name)))
        head = FileRecord.parse(self._known.record)
        self.version = head.current
        return draft_of(build_tombstone(session, head, self._known.record))

    def rebase(self, session: Session, head: FileView | None, since: int) -> None:
        file = verify_head(session, self._file_id, head, since)
        if file.deleted:
            raise NotFound(f"{self.name} was deleted meanwhile")
        self._known = known_file(session.without_left(file))

    def made_records(self, draft: Draft) -> Iterable[MadeRecord]:
        return ((draft.record, draft.body, 0 if self._known is None else self._known.version),)

    def committed(self, _draft: Draft, _receipt: Receipt | None) -> None:
        pass


def _result(
    planned: _Planned, change: PlannedChange[object], draft: Draft, receipt: Receipt | None
) -> Changed:
    version, size = draft.record.version or 0, None
    if isinstance(change, _Deletion):
        version = change.version
    elif isinstance(change, (NewVersion, Move)):
        size = change.metadata.size
    return Changed(
        planned.op,
        planned.name,
        planned.to,
        draft.record.file_id,
        version,
        size,
        receipt,
        draft.body,
        isinstance(change, NewVersion) and change.unstable,
    )
