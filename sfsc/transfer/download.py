"""Download of files: verified piece by piece, and visible at their place only once they are whole.

Everything is verified against the signed record before it is written: each piece against its leaf
of `segments_root`, then by its own tag. A file appears at its place when it is complete (see
`destination`). A stream receives verified bytes only, but its reader must expect an error at the
end.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Generic, TypeVar

from protocol.codec.values import Value, changed
from protocol.wire.messages.base import MAX_SMALL, PIECE
from protocol.wire.messages.downloads import HEAD, MAX_OPENED, Open
from sfsc.crypto.envelope import Metadata, check_name, requested_version
from sfsc.errors import ConflictError, NetworkError, SfscError
from sfsc.local_files import is_folder, status_of
from sfsc.log.seen_checkpoints import SeenCheckpoints
from sfsc.session.pipeline import Skip, Window
from sfsc.session.session import Session
from sfsc.times import as_datetime
from sfsc.transfer.destination import (
    OpenDestination,
    check_foreign_name,
    limit_to_umask,
    make_folders,
    replacing_file,
)
from sfsc.transfer.local_io import LargeFileWriter
from sfsc.transfer.remote_version import (
    KnownRevisions,
    RemoteVersion,
    VersionRequest,
    check_is_file,
    known_revisions,
    open_results,
)
from sfsc.transfer.status import FETCHED, SKIPPED
from sfsc.trust.file_records import FileOwner

AHEAD: Final = 4
"""Requests sent before the first is answered; each reply has up to 1 MiB."""
_ANSWER: Final = 896 * 1024
"""Bytes of files that are asked for together; what the reply has no room for is asked for again."""
_VIEW: Final = 4096
"""Bytes of a reply for one file beside its content, if it has few readers."""
_PREFETCH_SIZE: Final = 8 * PIECE
"""Bytes of larger files that may be prefetched, though always one file."""
Target = str | os.PathLike[str] | BinaryIO
_Wanted = TypeVar("_Wanted", bound="DownloadItem")


class Got(Value):
    """A version that was fetched, whole and verified.

    `size` is in bytes, `mtime` in unix seconds (None if the source had none). `location` is the
    path of the file, None if it was written to a stream. `status` is ``fetched``. For a file of a
    folder it may be ``unchanged`` (the local file is the same) or ``skipped`` (it was not to be
    replaced).
    """

    name: str
    file_id: str
    version: int
    size: int
    mtime: int | None
    location: str | None
    status: str = FETCHED

    @property
    def mtime_at(self) -> datetime | None:
        """Time of the source's last change, in UTC; None if it is unknown."""
        return as_datetime(self.mtime)

    @property
    def path(self) -> Path | None:
        """Where the file is, None if it was written to a stream."""
        return None if self.location is None else Path(self.location)


class DownloadItem(Value):
    """One of many files to fetch: version `version` of `name`, written to `destination`, whose path
    is `location` (None for a stream). It has about `size` bytes."""

    name: str
    file_id: str
    version: int
    location: str | None
    destination: OpenDestination
    size: int = 0


class _Chosen(DownloadItem):
    """One of `get_each`, with its place among them."""

    index: int = 0


class _Queue(Generic[_Wanted]):
    """Items of `get_many`, in order: those of which no request is on its way, those that were
    requested, and those that were verified. Of these, the `large` ones did not come whole."""

    def __init__(self, session: Session, items: Iterable[_Wanted]) -> None:
        self.window = Window[list[tuple[_Wanted, VersionRequest]]](session, AHEAD)
        self.verified: deque[tuple[_Wanted, RemoteVersion | SfscError]] = deque()
        self.large: deque[RemoteVersion] = deque()
        self.prefetched: deque[RemoteVersion] = deque()
        self._items = iter(items)
        self._returned: deque[_Wanted] = deque()

    def take(self) -> list[_Wanted]:
        """Remove and return the next items, as many as one reply has; none at the end. A request
        names no version twice."""
        found, room = dict[tuple[str, int], _Wanted](), _ANSWER
        while len(found) < MAX_OPENED and room > 0:
            item = self._returned.popleft() if self._returned else next(self._items, None)
            if item is None:
                break
            if (item.file_id, item.version) in found:
                self._returned.appendleft(item)
                break
            room -= _VIEW + (item.size if item.size <= MAX_SMALL else HEAD)
            found[item.file_id, item.version] = item
        return list(found.values())

    def put_back(self, items: list[_Wanted]) -> None:
        """Make these the next items."""
        self._returned.extendleft(reversed(items))

    @property
    def has_room(self) -> bool:
        """Whether more of the large items may be prefetched."""
        return sum(one.prefetched for one in self.prefetched) < _PREFETCH_SIZE

    def end(self, remote: RemoteVersion | SfscError) -> None:
        """Forget an item that was the first, and discard what was requested of it."""
        for some in (self.prefetched, self.large):
            if some and some[0] is remote:
                some.popleft().abandon()

    def abandon(self) -> None:
        """Discard what was requested."""
        self.window.abandon()
        for remote in self.prefetched:
            remote.abandon()


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
        metadata = remote.metadata
        check_is_file(metadata)
        self._seen.add(remote.file)
        self._seen.verify()
        self._session.progress.expect(metadata.size)
        path, destination = _place(target, metadata.name)
        if path is not None:
            if remote.owner is not None:
                metadata = limit_to_umask(metadata)
                chosen = isinstance(target, (str, os.PathLike)) and path == Path(target)
                if not chosen:  # the sharer's name is used
                    check_foreign_name(path.name)
            there = None if overwrite and not newer else status_of(path)
            if there is not None and not overwrite:
                raise ConflictError(f"{path} exists", "choose another place with -o PATH")
            if there is not None and there.st_mtime_ns >= (metadata.mtime or 0):
                remote.abandon()
                return changed(_got(remote, str(path)), status=SKIPPED)
        with destination(metadata) as file:
            self._write(remote, file)
        return _got(remote, None if path is None else str(path))

    def get_many(
        self, items: Iterable[DownloadItem], skip: Skip, owner: FileOwner | None = None
    ) -> Iterator[Got]:
        """Fetch many files, with several requests in flight; yields results, those of files that
        fit one reply in order. `owner` shares the files with us, None for our own.

        A file that fails is reported to `skip`, and the others are fetched, unless the connection
        failed. What the signers had seen of the log is verified last, or whenever that is a lot.
        """
        for item, outcome in self._outcomes(items, owner):
            if isinstance(outcome, SfscError):
                skip(item.name, outcome)
            else:
                yield outcome

    def get_each(
        self, items: Sequence[tuple[str, Target | None]]
    ) -> Iterator[tuple[int, Got | SfscError]]:
        """Fetch (name, target) pairs as `get` does, with several requests in flight. Yield the
        index of each with its result or its error, as they are done."""
        chosen: list[_Chosen] = []
        for index, (name, target) in enumerate(items):
            try:
                check_name(name)
            except SfscError as exc:
                yield index, exc
                continue
            file_id = self._session.account.file_id(name)
            path, opened = _place(target, name)
            place = None if path is None else str(path), _only_files(opened)
            chosen.append(_Chosen(name, file_id, 0, *place, index=index))
        for item, outcome in self._outcomes(chosen, None):
            yield item.index, outcome

    def _outcomes(
        self, items: Iterable[_Wanted], owner: FileOwner | None
    ) -> Iterator[tuple[_Wanted, Got | SfscError]]:
        queue = _Queue(self._session, items)
        try:
            while True:
                while not queue.window.full and (batch := self._requests(queue, owner)):
                    targets = tuple([wanted.target for _, wanted in batch])
                    queue.window.send(batch, Open(batch[0][1].user, targets))
                    if self._seen.is_full:
                        self._seen.verify()
                if not queue.verified and not queue.window:
                    break
                self._prepare(queue)
                item, remote = queue.verified.popleft()
                try:
                    outcome: Got | SfscError = self._store(item, remote)
                except NetworkError:
                    raise
                except SfscError as exc:
                    outcome = exc
                finally:
                    queue.end(remote)
                self._session.progress.advance_items()
                yield item, outcome
        finally:
            queue.abandon()
        self._session.link_receipts()
        self._seen.verify()

    def _requests(
        self, queue: _Queue[_Wanted], owner: FileOwner | None
    ) -> list[tuple[_Wanted, VersionRequest]]:
        """Return the next files to request. What is known of other users' files is read just
        before they are requested; of our own, the log tells more."""
        session, some = self._session, queue.take()
        known: KnownRevisions = {}
        if owner is not None:
            known = known_revisions(session, owner, [item.file_id for item in some])
        user, since = (owner or session.account).user, session.followed_size
        return [
            (
                item,
                VersionRequest(
                    item.name,
                    item.file_id,
                    item.version,
                    known.get(item.file_id),
                    owner,
                    since,
                    user,
                ),
            )
            for item in some
        ]

    def _prepare(self, queue: _Queue[_Wanted]) -> None:
        """Verify the replies that have arrived if none is left, or if more can be prefetched: then
        the ciphertext of larger files arrives while earlier files are written."""
        while not queue.verified or (
            (queue.large or queue.prefetched) and queue.has_room and queue.window.has_reply
        ):
            self._verify_replies(queue)
        while queue.large and queue.has_room:
            remote = queue.large.popleft()
            with contextlib.suppress(SfscError):  # it is raised again when the file is stored
                remote.prefetch()
            queue.prefetched.append(remote)

    def _verify_replies(self, queue: _Queue[_Wanted]) -> None:
        """Verify the oldest reply. What had no room in it is requested again."""
        batch, reply = queue.window.take()
        results = open_results(self._session, batch[0][1].user, reply, len(batch))
        queue.put_back([item for item, _ in batch[len(results) :]])
        versions = [
            RemoteVersion(self._session, wanted, result)
            for (_, wanted), result in zip(batch, results, strict=False)
        ]
        verified = RemoteVersion.verify_batch(self._session, versions)
        for (item, _), outcome in zip(batch, verified, strict=False):
            if isinstance(outcome, RemoteVersion):
                self._seen.add(outcome.file)
                if not outcome.is_whole:
                    queue.large.append(outcome)
            queue.verified.append((item, outcome))

    def _store(self, item: DownloadItem, remote: RemoteVersion | SfscError) -> Got:
        """Write a verified version to its destination, or raise its error."""
        if isinstance(remote, SfscError):
            raise remote
        with item.destination(remote.metadata) as file:
            self._write(remote, file)
        return _got(remote, item.location)

    def _write(self, remote: RemoteVersion, file: BinaryIO) -> None:
        """Write the whole plaintext. Errors of `file` are the caller's and are not translated."""
        if remote.metadata.size > PIECE:
            self._session.progress.begin_file(remote.metadata.name, remote.metadata.size)
        allocate = file.allocate if isinstance(file, LargeFileWriter) else None
        for segment in remote.segments(allocate):
            size = len(segment)
            while segment:
                # A raw stream may write less than it is given.
                segment = segment[file.write(segment) :]
            self._session.progress.advance(size)
        file.flush()


def _got(remote: RemoteVersion, location: str | None) -> Got:
    metadata, file = remote.metadata, remote.file
    mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
    return Got(metadata.name, file.file_id, file.version, metadata.size, mtime, location)


def _path(target: str | os.PathLike[str] | None, name: str) -> Path:
    last = PurePosixPath(name).name
    path = Path(last if target is None else target)
    return path / last if _names_folder(target) or is_folder(path) else path


def _place(target: Target | None, name: str) -> tuple[Path | None, OpenDestination]:
    """Return where `get` writes the file `name`: the path, None for a stream, and what opens it."""
    if target is not None and not isinstance(target, (str, os.PathLike)):
        return None, lambda _metadata: contextlib.nullcontext(target)
    path = _path(target, name)

    def opened(metadata: Metadata) -> contextlib.AbstractContextManager[BinaryIO]:
        if _names_folder(target):
            make_folders(path.parent)
        return replacing_file(path, metadata)

    return path, opened


def _only_files(opened: OpenDestination) -> OpenDestination:
    def checked(metadata: Metadata) -> contextlib.AbstractContextManager[BinaryIO]:
        check_is_file(metadata)
        return opened(metadata)

    return checked


def _names_folder(target: str | os.PathLike[str] | None) -> bool:
    """Return whether the path ends with a slash, as only that of a folder does."""
    return isinstance(target, str) and target.endswith(("/", os.sep))
