"""Removes old bundles and wraps of expired readers, and by policy old trash and versions.

Content, metadata and wraps are removed and records stay, as by a purge. No user signs it, so the
log has it as an act of the server, in the history of the file's owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import Value, changed
from protocol.log.auditlog import RETENTION, EntryDraft
from protocol.records.records import DELETE, PURGED_AT_ONCE
from sfsd.config import RetentionPolicy
from sfsd.errors import Absent, DamagedError
from sfsd.rules.bundles import remove_expired_bundles
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.setting_kinds import DAY
from sfsd.state.documents import Document, SidecarWrite
from sfsd.storage.change import Change, Effect, Remove
from sfsd.storage.json_files import Sidecar

_PAGE: Final = 256
MAX_READER_VERSIONS: Final = 128
"""Versions in a change for an expired reader; the log names each. The next run does the rest."""
TRASH: Final = "trash"
VERSIONS: Final = "versions"


class _Version(Value):
    number: int
    document: Document[Sidecar]

    @property
    def kept(self) -> bool:
        return self.document.value.metadata is not None


def retention_changes(
    context: ServerContext, owner: str, policy: RetentionPolicy
) -> Iterator[Change]:
    """Yield the changes that are due for one owner; commit each before asking for the next.

    A file with damaged or missing sidecars is skipped.
    """
    if (change := remove_expired_bundles(context, owner)) is not None:
        yield change
    yield from _expired_reader_changes(context, owner)
    if not (policy.trash_days or policy.versions):
        return
    files = context.index.for_user(owner)
    after = ""
    while page := files.after(after, _PAGE):
        for file_id, _, _ in page:
            try:
                yield from _file_changes(context, FileHead.load(files, file_id), policy)
            except (DamagedError, Absent):
                continue  # requests for it and `fsck` report it
        after = page[-1][0]


def _file_changes(
    context: ServerContext, head: FileHead, policy: RetentionPolicy
) -> Iterator[Change]:
    if head.document is None:
        return
    newest = head.document
    versions = [_Version(head.version, newest)]
    versions += [
        _Version(number, head.files.sidecar(head.file_id, number))
        for number in range(head.version - 1, 0, -1)
    ]
    kept = [one for one in versions if one.kept]
    why, removed = VERSIONS, kept[policy.versions :] if policy.versions else []
    if _is_old_trash(context, newest.value, policy):
        why, removed = TRASH, kept
    current = newest.value.head_record.current
    # Oldest first: every change relies on the head, so only the last may rewrite it.
    removed = [one for one in reversed(removed) if one.number != current]
    for start in range(0, len(removed), PURGED_AT_ONCE):
        yield _removal(context, head, removed[start : start + PURGED_AT_ONCE], why)


def _is_old_trash(context: ServerContext, head: Sidecar, policy: RetentionPolicy) -> bool:
    """Tell whether the file was deleted at least `trash_days` ago, by this server's clock.

    The old id of a moved file is not trash: its versions belong to a file that exists.
    """
    record = head.head_record
    if not policy.trash_days or record.op != DELETE or record.to is not None:
        return False
    return context.now - context.logged_at(head.seq) >= policy.trash_days * DAY


def _removal(context: ServerContext, head: FileHead, versions: list[_Version], why: str) -> Change:
    owner, file_id, files = head.files.owner, head.file_id, head.files
    numbers = [one.number for one in versions]
    effects: list[Effect] = []
    emptied: list[SidecarWrite] = []
    for one in versions:
        paths = head.paths(one.number)
        sidecar = changed(one.document.value, metadata=None, wraps=(), leaves=None)
        emptied.append(SidecarWrite(paths.sidecar, sidecar))
        effects += [Remove(paths.ciphertext), Remove(paths.leaves), emptied[-1].effect]

    def note_published(_seq: int) -> None:
        for number, written in zip(numbers, emptied, strict=True):
            files.note_published(written)
            context.read_handles.invalidate(owner, file_id, number)

    draft = EntryDraft(
        op=RETENTION,
        actor=SERVER,
        owner=owner,
        file=file_id,
        detail={"purged": numbers, "why": why},
        accounts=(owner,),
    )
    expect = {one.document.path: one.document.digest for one in versions} | head.expect()
    return Change(draft, expect, tuple(effects), None, note_published)


def _expired_reader_changes(context: ServerContext, user: str) -> Iterator[Change]:
    """Yield a change for each file with wraps of `user` whose access to it has expired.

    Such readers are refused from the moment of expiry (`rules.access`). Removing their wraps
    ensures that a thief of the disk and of their keys cannot decrypt the files either.
    """
    after = ("", "")
    while notes := context.inboxes.for_user(user).after(after, _PAGE):
        for owner, file_id in notes:
            try:
                change = _expired_reader_change(
                    context, user, FileHead.load(context.index.for_user(owner), file_id)
                )
            except (DamagedError, Absent):
                continue  # requests for it and `fsck` report it
            if change is not None:
                yield change
        after = notes[-1]


def _expired_reader_change(context: ServerContext, user: str, head: FileHead) -> Change | None:
    record = head.record
    if record is None:
        return None
    expiry = [expires for name, _, expires in record.readers if name == user]
    if not expiry or not expiry[0] or context.now < expiry[0]:
        return None
    found = head.without_wraps({user}, MAX_READER_VERSIONS)
    if not found:
        return None

    written = [SidecarWrite(old.path, new) for old, new in found.values()]

    def note_published(_seq: int) -> None:
        for one in written:
            head.files.note_published(one)

    draft = EntryDraft(
        op=RETENTION,
        actor=SERVER,
        owner=record.owner,
        file=head.file_id,
        detail={"why": "expired", "reader": user},
        accounts=tuple(sorted({record.owner, user})),
    )
    expect = head.expect() | {old.path: old.digest for old, _ in found.values()}
    effects = tuple(one.effect for one in written)
    return Change(draft, expect, effects, None, note_published)
