"""Removes the key wraps of readers whose access has expired.

They are refused from the moment of expiry (`rules.access`). Removing their wraps ensures that a
thief of the disk and of their keys cannot decrypt the files either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import changed
from protocol.log.auditlog import EntryDraft
from sfsd.errors import Absent, DamagedError
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.storage.change import Change, Write

MAX_VERSIONS: Final = 128
"""Versions of one change, since a log line names each. The next run does the rest."""
_PAGE: Final = 256


def expired_reader_changes(context: ServerContext, user: str) -> Iterator[Change]:
    """Yield a change for each file whose share with `user` expired and that has their wraps."""
    after = ("", "")
    while notes := context.inboxes.for_user(user).after(after, _PAGE):
        for owner, file_id in notes:
            try:
                change = _change(
                    context, user, FileHead.load(context.index.for_user(owner), file_id)
                )
            except (DamagedError, Absent):
                continue  # requests for it and `fsck` report it
            if change is not None:
                yield change
        after = notes[-1]


def _change(context: ServerContext, user: str, head: FileHead) -> Change | None:
    record = head.record
    if record is None:
        return None
    expiry = [expires for name, _, expires in record.readers if name == user]
    if not expiry or not expiry[0] or context.now < expiry[0]:
        return None
    found = head.without_wraps({user}, MAX_VERSIONS)
    if not found:
        return None

    def note_written(seq: int) -> None:
        for version, (_, sidecar) in found.items():
            head.files.note_written(changed(sidecar, seq=seq), version)

    draft = EntryDraft(
        op="retention",
        actor=SERVER,
        owner=record.owner,
        file=head.file_id,
        detail={"why": "expired", "reader": user},
        accounts=tuple(sorted({record.owner, user})),
    )
    expect = head.expect() | {old.path: old.digest for old, _ in found.values()}
    writes = tuple(Write(old.path, new.encode) for old, new in found.values())
    return Change(draft, expect, writes, None, note_written)
