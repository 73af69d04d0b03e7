"""Wraps of readers whose time is over. They are refused from that moment on (`visibility`); here
what was wrapped for them goes, so that nobody who takes the disk and their keys opens it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from sfsd.errors import Absent, DamagedError
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.state.documents import Document
from sfsd.storage.change import Change, Write
from sfsd.storage.json_files import Sidecar

MAX_TOUCHED: Final = 128
"""Versions of one change: a log line names each. What is left is met the next time."""
_PAGE: Final = 256


def expired_reader_changes(world: ServerContext, user: str) -> Iterator[Change]:
    """A change for each file that was shared with `user` until now, and has a wrap of his left."""
    after = ("", "")
    while notes := world.inboxes.for_user(user).after(after, _PAGE):
        for owner, file_id in notes:
            try:
                change = _change(world, user, FileHead.load(world.index.for_user(owner), file_id))
            except (DamagedError, Absent):
                continue  # whoever asks for it hears of it; so does `fsck`
            if change is not None:
                yield change
        after = notes[-1]


def _change(world: ServerContext, user: str, head: FileHead) -> Change | None:
    record = head.record
    if record is None:
        return None
    ends = [expires for name, _, expires in record.readers if name == user]
    if not ends or not ends[0] or world.now < ends[0]:
        return None
    found: dict[int, Document[Sidecar]] = {}
    for version in range(head.version, 0, -1):
        document = head.files.sidecar(head.file_id, version)
        if any(wrap.user == user for wrap in document.value.wraps):
            found[version] = document
        if len(found) == MAX_TOUCHED:
            break
    if not found:
        return None
    without = {
        version: changed(
            document.value,
            wraps=tuple(wrap for wrap in document.value.wraps if wrap.user != user),
        )
        for version, document in found.items()
    }

    def then(seq: int) -> None:
        for version, sidecar in without.items():
            head.files.note_written(changed(sidecar, seq=seq), version)

    draft = EntryDraft(
        op="retention",
        actor=SERVER,
        owner=record.owner,
        file=head.file_id,
        detail={"why": "expired", "reader": user},
        accounts=tuple(sorted({record.owner, user})),
    )
    expect = head.expect() | {one.path: one.digest for one in found.values()}
    writes = (Write(head.paths(version).sidecar, one.encode) for version, one in without.items())
    return Change(draft, expect, tuple(writes), None, then)
