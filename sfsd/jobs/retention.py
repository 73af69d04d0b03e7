"""What is removed by itself: bundles that were kept long enough, wraps of readers whose time is
over, and by the operator's policy old trash, and old versions beyond a number.

Content, metadata and wraps go, records stay, as by a purge; but nobody signs for it, so the log has
it as the server's own deed, in the history of the file's owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import Value, changed
from protocol.log.auditlog import EntryDraft
from protocol.records.records import DELETE, PURGED_AT_ONCE
from sfsd.config import DAY, RetentionPolicy
from sfsd.errors import Absent, DamagedError
from sfsd.jobs.expired_readers import expired_reader_changes
from sfsd.rules.bundles import remove_expired_bundles
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.state.documents import Document
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.json_files import Sidecar

_PAGE: Final = 256
TRASH: Final = "trash"
VERSIONS: Final = "versions"


class _Version(Value):
    number: int
    document: Document[Sidecar]

    @property
    def kept(self) -> bool:
        return self.document.value.metadata is not None


def retention_changes(
    world: ServerContext, owner: str, policy: RetentionPolicy
) -> Iterator[Change]:
    """Every change that the policy asks for now, of one owner; each to be made before the next is
    asked for. A file whose sidecars are damaged, or missing, is left alone."""
    if (change := remove_expired_bundles(world, owner)) is not None:
        yield change
    yield from expired_reader_changes(world, owner)
    if not (policy.trash_days or policy.versions):
        return
    files = world.index.for_user(owner)
    after = ""
    while page := files.after(after, _PAGE):
        for file_id, _, _ in page:
            try:
                yield from _due(world, FileHead.load(files, file_id), policy)
            except (DamagedError, Absent):
                continue  # whoever asks for it hears of it; so does `fsck`
        after = page[-1][0]


def _due(world: ServerContext, head: FileHead, policy: RetentionPolicy) -> Iterator[Change]:
    if head.document is None:
        return
    newest = head.document
    versions = [_Version(head.version, newest)]
    versions += [
        _Version(number, head.files.sidecar(head.file_id, number))
        for number in range(head.version - 1, 0, -1)
    ]
    kept = [one for one in versions if one.kept]
    why, gone = VERSIONS, kept[policy.versions :] if policy.versions else []
    if _is_old_trash(world, newest.value, policy):
        why, gone = TRASH, kept
    current = newest.value.head_record.current
    # The oldest first, and so the head, which every change relies on, in none but the last.
    gone = [one for one in reversed(gone) if one.number != current]
    for start in range(0, len(gone), PURGED_AT_ONCE):
        yield _removal(world, head, gone[start : start + PURGED_AT_ONCE], why)


def _is_old_trash(world: ServerContext, head: Sidecar, policy: RetentionPolicy) -> bool:
    """Whether the file was deleted so long ago, by this server's clock. What a move has left
    behind are older versions of a living file, and no trash."""
    record = head.head_record
    if not policy.trash_days or record.op != DELETE or record.to is not None:
        return False
    return world.now - world.logged_at(head.seq) >= policy.trash_days * DAY


def _removal(world: ServerContext, head: FileHead, gone: list[_Version], why: str) -> Change:
    owner, file_id, files = head.files.owner, head.file_id, head.files
    numbers = [one.number for one in gone]
    effects: list[Effect] = []
    emptied: dict[int, Sidecar] = {}
    for one in gone:
        paths = head.paths(one.number)
        emptied[one.number] = changed(one.document.value, metadata=None, wraps=(), leaves=None)
        effects += [Remove(paths.ciphertext), Remove(paths.leaves)]
        effects.append(Write(paths.sidecar, emptied[one.number].encode))

    def then(seq: int) -> None:
        for number in numbers:
            files.note_written(changed(emptied[number], seq=seq), number)
            files.ledger.drop(file_id, number)
            world.read_handles.invalidate(owner, file_id, number)

    draft = EntryDraft(
        op="retention",
        actor=SERVER,
        owner=owner,
        file=file_id,
        detail={"purged": numbers, "why": why},
        accounts=(owner,),
    )
    expect = {one.document.path: one.document.digest for one in gone} | head.expect()
    return Change(draft, expect, tuple(effects), None, then)
