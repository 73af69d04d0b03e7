"""Removes contents, wraps and whole accounts, as an act of the server.

Content, metadata and wraps are removed and signed records stay, as by a purge. No user signs it, so
the log has it as an act of the server, in the history of the file's owner.

A removed account keeps its settings and its identity chain: other users have pinned it, and its
name is not given again. It keeps the tag key, because later entries about it need their tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.codec.names import SERVER
from protocol.codec.values import Value, changed
from protocol.log.auditlog import RETENTION, EntryDraft
from protocol.records.records import PURGED_AT_ONCE
from sfsd.errors import Absent, DamagedError
from sfsd.rules.bundles import bundle_paths
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.state.documents import Document, SidecarWrite
from sfsd.storage.change import Change, Effect, Remove, Write
from sfsd.storage.json_files import Sidecar
from sfsd.storage.paths import account_path, inbox_path

PAGE: Final = 256
"""Files, or notes, that are looked up at once."""
MAX_READER_VERSIONS: Final = 128
"""Versions in a change for one reader; the log names each."""
_MAX_NOTES: Final = 256
"""Notes in a change for an account that is removed; the log names each."""
REMOVED: Final = "removed"
"""Why a content is removed: its owner's account, or the reader's, is."""
USER_ERASE: Final = "user-erase"
"""Op of the entry that ends the removal of an account."""


class StoredVersion(Value):
    """A version of a file, and its sidecar."""

    number: int
    document: Document[Sidecar]

    @property
    def has_content(self) -> bool:
        """Whether the content was not removed yet."""
        return self.document.value.metadata is not None


def stored_versions(head: FileHead) -> list[StoredVersion]:
    """Return all versions of a file, the newest first. Raises `DamagedError`, `Absent`."""
    if head.document is None:
        return []
    older = range(head.version - 1, 0, -1)
    return [
        StoredVersion(head.version, head.document),
        *(StoredVersion(one, head.files.sidecar(head.file_id, one)) for one in older),
    ]


def content_removal(
    context: ServerContext,
    head: FileHead,
    versions: list[StoredVersion],
    why: str,
    notes: tuple[str, ...] = (),
) -> Change:
    """Return the change that removes the content of versions of a file, and its notes in the
    inboxes of these readers."""
    owner, file_id, files = head.files.owner, head.file_id, head.files
    numbers = [one.number for one in versions]
    effects: list[Effect] = [Remove(inbox_path(reader, owner, file_id)) for reader in notes]
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
        for reader in notes:
            _note_gone(context, reader, owner, file_id)

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


def reader_removal(
    context: ServerContext, user: str, head: FileHead, why: str, *, note: bool = False
) -> Change | None:
    """Return the change that removes wraps of a reader from versions of a file, and with `note` the
    note in the reader's inbox; None if there is nothing to remove. The record goes on naming the
    reader: only the owner signs another."""
    record = head.record
    found = {} if record is None else head.without_wraps({user}, MAX_READER_VERSIONS)
    owner = head.files.owner
    if not found and not note:
        return None
    written = [SidecarWrite(old.path, new) for old, new in found.values()]

    def note_published(_seq: int) -> None:
        for one in written:
            head.files.note_published(one)
        if note:
            _note_gone(context, user, owner, head.file_id)

    draft = EntryDraft(
        op=RETENTION,
        actor=SERVER,
        owner=owner,
        file=head.file_id,
        detail={"why": why, "reader": user},
        accounts=tuple(sorted({owner, user})),
    )
    expect = head.expect() | {old.path: old.digest for old, _ in found.values()}
    effects: list[Effect] = [one.effect for one in written]
    if note:
        effects.append(Remove(inbox_path(user, owner, head.file_id)))
    return Change(draft, expect, tuple(effects), None, note_published)


def is_removal_due(context: ServerContext, user: str) -> bool:
    """Return whether the files of an account are to be removed now. Raises `DamagedError`."""
    account = context.users.account(user)
    if account is None or account.value.removed or not account.value.removal:
        return False
    return context.now >= account.value.removal


def erasure_changes(
    context: ServerContext, user: str, after: str = ""
) -> Iterator[tuple[str, Change]]:
    """Yield the changes that remove what is left of an account, each with the file id past which a
    later call goes on; commit each before asking for the next. The last one says that nothing is
    left. A file with damaged sidecars is skipped: `fsck` reports it."""
    done = after
    files = context.index.for_user(user)
    while page := files.after(done, PAGE):
        for file_id, _, _ in page:
            for change in _file_erasure(context, user, file_id):
                yield done, change
            done = file_id
    for change in _inbox_erasure(context, user):
        yield done, change
    account = context.users.account(user)
    if account is None or account.value.removed:
        return
    draft = EntryDraft(op=USER_ERASE, actor=SERVER, owner=user, accounts=_accounts(context, user))
    erased = changed(account.value, removed=True)
    effects: list[Effect] = [Remove(path) for path in bundle_paths(context, user)]
    effects.append(Write(account_path(user), erased.encode))
    yield done, Change(draft, {account.path: account.digest}, tuple(effects))


def _accounts(context: ServerContext, user: str) -> tuple[str, ...]:
    """Return the accounts of an entry about a user: an invitation that was not used has none."""
    return () if context.users.chain(user) is None else (user,)


def _file_erasure(context: ServerContext, user: str, file_id: str) -> Iterator[Change]:
    """Yield the changes that remove everything of a file but its records. What was not done is
    found and yielded again."""
    while True:
        try:
            head = FileHead.load(context.index.for_user(user), file_id)
            left = [one for one in stored_versions(head) if one.has_content]
        except (DamagedError, Absent):
            return
        record = head.record
        readers = () if record is None else tuple(name for name, _, _ in record.readers)
        notes = tuple(one for one in readers if context.inboxes.has(one, (user, file_id)))
        if not left and not notes:
            return
        # Oldest first: every change relies on the head, so only the last may rewrite it.
        yield content_removal(
            context, head, left[::-1][:PURGED_AT_ONCE], REMOVED, notes[:_MAX_NOTES]
        )


def _inbox_erasure(context: ServerContext, user: str) -> Iterator[Change]:
    """Yield the changes that remove the wraps of a user from what others have shared."""
    after = ("", "")
    while notes := context.inboxes.for_user(user).after(after, PAGE):
        for owner, file_id in notes:
            while context.inboxes.has(user, (owner, file_id)):
                try:
                    head = FileHead.load(context.index.for_user(owner), file_id)
                except (DamagedError, Absent):
                    break
                last = len(head.without_wraps({user}, MAX_READER_VERSIONS)) < MAX_READER_VERSIONS
                change = reader_removal(context, user, head, REMOVED, note=last)
                if change is not None:
                    yield change
        after = notes[-1]


def _note_gone(context: ServerContext, reader: str, owner: str, file_id: str) -> None:
    cached = context.inboxes.cached(reader)
    if cached is not None:
        cached.note_changed((owner, file_id), present=False)
