"""List files and show their history. These requests work even after a storage failure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.records.record_signatures import MAX_PACKED
from protocol.wire.messages import FileView
from protocol.wire.messages.base import PIECE, DamagedVersion, SignedRecord
from protocol.wire.messages.files import MAX_PAGE, History, HistoryPage, List, Listing, Stat, Stated
from sfsd.errors import DamagedError, StoreFailedError
from sfsd.log.journal import Journal
from sfsd.rules.context import USER, Principal, ServerContext, operation
from sfsd.rules.record_rules import FileHead
from sfsd.state.file_index import OwnerFiles
from sfsd.storage.json_files import Sidecar, cached_record
from sfsd.storage.logged_file import LoggedFile

PAGE_BYTES: Final = 960 * 1024
"""Upper estimate of a page's bytes; with its envelope it stays below a frame."""
_OVERHEAD: Final = 512
_SIGNATURE: Final = MAX_PACKED + 16
_SCANNED: Final = 4096
"""Maximum files examined for one page of a listing."""
_INDEX_BATCH: Final = 256
"""Index entries fetched at once."""
_READ_BATCH: Final = 32
"""Sidecars read at once."""


@operation(Stat, access=USER)
def stat(server: ServerContext, who: Principal, message: Stat) -> Stated:
    """Return what the user may see of one version (0: the newest)."""
    visible = server.visibility.version(who.user, message.owner, message.file_id, message.version)
    return Stated(visible.view())


@operation(List, access=USER, slow=True, weight=PIECE)
def list_files(server: ServerContext, who: Principal, message: List) -> Listing:
    """Return one page of the user's own files that entry `since_seq` or a later one changed, or
    whose newest version is damaged or lost; with `wanted`, of these files only."""
    files = server.index.for_user(who.user)
    views: list[FileView] = []
    damaged: list[DamagedVersion] = []
    size = 0
    last, following = message.after, ""
    published = files.published_size()  # before reading: what is read may be newer, never older
    for scanned, (file_id, sidecar) in enumerate(_scan(files, message), 1):
        listed = len(views) + len(damaged)
        if isinstance(sidecar, DamagedVersion):
            if listed == message.limit:
                following = last
                break
            damaged.append(sidecar)
        elif sidecar is not None and (sidecar.lost or sidecar.seq >= message.since_seq):
            view = sidecar.view(who.user, sidecar.last, max(published, sidecar.seq + 1))
            size += view_size(view)
            if listed == message.limit or (views and size > PAGE_BYTES):
                following = last
                break
            views.append(view)
        last = file_id
        following = last if scanned == _SCANNED else ""
    try:
        files.await_published(max((view.at for view in views), default=0))
    except StoreFailedError:
        published = files.published_size()
        waiting = [view for view in views if view.at > published]
        damaged += [_unreadable(files, view) for view in waiting]
        views = [view for view in views if view.at <= published]
    return Listing(tuple(views), following, tuple(damaged))


def _unreadable(files: OwnerFiles, view: FileView) -> DamagedVersion:
    """Return what is shown of a file whose last change waits for a restart to be put in place."""
    file_id = cached_record(view.content.record).file_id
    return DamagedVersion(files.owner, file_id, files.newest(file_id))


def _scan(
    files: OwnerFiles, message: List
) -> Iterator[tuple[str, Sidecar | DamagedVersion | None]]:
    """Yield up to `_SCANNED` files past `after`, with None for sidecars older than `since_seq`.

    At most `_READ_BATCH` sidecars are read ahead of the caller.
    """
    after, since, wanted = message.after, message.since_seq, sorted(set(message.wanted))
    for _ in range(_SCANNED // _INDEX_BATCH):
        page = files.after(after, _INDEX_BATCH, wanted)
        for start in range(0, len(page), _READ_BATCH):
            some = page[start : start + _READ_BATCH]
            places = [one[:2] for one in some if not 0 < one[2] < since]
            found = iter(files.readable_sidecars(places))
            for file_id, version, seq in some:
                if 0 < seq < since:
                    yield file_id, None
                    continue
                document = next(found)
                if isinstance(document, DamagedError):
                    yield file_id, DamagedVersion(files.owner, file_id, version)
                    continue
                sidecar = document.value
                if sidecar.seq != seq:
                    files.note_written(sidecar, version)
                yield file_id, sidecar
        if len(page) < _INDEX_BATCH:
            return
        after = page[-1][0]


@operation(History, access=USER, slow=True, weight=PIECE)
def history(server: ServerContext, who: Principal, message: History) -> HistoryPage:
    """Return a file's signed records from revision `first` on, as many as fit a page."""
    visible = server.visibility.newest(who.user, message.owner, message.file_id)
    page: list[SignedRecord] = []
    size = 0
    for record in file_records(server.journal, visible.head, max(message.first, 1)):
        size += signed_size(record) + _OVERHEAD
        if page and size > PAGE_BYTES:
            break
        page.append(record)
    end = max(message.first, 1) + len(page)
    return HistoryPage(tuple(page), end if end <= visible.last.rev else 0)


def file_records(journal: Journal, head: FileHead, first: int) -> list[SignedRecord]:
    """Return at most `MAX_PAGE` consecutive records of a file from revision `first` (≥ 1) on.

    Sidecars hold the record that made each version, and the last record. The records between (an
    access, a delete that was undone) are only in the log. Raises `DamagedError` if one is missing.
    """
    if head.document is None or head.record is None:
        return []
    wanted = range(first, min(first + MAX_PAGE, head.record.rev + 1))
    found = {head.record.rev: head.document.value.last}
    for version in range(1, head.version + 1):
        document = head.files.undamaged_sidecar(head.file_id, version)
        if document is None:
            continue  # its record is read from the log
        sidecar = document.value
        found[sidecar.content_record.rev] = sidecar.content
        found.setdefault(sidecar.head_record.rev, sidecar.last)
    if missing := [rev for rev in wanted if rev not in found]:
        # The signer of the record before the gap had seen the log up to `seen`; the missing ones
        # were logged after that.
        known = max((rev for rev in found if rev < missing[0]), default=0)
        begin = cached_record(found[known].record).seen[0] if known else 0
        # Records in sidecars have later endorsements; those in the log never do.
        end = head.document.value.seq + 1
        found = LoggedFile.read(journal, head.files.owner, head.file_id, begin, end).records | found
    if any(rev not in found for rev in wanted):
        raise DamagedError("the log lacks a record of this file", path=head.document.path)
    return [found[rev] for rev in wanted]


def view_size(view: FileView) -> int:
    """Return an upper estimate of a view's bytes on the wire."""
    head = 0 if view.head is None else signed_size(view.head) + _OVERHEAD
    wraps = sum(len(wrap.wrapped) + _OVERHEAD for wrap in view.wraps)
    return signed_size(view.content) + len(view.metadata) + head + wraps + _OVERHEAD


def signed_size(signed: SignedRecord) -> int:
    """Return the maximum bytes of a record and its signatures in a message."""
    return len(signed.record) + _SIGNATURE * len(signed.signatures)
