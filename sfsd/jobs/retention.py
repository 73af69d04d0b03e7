"""Removes old bundles and wraps of expired readers, and by policy old trash and versions.

Content, metadata and wraps are removed and records stay, as by a purge. No user signs it, so the
log has it as an act of the server, in the history of the file's owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.records.records import DELETE, PURGED_AT_ONCE
from sfsd.errors import Absent, DamagedError
from sfsd.rules.bundles import remove_expired_bundles
from sfsd.rules.context import ServerContext
from sfsd.rules.record_rules import FileHead
from sfsd.rules.removal import PAGE, content_removal, reader_removal, stored_versions
from sfsd.settings.config import RetentionPolicy
from sfsd.settings.kinds import DAY
from sfsd.storage.change import Change
from sfsd.storage.json_files import Sidecar

TRASH: Final = "trash"
VERSIONS: Final = "versions"


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
    while page := files.after(after, PAGE):
        for file_id, _, _ in page:
            try:
                yield from _file_changes(context, FileHead.load(files, file_id), policy)
            except (DamagedError, Absent):
                continue  # requests for it and `fsck` report it
        after = page[-1][0]


def _file_changes(
    context: ServerContext, head: FileHead, policy: RetentionPolicy
) -> Iterator[Change]:
    newest = head.document
    if newest is None:
        return
    kept = [one for one in stored_versions(head) if one.has_content]
    why, removed = VERSIONS, kept[policy.versions :] if policy.versions else []
    if _is_old_trash(context, newest.value, policy):
        why, removed = TRASH, kept
    current = newest.value.head_record.current
    # Oldest first: every change relies on the head, so only the last may rewrite it.
    removed = [one for one in reversed(removed) if one.number != current]
    for start in range(0, len(removed), PURGED_AT_ONCE):
        yield content_removal(context, head, removed[start : start + PURGED_AT_ONCE], why)


def _is_old_trash(context: ServerContext, head: Sidecar, policy: RetentionPolicy) -> bool:
    """Tell whether the file was deleted at least `trash_days` ago, by this server's clock.

    The old id of a moved file is not trash: its versions belong to a file that exists.
    """
    record = head.head_record
    if not policy.trash_days or record.op != DELETE or record.to is not None:
        return False
    return context.now - context.logged_at(head.seq) >= policy.trash_days * DAY


def _expired_reader_changes(context: ServerContext, user: str) -> Iterator[Change]:
    """Yield a change for each file with wraps of `user` whose access to it has expired.

    Such readers are refused from the moment of expiry (`rules.access`). Removing their wraps
    ensures that a thief of the disk and of their keys cannot decrypt the files either.
    """
    after = ("", "")
    while notes := context.inboxes.for_user(user).after(after, PAGE):
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
    return reader_removal(context, user, head, "expired")
