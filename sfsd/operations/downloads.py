"""Download files: open them, which is logged, and read ranges of them.

The log entry is durable before the first byte is sent. A request has one entry, with the versions
that the log does not have of that UTC day and key of the session; it covers all later ranges.
Access is checked again at each Read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from protocol.codec.merkle import HASH_SIZE, PIECE_SIZE
from protocol.codec.values import Value, changed
from protocol.log.auditlog import DOWNLOAD
from protocol.wire.messages import Error, Receipt
from protocol.wire.messages.base import LEAVES_PER_PAGE, MAX_SMALL, PIECE, FileView
from protocol.wire.messages.downloads import (
    HEAD,
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
    Read,
)
from sfsd.errors import (
    Absent,
    DamagedError,
    LostVersionError,
    Refused,
    SfsdError,
    Stale,
    require,
    without_frames,
)
from sfsd.operations.files import view_size
from sfsd.rules.access import VisibleVersion
from sfsd.rules.context import (
    USER,
    Decision,
    PartlyRefused,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.record_rules import not_found
from sfsd.rules.users import signing_key_id
from sfsd.state.logged_downloads import Downloads
from sfsd.state.read_handles import OpenVersion, SessionHandles
from sfsd.storage.change import Change

ANSWER_BYTES: Final = 960 * 1024
"""Upper estimate of the bytes of one answer, which stays below a frame with its receipt, and of the
sidecars that it is made of: with the wraps of all readers, they may be much longer."""
_RECEIPT_LEAVES: Final = 32 * 1024
"""Most bytes of leaf data in an answer; the client asks for more."""
_READ_BATCH: Final = 32
"""Sidecars read at once."""
_Failure = SfsdError | OSError


class _Found(Value):
    """A version that the user may open."""

    visible: VisibleVersion
    opened: OpenVersion
    view: FileView


@operation(Open, access=USER, logged="download", slow=True, weight=PIECE)
def open_versions(server: ServerContext, who: Principal, message: Open) -> Decision:
    """Open versions for reading: reply with the view, the leaf hashes and first bytes of each."""
    server.check_storage()  # a download must be logged
    server.users.require_active(who.user)
    targets = message.targets
    require(0 < len(targets) == len(set(targets)), "a request names one version or more, each once")
    results = _find_all(server, who, message)
    alone = len(targets) == 1
    found = [one for one in results if isinstance(one, _Found)]
    versions = dict.fromkeys((one.opened.file_id, one.opened.version) for one in found)
    downloads = Downloads(signing_key_id(who.signer), message.owner, tuple(versions))
    new = server.downloads.unlogged(downloads)
    if not new.versions:
        return _answer(server, who, results, alone=alone)
    claim = server.downloads.claim(new)
    accounts = tuple(sorted({message.owner, who.user}))
    entry = draft(who, DOWNLOAD, owner=message.owner, detail=new.detail, accounts=accounts)
    expect: dict[str, bytes | None] = {}
    for one in found:
        document = one.visible.document
        expect |= {**one.visible.head.expect(), document.path: document.digest}
    change = Change(entry, expect, (), claim, claim.note)
    return Transaction(change, lambda seq: _answer(server, who, results, seq, alone=alone))


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


def _find_all(server: ServerContext, who: Principal, message: Open) -> list[_Found | _Failure]:
    """Return the first versions of a request, as many as fit one answer, or why one cannot be
    opened. Raises `Stale`."""
    room, results = ANSWER_BYTES, list[_Found | _Failure]()
    for target, newest in _newest(server, who, message):
        try:
            one = _find(server, newest(), target)
            size = max(view_size(one.view), _sidecar_size(one.visible))
            size += min(one.opened.size, MAX_SMALL)
            size += HASH_SIZE * min(-(-one.opened.size // PIECE_SIZE), LEAVES_PER_PAGE)
        except Stale:
            raise
        except (SfsdError, OSError) as exc:
            results.append(without_frames(exc))
            continue
        room -= size
        if results and room < 0:
            break
        results.append(one)
    return results


def _newest(
    server: ServerContext, who: Principal, message: Open
) -> Iterator[tuple[OpenTarget, Callable[[], VisibleVersion]]]:
    """Yield each target, and a function that returns the newest version of its file or raises why
    it cannot be opened. Files are read some at a time. Raises `Stale`."""
    visibility, user, owner = server.visibility, who.user, message.owner
    for start in range(0, len(message.targets), _READ_BATCH):
        some = message.targets[start : start + _READ_BATCH]
        found: list[VisibleVersion] | None = None
        try:
            found = visibility.all_newest(user, owner, [one.file_id for one in some])
        except Stale:
            raise
        except (SfsdError, OSError):
            pass  # one of them: each is read by itself
        for place, one in enumerate(some):
            if found is None:
                yield one, partial(visibility.newest, user, owner, one.file_id)
            else:
                yield one, partial(found.__getitem__, place)


def _find(server: ServerContext, newest: VisibleVersion, target: OpenTarget) -> _Found:
    """Return the requested version (0: the current one). Raises `Refused`, also if purged."""
    version = target.version or newest.last.current
    if version == 0:
        raise not_found()
    visible = server.visibility.older(newest, version)
    if visible.sidecar.lost:
        raise LostVersionError("lost", path=visible.paths.ciphertext)
    if visible.sidecar.metadata is None:
        raise not_found()
    return _Found(visible, _version(visible), visible.view())


def _sidecar_size(visible: VisibleVersion) -> int:
    """Return the bytes of the version's sidecar, and of the file's newest one."""
    newest = visible.head.document
    others = 0 if newest is None or newest.path == visible.document.path else newest.size
    return visible.document.size + others


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
    server: ServerContext,
    who: Principal,
    results: Sequence[_Found | _Failure],
    seq: int | None = None,
    *,
    alone: bool,
) -> PartlyRefused:
    """Read the first bytes and leaf hashes of each version that was found and give it a handle.
    `seq` is the entry that logs the downloads, None if they were logged before. Raises `Stale`."""
    shown = list[OpenedVersion | _Failure]()
    for one in results:
        try:
            opened = _read_first(server, who, one, alone=alone) if isinstance(one, _Found) else one
        except Stale:
            raise
        except (SfsdError, OSError) as exc:
            opened = without_frames(exc)
        shown.append(opened)
    receipt = None if seq is None else _receipt(server, who, seq)

    def reply(errors: Iterator[Error]) -> Opened:
        return Opened(
            tuple(
                OpenResult(one, None)
                if isinstance(one, OpenedVersion)
                else OpenResult(None, next(errors))
                for one in shown
            ),
            receipt,
        )

    return PartlyRefused(tuple(one for one in shown if not isinstance(one, OpenedVersion)), reply)


def _receipt(server: ServerContext, who: Principal, seq: int) -> Receipt:
    """Return entry `seq` with what the session has not seen of the log, if that is not much."""
    receipt = server.receipt(seq, who)
    if len(receipt.leaves) <= _RECEIPT_LEAVES:
        return receipt
    return changed(receipt, first=who.known_size, leaves=b"")


def _read_first(
    server: ServerContext, who: Principal, found: _Found, *, alone: bool
) -> OpenedVersion:
    visible, opened = found.visible, found.opened
    # The ciphertext is as long as its sidecar says, so no larger buffer is needed.
    size = min(opened.size, MAX_SMALL) if alone or opened.size <= MAX_SMALL else HEAD
    try:
        first = server.store.read(opened.path, 0, size)
    except Absent as exc:
        _check_unchanged(server, visible)
        raise DamagedError("missing ciphertext", path=opened.path) from exc
    leaves = _leaves(server, visible, 0)
    _check_unchanged(server, visible)
    handle = server.read_handles.for_session(who.session).add(opened)
    return OpenedVersion(handle, found.view, leaves, first)


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
