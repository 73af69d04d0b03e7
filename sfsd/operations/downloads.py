"""Fetching a file: opening it, which is logged, and reading ranges of it.

A download is in the log, durably, before its first byte leaves: once for a session and a content,
all ranges after it are covered. Who may read is decided again at each Read.
"""

from __future__ import annotations

from typing import Final

from protocol.codec.merkle import HASH_SIZE, PIECE_SIZE
from protocol.wire.messages import Reply
from protocol.wire.messages.base import LEAVES_PER_PAGE, PIECE
from protocol.wire.messages.downloads import Bytes, GetLeaves, GetOpen, LeavesPage, Opened, Read
from sfsd.errors import Absent, DamagedError, Refused, Stale
from sfsd.rules.access import VisibleVersion
from sfsd.rules.context import USER, Commit, Principal, ServerContext, draft, operation
from sfsd.rules.record_rules import not_found
from sfsd.state.read_handles import OpenVersion, SessionHandles
from sfsd.storage.change import Change

FIRST_BYTES: Final = 256 * 1024
"""Bytes of the blob that come with its opening: small files need no second round trip."""


@operation(GetOpen, access=USER, logged="download", weight=PIECE)
def get_open(server: ServerContext, who: Principal, message: GetOpen) -> Reply | Commit[Reply]:
    _check_downloads(server)
    server.users.require_active(who.user)
    visible = _find(server, who, message)
    opened = _version(visible)
    session = server.read_handles.for_session(who.session)
    if session.is_logged(opened):
        return _answer(server, who, visible, opened)
    entry = draft(
        who,
        "download",
        owner=opened.owner,
        file=opened.file_id,
        version=opened.version,
        accounts=tuple(sorted({opened.owner, who.user})),
    )

    def answer(_seq: int) -> Reply:
        session.mark_logged(opened)
        return _answer(server, who, visible, opened)

    expect = {**visible.head.expect(), visible.document.path: visible.document.digest}
    return Commit(Change(entry, expect), answer)


@operation(GetLeaves, access=USER, slow=True, weight=PIECE)
def get_leaves(server: ServerContext, who: Principal, message: GetLeaves) -> LeavesPage:
    _, visible, opened = _reopen(server, who, message.handle)
    count = -(-opened.size // PIECE_SIZE)
    if message.first > count:
        raise Refused("bad-request", f"the blob has {count} leaves")
    leaves = _leaves(server, visible, message.first)
    _check_unchanged(server, visible)
    return LeavesPage(leaves)


@operation(Read, access=USER, slow=True, weight=lambda message: message.length)
def read(server: ServerContext, who: Principal, message: Read) -> Bytes:
    session, visible, opened = _reopen(server, who, message.handle)
    if message.offset > opened.size:
        raise Refused("bad-request", f"the blob has {opened.size} bytes")
    data = session.read(message.handle, message.offset, message.length)
    _check_unchanged(server, visible)
    return Bytes(data)


def _find(server: ServerContext, who: Principal, message: GetOpen) -> VisibleVersion:
    """The version that was asked for, 0 being the current one; purged ones are not found."""
    newest = server.visibility.newest(who.user, message.owner, message.file_id)
    version = message.version or newest.last.current
    if version == 0:
        raise not_found()
    visible = server.visibility.older(newest, version)
    if visible.sidecar.metadata is None:
        raise not_found()
    return visible


def _version(visible: VisibleVersion) -> OpenVersion:
    record = visible.sidecar.content_record
    return OpenVersion(
        owner=record.owner,
        file_id=record.file_id,
        version=visible.version,
        content_id=record.content_id or b"",
        size=record.ciphertext_size or 0,
        path=visible.paths.ciphertext,
    )


def _answer(
    server: ServerContext, who: Principal, visible: VisibleVersion, opened: OpenVersion
) -> Opened:
    try:
        # Room for no more than there is: what goes with this sidecar is as long as it says.
        first = server.store.read_range(opened.path, 0, min(opened.size, FIRST_BYTES))
    except Absent as exc:
        _check_unchanged(server, visible)
        raise DamagedError("the ciphertext is not there", path=opened.path) from exc
    leaves = _leaves(server, visible, 0)
    _check_unchanged(server, visible)
    handle = server.read_handles.for_session(who.session).add(opened)
    return Opened(handle, visible.view(), leaves, first)


def _leaves(server: ServerContext, visible: VisibleVersion, first: int) -> bytes:
    """One page of leaf hashes from leaf `first` on."""
    inline = visible.sidecar.leaves
    start, length = first * HASH_SIZE, LEAVES_PER_PAGE * HASH_SIZE
    if inline is not None:
        return inline[start : start + length]
    try:
        return server.store.read_range(visible.paths.leaves, start, length)
    except Absent as exc:
        _check_unchanged(server, visible)
        raise DamagedError("the leaf hashes are not there", path=visible.paths.leaves) from exc


def _check_unchanged(server: ServerContext, visible: VisibleVersion) -> None:
    """That what was read beside a sidecar goes with it: it may have been encrypted anew meanwhile.

    Raises `Stale`: then it is to be decided and read again.
    """
    document = visible.document
    if not server.store.is_unchanged(document.path, document.digest):
        raise Stale((document.path,))


def _reopen(
    server: ServerContext, who: Principal, handle: bytes
) -> tuple[SessionHandles, VisibleVersion, OpenVersion]:
    """The handle's version, if this user may still read it and it still is what was opened."""
    _check_downloads(server)
    session = server.read_handles.for_session(who.session)
    opened = session.get(handle)
    visible = server.visibility.version(who.user, opened.owner, opened.file_id, opened.version)
    if visible.sidecar.metadata is None or _version(visible) != opened:
        raise Refused("changed", "this version has another content now; open the file again")
    return session, visible, opened


def _check_downloads(server: ServerContext) -> None:
    if server.failed is not None:
        raise Refused("unavailable", "a sync failed: until a restart, nothing can be logged")
