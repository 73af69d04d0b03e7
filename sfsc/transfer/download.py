"""Download of files: verified piece by piece, and visible at their place only once they are whole.

Everything is verified against the signed record before it is written: each piece against its leaf
of `segments_root`, then by its own tag. A file appears at its place when it is complete (see
`destination`). A stream receives verified bytes only, but its reader must expect an error at the
end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from protocol.codec.values import Value, changed
from protocol.wire.messages.base import PIECE
from protocol.wire.messages.downloads import Open
from sfsc.crypto.envelope import check_name, requested_version
from sfsc.errors import ConflictError, NetworkError, SfscError
from sfsc.local_files import is_folder, status_of
from sfsc.log.seen_checkpoints import SeenCheckpoints
from sfsc.session.pipeline import Skip, Window
from sfsc.session.session import Session
from sfsc.transfer.destination import (
    OpenDestination,
    check_foreign_name,
    limit_to_umask,
    make_folders,
    replacing_file,
)
from sfsc.transfer.local_io import LargeFileWriter
from sfsc.transfer.remote_version import (
    RemoteVersion,
    VersionRequest,
    known_revisions,
    open_results,
)
from sfsc.transfer.status import FETCHED, SKIPPED
from sfsc.trust.file_records import FileOwner

BATCH: Final = 64
"""Files of one request. With more, the server and the client take turns instead of working at the
same time; with fewer, the fixed cost of a request shows."""
AHEAD: Final = 4
"""Requests sent before the first is answered; each reply has up to 1 MiB."""
_PREFETCH_SIZE: Final = 8 * PIECE
"""Bytes of larger files that may be prefetched, though always one file."""
Target = str | os.PathLike[str] | BinaryIO


class Got(Value):
    """A version that was fetched, whole and verified.

    `size` is in bytes, `mtime` in unix seconds (None if the source had none). `path` is where the
    file is, None if it was written to a stream. `status` is ``fetched``. For a file of a folder it
    may be ``unchanged`` (the local file is the same) or ``skipped`` (it was not to be replaced).
    """

    name: str
    file_id: str
    version: int
    size: int
    mtime: int | None
    path: Path | None
    status: str = FETCHED


class DownloadItem(Value):
    """One of many files to fetch: version `version` of `name`, written to `destination`, which is
    at `path`."""

    name: str
    file_id: str
    version: int
    path: Path
    destination: OpenDestination


_Batch = list[tuple[DownloadItem, VersionRequest]]


class _Unrequested:
    """Items of which no request is on its way."""

    def __init__(self, items: Iterable[DownloadItem]) -> None:
        self._items = iter(items)
        self._returned: deque[DownloadItem] = deque()

    def take(self, most: int) -> list[DownloadItem]:
        """Remove and return the next items, none at the end."""
        first = [self._returned.popleft() for _ in range(min(most, len(self._returned)))]
        return first + list(islice(self._items, most - len(first)))

    def put_back(self, items: list[DownloadItem]) -> None:
        """Make these the next items."""
        self._returned.extendleft(reversed(items))


class _Verified(Value):
    """An item whose reply was verified, with the version or the error."""

    item: DownloadItem
    outcome: RemoteVersion | SfscError

    @property
    def prefetched(self) -> int:
        return self.outcome.prefetched if isinstance(self.outcome, RemoteVersion) else 0

    def abandon(self) -> None:
        if isinstance(self.outcome, RemoteVersion):
            self.outcome.abandon()


class _Prefetch:
    """Queue of verified items whose pieces were requested; `verified` are those behind them, of
    which nothing was requested yet. `size` is the approximate number of bytes requested."""

    def __init__(self) -> None:
        self.size = 0
        self.verified: deque[_Verified] = deque()
        self._ready: deque[_Verified] = deque()

    def __len__(self) -> int:
        return len(self._ready) + len(self.verified)

    @property
    def has_next(self) -> bool:
        return bool(self._ready)

    def add(self, one: _Verified) -> None:
        self.size += one.prefetched
        self._ready.append(one)

    def take(self) -> _Verified:
        """Return the oldest item, of which nothing was used yet."""
        one = self._ready.popleft()
        self.size -= one.prefetched
        return one

    def abandon(self) -> None:
        for one in self._ready:
            one.abandon()


class Downloads:
    """Downloads files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen = SeenCheckpoints(session)

    def get(
        self,
        name: str,
        target: Target | None = None,
        *,
        version: int | None = None,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Got:
        """Fetch `name`, its current version or an older one, into a file, folder or stream.

        Without a target, write to the last part of the name in the current folder. If this raises,
        no file was made or changed. Raises `ConflictError` if there is a file and `overwrite` is
        false. With `newer`, a file that was not changed before the stored one stays as it is.
        """
        check_name(name)
        remote = RemoteVersion.open_own(self._session, name, requested_version(version))
        return self.fetch(remote, target, overwrite=overwrite, newer=newer)

    def fetch(
        self,
        remote: RemoteVersion,
        target: Target | None = None,
        *,
        overwrite: bool = True,
        newer: bool = False,
    ) -> Got:
        """Like `get`, for an opened version of our own file or of one shared with us."""
        remote.check_is_file()
        name = remote.metadata.name
        self._seen.add(remote.file)
        self._seen.verify()
        self._session.progress.expect(remote.metadata.size)
        path: Path | None = None
        if isinstance(target, (str, os.PathLike, type(None))):
            path, metadata = _path(target, name), remote.metadata
            if remote.owner is not None:
                metadata = limit_to_umask(metadata)
                if target is None or path != Path(target):  # the sharer's name is used
                    check_foreign_name(path.name)
            there = None if overwrite and not newer else status_of(path)
            if there is not None and not overwrite:
                raise ConflictError(f"{path} exists", "choose another place with -o PATH")
            if there is not None and there.st_mtime_ns >= (metadata.mtime or 0):
                remote.abandon()
                return changed(_got(remote, path), status=SKIPPED)
            if _names_folder(target):
                make_folders(path.parent)
            with replacing_file(path, metadata) as file:
                self._write(remote, file)
        else:
            self._write(remote, target)
        return _got(remote, path)

    def get_many(
        self, items: Iterable[DownloadItem], skip: Skip, owner: FileOwner | None = None
    ) -> Iterator[Got]:
        """Fetch many files, with several requests in flight; yields results, those of files that
        fit one reply in order. `owner` shares the files with us, None for our own.

        A file that fails is reported to `skip`, and the others are fetched, unless the connection
        failed. What the signers had seen of the log is verified last, or whenever that is a lot.
        """
        window = Window[_Batch](self._session, AHEAD)
        queue, left = _Prefetch(), _Unrequested(items)
        try:
            while True:
                if not window.full and (batch := self._requests(left, owner)):
                    targets = tuple([wanted.target for _, wanted in batch])
                    window.send(batch, Open(batch[0][1].user, targets))
                    if self._seen.is_full:
                        self._seen.verify()
                elif window or queue:
                    yield from self._store(self._next(window, queue, left), skip)
                else:
                    break
        finally:
            window.abandon()
            queue.abandon()
        self._session.link_receipts()
        self._seen.verify()

    def _requests(self, left: _Unrequested, owner: FileOwner | None) -> _Batch:
        """Return the next files to request. What is known of them is read together, just before
        they are requested."""
        session, some = self._session, left.take(BATCH)
        known = known_revisions(session, owner, [item.file_id for item in some])
        return [
            (
                item,
                VersionRequest.build(
                    session, item.file_id, item.version, name=item.name, owner=owner, known=known
                ),
            )
            for item in some
        ]

    def _next(self, window: Window[_Batch], queue: _Prefetch, left: _Unrequested) -> _Verified:
        """Return the oldest item. Later items that have a reply are verified too, and the rest of
        their ciphertext is requested, so that it arrives while earlier files are written."""
        while not queue.has_next or (
            queue.size < _PREFETCH_SIZE and (queue.verified or window.has_reply)
        ):
            if not queue.verified:
                queue.verified.extend(self._verify_replies(window, left))
            queue.add(self._prefetch(queue.verified.popleft()))
        return queue.take()

    def _verify_replies(self, window: Window[_Batch], left: _Unrequested) -> Iterator[_Verified]:
        """Verify all replies that have arrived, at least one. What had no room in a reply is
        requested again."""
        items: list[DownloadItem] = []
        versions: list[RemoteVersion] = []
        while not versions or window.has_reply:
            batch, reply = window.take()
            results = open_results(self._session, batch[0][1].user, reply, len(batch))
            for (item, wanted), result in zip(batch, results, strict=False):
                items.append(item)
                versions.append(RemoteVersion(self._session, wanted, result))
            left.put_back([item for item, _ in batch[len(results) :]])
        return map(_Verified, items, RemoteVersion.verify_batch(self._session, versions))

    def _prefetch(self, one: _Verified) -> _Verified:
        remote = one.outcome
        if isinstance(remote, SfscError):
            return one
        try:
            self._seen.add(remote.file)
            if not remote.is_whole:
                remote.prefetch()
        except SfscError as exc:
            return _Verified(one.item, exc)
        return one

    def _store(self, one: _Verified, skip: Skip) -> Iterator[Got]:
        item, remote = one.item, one.outcome
        try:
            if isinstance(remote, SfscError):
                raise remote
            with item.destination(remote.metadata) as file:
                self._write(remote, file)
        except NetworkError:
            raise
        except SfscError as exc:
            skip(item.name, exc)
            return
        finally:
            one.abandon()
        yield _got(remote, item.path)

    def _write(self, remote: RemoteVersion, file: BinaryIO) -> None:
        """Write the whole plaintext. Errors of `file` are the caller's and are not translated."""
        allocate = file.allocate if isinstance(file, LargeFileWriter) else None
        for segment in remote.segments(allocate):
            size = len(segment)
            while segment:
                # A raw stream may write less than it is given.
                segment = segment[file.write(segment) :]
            self._session.progress.advance(size)
        file.flush()


def _got(remote: RemoteVersion, path: Path | None) -> Got:
    metadata, file = remote.metadata, remote.file
    mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
    return Got(metadata.name, file.file_id, file.version, metadata.size, mtime, path)


def _path(target: str | os.PathLike[str] | None, name: str) -> Path:
    last = PurePosixPath(name).name
    path = Path(last if target is None else target)
    return path / last if _names_folder(target) or is_folder(path) else path


def _names_folder(target: str | os.PathLike[str] | None) -> bool:
    """Return whether the path ends with a slash, as only that of a folder does."""
    return isinstance(target, str) and target.endswith(("/", os.sep))
