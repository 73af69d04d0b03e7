"""Give up a damaged version: it is marked as lost in the log, and the rest of its file works again.

The sidecar is built again from the signed records in the log. Metadata and wraps are not in the
log, so the content is lost. The owner asks for it, or the operator with ``sfsd fsck --give-up``.
"""

from __future__ import annotations

from contextlib import closing

from protocol.codec.names import SERVER
from protocol.codec.values import changed
from protocol.log.auditlog import LOST, EntryDraft
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.files import GiveUp
from sfsd.errors import Absent, Refused, UnreadableError
from sfsd.rules.context import (
    USER,
    Decision,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.state.documents import SidecarWrite
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.change import Change, Remove
from sfsd.storage.logged_file import LoggedFile
from sfsd.storage.paths import VersionPaths


@operation(GiveUp, access=USER, logged=LOST, slow=True, weight=PIECE)
def give_up(server: ServerContext, who: Principal, message: GiveUp) -> Decision:
    """Mark a damaged version of the user's own as lost."""
    server.users.require_active(who.user)
    entry = draft(
        who,
        LOST,
        owner=who.user,
        file=message.file_id,
        version=message.version,
        detail={"why": LOST},
        accounts=(who.user,),
    )
    change = lost_change(server, entry, who.user, message.file_id, message.version)
    return Transaction(change, lambda seq: server.done(seq, who))


def give_up_offline(server: ServerContext, owner: str, file_id: str, version: int) -> None:
    """Mark a damaged version as lost for the operator; all of its ciphertext is read. Raises as
    `lost_change`."""
    entry = EntryDraft(
        op=LOST,
        actor=SERVER,
        owner=owner,
        file=file_id,
        version=version,
        detail={"why": LOST},
        accounts=(owner,),
    )
    change = lost_change(server, entry, owner, file_id, version, read_data=True)
    server.committer.submit(change).result()


def lost_change(
    server: ServerContext,
    entry: EntryDraft,
    owner: str,
    file_id: str,
    version: int,
    *,
    read_data: bool = False,
) -> Change:
    """Return the change that marks a version as lost, logged as `entry`. Reads all of the log.

    Raises `Absent`, or `Refused` (conflict) if the version is not damaged; the ciphertext is only
    read if `read_data`, else its size is compared.
    """
    files = server.index.for_user(owner)
    logged = LoggedFile.read(server.journal, owner, file_id)
    paths = VersionPaths.for_version(owner, file_id, version)
    emptied = logged.sidecar_without_content(version)
    if not _is_damaged(server, files, logged, paths, version, read_data=read_data):
        raise Refused("conflict", "the version is not damaged")
    had_content = logged.paths.get(paths.ciphertext) is not None
    written = SidecarWrite(paths.sidecar, changed(emptied, lost=had_content))
    effects = (Remove(paths.ciphertext), Remove(paths.leaves), written.effect)

    def on_published(_seq: int) -> None:
        files.note_published(written)
        server.read_handles.invalidate(owner, file_id, version)

    following = VersionPaths.for_version(owner, file_id, files.newest(file_id) + 1)
    expect = {paths.sidecar: server.store.stored_digest(paths.sidecar), following.sidecar: None}
    return Change(entry, expect, effects, None, on_published)


def _is_damaged(
    server: ServerContext,
    files: OwnerFiles,
    logged: LoggedFile,
    paths: VersionPaths,
    version: int,
    *,
    read_data: bool,
) -> bool:
    """Return whether a file of the version is missing, unreadable or differs from the log."""
    try:
        document = files.undamaged_sidecar(logged.file_id, version)
    except Absent:
        return True
    if document is None:
        return True
    if document.value.metadata is None:
        return False  # purged, or lost already
    try:
        if logged.paths.get(paths.leaves) != server.store.digest_in_place(paths.leaves):
            return True
        if read_data:
            digest = server.store.digest_in_place(paths.ciphertext)
            return logged.paths.get(paths.ciphertext) != digest
        with closing(server.store.open_blob(paths.ciphertext)) as blob:
            return blob.size != document.value.content_record.ciphertext_size
    except (Absent, UnreadableError):
        return True
