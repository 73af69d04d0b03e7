"""Looking at files, and changing them without new ciphertext.

Stat, List and History go on where a failed sync has stopped all changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from protocol.messages import Done, FileView, Reply
from protocol.messages.base import SignedRecord
from protocol.messages.files import (
    History,
    HistoryPage,
    List,
    Listing,
    Record,
    RecordChange,
    Stat,
    Stated,
)
from protocol.records import DELETE, PURGE, RESTORE
from sfsd.admission import Admitted, Head, check_content, parse_record
from sfsd.changes import Change, Effect, Link, Remove, Write
from sfsd.documents import Document
from sfsd.errors import Absent, DamagedError, Refused
from sfsd.index import OwnerFiles, holding_of
from sfsd.layout import Sidecar
from sfsd.operations.uploads import repeated
from sfsd.visibility import not_found
from sfsd.world import USER, Commit, Principal, World, draft, operation

PAGE_BYTES: Final = 960 * 1024
"""Bytes of a page, counted generously; with its envelope it stays below a frame."""
_OVERHEAD: Final = 512
_SCANNED: Final = 4096
"""Files looked at for one page of a listing, whether or not they are in it."""


@operation(Stat, access=USER)
def stat(world: World, who: Principal, message: Stat) -> Stated:
    visible = world.visibility.version(who.user, message.owner, message.file_id, message.version)
    return Stated(visible.view())


@operation(List, access=USER)
def list_files(world: World, who: Principal, message: List) -> Listing:
    files = world.index.of(who.user)
    views: list[FileView] = []
    size = 0
    page = files.after(message.after, _SCANNED)
    for position, (file_id, version, seq) in enumerate(page):
        if 0 < seq < message.since_seq:
            continue
        sidecar = files.sidecar(file_id, version).value
        files.saw(sidecar, version)
        if sidecar.seq < message.since_seq:
            continue
        view = sidecar.view(who.user, sidecar.last)
        size += _size(view)
        if len(views) == message.limit or (views and size > PAGE_BYTES):
            return Listing(tuple(views), page[position - 1][0])
        views.append(view)
    return Listing(tuple(views), page[-1][0] if len(page) == _SCANNED else "")


@operation(History, access=USER)
def history(world: World, who: Principal, message: History) -> HistoryPage:
    visible = world.visibility.newest(who.user, message.owner, message.file_id)
    records = world.histories.records(visible.head, max(message.first, 1))
    page: list[SignedRecord] = []
    size = 0
    for record in records:
        size += len(record.record) + _OVERHEAD
        if page and size > PAGE_BYTES:
            break
        page.append(record)
    end = max(message.first, 1) + len(page)
    return HistoryPage(tuple(page), end if end <= visible.last.rev else 0)


@operation(Record, access=USER, logged="delete, restore or purge")
def record_change(world: World, who: Principal, message: Record) -> Reply | Commit[Reply]:
    if len(message.changes) != 1:
        raise Refused("bad-request", "one record at a time")
    change = message.changes[0]
    record = parse_record(change.record)
    if record.owner != who.user:
        raise not_found()
    decide = {DELETE: _delete, RESTORE: _restore, PURGE: _purge}.get(record.op)
    if decide is None:
        raise Refused("bad-request", f"a {record.op} record does not come this way")
    head = Head.of(world.index.of(who.user), record.file_id)
    if (receipt := repeated(world, who, head, change.record)) is not None:
        return receipt
    if head.document is None:
        raise not_found()
    admitted = world.admission.admit(record, change.record, change.signature, head)
    return _commit(world, who, admitted, decide(world, admitted, head.document, change))


@dataclass(frozen=True, slots=True)
class _Decided:
    """What an op does: `version` for the log, sidecars to write, versions whose bytes go."""

    version: int | None
    sidecars: dict[int, Sidecar]
    effects: tuple[Effect, ...] = ()
    expect: dict[str, bytes | None] | None = None
    gone: tuple[int, ...] = ()
    detail: dict[str, object] | None = None


def _commit(world: World, who: Principal, admitted: Admitted, decided: _Decided) -> Commit[Reply]:
    record, head, files = admitted.record, admitted.head, admitted.head.files
    written = tuple(
        Write(head.paths(version).sidecar, sidecar.encode)
        for version, sidecar in decided.sidecars.items()
    )

    def then(seq: int) -> None:
        for version, sidecar in decided.sidecars.items():
            files.saw(replace(sidecar, seq=seq), version)
            for holding in holding_of(sidecar):
                files.ledger.hold(holding)
        for version in decided.gone:
            files.ledger.drop(record.file_id, version)
            world.opened.forget(record.owner, record.file_id, version)
        files.ledger.mark(record.file_id, living=record.current != 0)

    entry = draft(
        who,
        record.op,
        owner=record.owner,
        file=record.file_id,
        version=decided.version,
        rec=admitted.signed.record,
        sigs=admitted.sigs,
        detail=decided.detail or {},
        accounts=admitted.accounts,
    )
    expect = {**admitted.expect, **(decided.expect or {})}
    change = Change(entry, expect, (*decided.effects, *written), None, then)
    return Commit(change, lambda seq: Done(world.receipt(seq, who)))


def _delete(
    world: World,  # noqa: ARG001 - one form for every op
    admitted: Admitted,
    newest: Document[Sidecar],
    change: RecordChange,
) -> _Decided:
    """A tombstone: nothing is removed, restore brings it back."""
    record, before = admitted.record, newest.value.head_record
    _need(not change.metadata and not change.wraps, "a delete brings nothing")
    _need(record.current == 0, "nothing is current after a delete")
    _need(record.to is None, "a delete that is part of a move does not come alone")
    if before.current == 0:
        raise Refused("conflict", "the file is deleted", head=admitted.head.view(record.owner))
    sidecar = replace(newest.value, head=admitted.signed, head_record=record)
    return _Decided(None, {admitted.head.version: sidecar})


def _restore(
    world: World,
    admitted: Admitted,
    newest: Document[Sidecar],  # noqa: ARG001 - one form for every op
    change: RecordChange,
) -> _Decided:
    """An old content as a new version: the same bytes under a second name."""
    record, head = admitted.record, admitted.head
    source_id, source_version = record.from_ or ("", 0)
    _need(source_id == record.file_id, "a restore takes a version of the same file")
    source = _content_of(head.files, record.file_id, source_version)
    made = source.value.content_record
    _need(
        (record.content_id, record.dek_commit) == (made.content_id, made.dek_commit),
        "not the content of the version it restores",
    )
    check_content(
        admitted,
        size=made.ciphertext_size or 0,
        root=made.segments_root or b"",
        metadata=change.metadata,
        content_ids={},
    )
    expect = world.admission.check_wraps(admitted, change.wraps)
    old, new = head.paths(source_version), head.paths(head.next_version)
    effects: list[Effect] = [Link(new.ciphertext, old.ciphertext, made.segments_root or b"")]
    if source.value.leaves is None:
        effects.append(Write(new.leaves, _leaves(world, old.leaves)))
    sidecar = Sidecar(
        seq=0,
        content=admitted.signed,
        head=None,
        metadata=change.metadata,
        wraps=change.wraps,
        leaves=source.value.leaves,
        content_record=record,
        head_record=record,
    )
    return _Decided(
        head.next_version,
        {head.next_version: sidecar},
        tuple(effects),
        {**expect, source.path: source.digest},
        detail={"from": source_version},
    )


def _purge(
    world: World,  # noqa: ARG001 - one form for every op
    admitted: Admitted,
    newest: Document[Sidecar],
    change: RecordChange,
) -> _Decided:
    """Bytes, metadata and wraps of old versions go for good; their records stay."""
    record, head = admitted.record, admitted.head
    purged = record.purged or ()
    _need(not change.metadata and not change.wraps, "a purge brings nothing")
    _need(record.current == newest.value.head_record.current, "a purge leaves current as it is")
    _need(bool(purged) and list(purged) == sorted(set(purged)), "versions sorted, each once")
    _need(record.current not in purged, "the current version cannot be purged; delete it first")
    sidecars: dict[int, Sidecar] = {}
    expect: dict[str, bytes | None] = {}
    effects: list[Effect] = []
    for version in purged:
        document = _content_of(head.files, record.file_id, version)
        expect[document.path] = document.digest
        sidecars[version] = replace(document.value, metadata=None, wraps=(), leaves=None)
        paths = head.paths(version)
        effects += [Remove(paths.ciphertext), Remove(paths.leaves)]
    last = sidecars.get(head.version, newest.value)
    sidecars[head.version] = replace(last, head=admitted.signed, head_record=record)
    return _Decided(None, sidecars, tuple(effects), expect, purged, {"purged": list(purged)})


def _content_of(files: OwnerFiles, file_id: str, version: int) -> Document[Sidecar]:
    try:
        document = files.sidecar(file_id, version)
    except Absent as exc:
        raise not_found() from exc
    if document.value.metadata is None:
        raise not_found()
    return document


def _leaves(world: World, path: str) -> bytes:
    try:
        return world.store.read(path)
    except Absent as exc:
        raise DamagedError("the leaf hashes are not there", path=path) from exc


def _size(view: FileView) -> int:
    head = 0 if view.head is None else len(view.head.record) + _OVERHEAD
    wraps = sum(len(wrap.wrapped) + _OVERHEAD for wrap in view.wraps)
    return len(view.content.record) + len(view.metadata) + head + wraps + _OVERHEAD


def _need(holds: bool, rule: str) -> None:
    if not holds:
        raise Refused("bad-request", rule)
