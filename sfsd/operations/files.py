"""Looking at files. It goes on where a failed sync has stopped all changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.wire.messages import FileView
from protocol.wire.messages.base import PIECE, SignedRecord
from protocol.wire.messages.files import History, HistoryPage, List, Listing, Stat, Stated
from sfsd.rules.context import USER, Principal, World, operation
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.json_files import Sidecar

PAGE_BYTES: Final = 960 * 1024
"""Bytes of a page, counted generously; with its envelope it stays below a frame."""
_OVERHEAD: Final = 512
_SIGNATURE: Final = 80
_SCANNED: Final = 4096
"""Files looked at for one page of a listing, whether or not they are in it."""
_TOGETHER: Final = 256
_READ: Final = 32
"""Sidecars that are read together."""


@operation(Stat, access=USER)
def stat(world: World, who: Principal, message: Stat) -> Stated:
    visible = world.visibility.version(who.user, message.owner, message.file_id, message.version)
    return Stated(visible.view())


@operation(List, access=USER, slow=True, weight=PIECE)
def list_files(world: World, who: Principal, message: List) -> Listing:
    files = world.index.of(who.user)
    views: list[FileView] = []
    size = scanned = 0
    last = message.after
    for file_id, sidecar in _scan(files, message.after, message.since_seq):
        scanned += 1
        if sidecar is not None and sidecar.seq >= message.since_seq:
            view = sidecar.view(who.user, sidecar.last)
            size += size_of(view)
            if len(views) == message.limit or (views and size > PAGE_BYTES):
                return Listing(tuple(views), last)
            views.append(view)
        last = file_id
    return Listing(tuple(views), last if scanned == _SCANNED else "")


def _scan(files: OwnerFiles, after: str, since: int) -> Iterator[tuple[str, Sidecar | None]]:
    """Up to `_SCANNED` files, of which few are read before they are asked for; None for one that is
    known to be older than entry `since`."""
    for _ in range(_SCANNED // _TOGETHER):
        page = files.after(after, _TOGETHER)
        for start in range(0, len(page), _READ):
            some = page[start : start + _READ]
            places = [one[:2] for one in some if not 0 < one[2] < since]
            found = iter(files.sidecars(places))
            for file_id, version, seq in some:
                sidecar = None
                if not 0 < seq < since:
                    sidecar = next(found).value
                    if sidecar.seq != seq:
                        files.saw(sidecar, version)
                yield file_id, sidecar
        if len(page) < _TOGETHER:
            return
        after = page[-1][0]


@operation(History, access=USER, slow=True, weight=PIECE)
def history(world: World, who: Principal, message: History) -> HistoryPage:
    visible = world.visibility.newest(who.user, message.owner, message.file_id)
    records = world.histories.records(visible.head, max(message.first, 1))
    page: list[SignedRecord] = []
    size = 0
    for record in records:
        size += signed_size(record) + _OVERHEAD
        if page and size > PAGE_BYTES:
            break
        page.append(record)
    end = max(message.first, 1) + len(page)
    return HistoryPage(tuple(page), end if end <= visible.last.rev else 0)


def size_of(view: FileView) -> int:
    """Bytes of a view on the wire, counted generously."""
    head = 0 if view.head is None else signed_size(view.head) + _OVERHEAD
    wraps = sum(len(wrap.wrapped) + _OVERHEAD for wrap in view.wraps)
    return signed_size(view.content) + len(view.metadata) + head + wraps + _OVERHEAD


def signed_size(signed: SignedRecord) -> int:
    """Bytes of a record and its signatures in a message, at most."""
    return len(signed.record) + _SIGNATURE * len(signed.signatures)
