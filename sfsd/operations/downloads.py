"""Download a file: open it, which is logged, and read ranges of it.

The log entry is durable before the first byte is sent. There is one entry for each version, UTC day
and key that opened a session; it covers all later ranges. Access is checked again at each Read.
"""

from __future__ import annotations

from typing import Final

from protocol.codec.merkle import HASH_SIZE, PIECE_SIZE
from protocol.wire.messages.base import LEAVES_PER_PAGE, PIECE
from protocol.wire.messages.downloads import Bytes, GetLeaves, GetOpen, LeavesPage, Opened, Read
from sfsd.errors import Absent, DamagedError, LostVersionError, Refused, Stale
from sfsd.rules.access import VisibleVersion
from sfsd.rules.context import (
    USER,
    Decision,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.record_rules import not_found
from sfsd.rules.users import signing_key_id
from sfsd.state.logged_downloads import Download
from sfsd.state.read_handles import OpenVersion, SessionHandles
from sfsd.storage.change import Change

FIRST_BYTES: Final = 256 * 1024
"""Bytes sent with the reply to GetOpen, so that small files need no second round trip."""


@operation(GetOpen, access=USER, logged="download", weight=PIECE)
def get_open(server: ServerContext, who: Principal, message: GetOpen) -> Decision:
    """Open a version for reading. Reply with its view, leaf hashes and first bytes."""
    server.check_storage()  # a download must be logged
    server.users.require_active(who.user)
    visible = _find(server, who, message)
    opened = _version(visible)
    download = Download(signing_key_id(who.signer), opened.owner, opened.file_id, opened.version)
    if server.downloads.has(download):
        return _answer(server, who, visible, opened)
    claim = server.downloads.claim(download)
    entry = draft(
        who,
        "download",
        owner=opened.owner,
        file=opened.file_id,
        version=opened.version,
        detail=download.detail,
        accounts=tuple(sorted({opened.owner, who.user})),
    )
    expect = {**visible.head.expect(), visible.document.path: visible.document.digest}
    change = Change(entry, expect, (), claim, claim.note)
    return Transaction(change, lambda _seq: _answer(server, who, visible, opened))


@operation(GetLeaves, access=USER, slow=True, weight=PIECE)
def get_leaves(server: ServerContext, who: Principal, message: GetLeaves) -> LeavesPage:
    """Return one page of leaf hashes of an open version."""
    _, visible, opened = _reopen(server, who, message.handle)
    count = -(-opened.size // PIECE_SIZE)
    if message.first > count:
        raise Refused("bad-request", f"the blob has {count} leaves")
    leaves = _leaves(server, visible, message.first)
    _check_unchanged(server, visible)
    return LeavesPage(leaves)


@operation(Read, access=USER, slow=True, bulk=True, weight=lambda message: message.length)
def read(server: ServerContext, who: Principal, message: Read) -> Bytes:
    """Return a range of an open version's ciphertext."""
    session, visible, opened = _reopen(server, who, message.handle)
    if message.offset > opened.size:
        raise Refused("bad-request", f"the blob has {opened.size} bytes")
    data = session.read(message.handle, message.offset, message.length)
    _check_unchanged(server, visible)
    return Bytes(data)


def _find(server: ServerContext, who: Principal, message: GetOpen) -> VisibleVersion:
    """Return the requested version (0: the current one). Raises `Refused`, also if purged."""
    newest = server.visibility.newest(who.user, message.owner, message.file_id)
    version = message.version or newest.last.current
    if version == 0:
        raise not_found()
    visible = server.visibility.older(newest, version)
    if visible.sidecar.lost:
        raise LostVersionError("lost", path=visible.paths.ciphertext)
    if visible.sidecar.metadata is None:
        raise not_found()
    return visible


def _version(visible: VisibleVersion) -> OpenVersion:
    """Return what identifies the version's content."""
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
    """Read the first bytes and leaf hashes of a version and give it a handle."""
    try:
        # The ciphertext is as long as its sidecar says, so no larger buffer is needed.
        first = server.store.read(opened.path, 0, min(opened.size, FIRST_BYTES))
    except Absent as exc:
        _check_unchanged(server, visible)
        raise DamagedError("missing ciphertext", path=opened.path) from exc
    leaves = _leaves(server, visible, 0)
    _check_unchanged(server, visible)
    handle = server.read_handles.for_session(who.session).add(opened)
    return Opened(handle, visible.view(), leaves, first)


def _leaves(server: ServerContext, visible: VisibleVersion, first: int) -> bytes:
    """Return one page of leaf hashes from leaf `first` on."""
    inline = visible.sidecar.leaves
    start, length = first * HASH_SIZE, LEAVES_PER_PAGE * HASH_SIZE
    if inline is not None:
        return inline[start : start + length]
    try:
        return server.store.read(visible.paths.leaves, start, length)
    except Absent as exc:
        _check_unchanged(server, visible)
        raise DamagedError("missing leaf hashes", path=visible.paths.leaves) from exc


def _check_unchanged(server: ServerContext, visible: VisibleVersion) -> None:
    """Check that the sidecar is unchanged, so that it describes the bytes just read.

    A reencryption may have replaced both. `Stale` then makes the request run again.
    """
    document = visible.document
    if not server.store.is_unchanged(document.path, document.digest):
        raise Stale((document.path,))


def _reopen(
    server: ServerContext, who: Principal, handle: bytes
) -> tuple[SessionHandles, VisibleVersion, OpenVersion]:
    """Return the handle's version. Raises `Refused` if access or its content has changed."""
    server.check_storage()  # a download must be logged
    session = server.read_handles.for_session(who.session)
    opened = session.get(handle)
    visible = server.visibility.version(who.user, opened.owner, opened.file_id, opened.version)
    if visible.sidecar.metadata is None or _version(visible) != opened:
        raise Refused("changed", "the version was reencrypted; open the file again")
    return session, visible, opened
