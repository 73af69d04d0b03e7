"""Fetching files: verified piece by piece, and at their place only once they are whole.

Nothing is written that was not checked against the signed record: each piece against its leaf of
`segments_root`, then by its own tag. A file takes its place when all is there (`places`); a stream
is given verified bytes only, but whoever reads it must mind an error at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from protocol.messages import Reply
from protocol.values import Value
from sfsc.blobs import Blob, Wanted
from sfsc.envelope import Metadata, check_name
from sfsc.errors import NetworkError, SfscError, UsageError
from sfsc.identity import Owner
from sfsc.places import arriving
from sfsc.seen import Seen
from sfsc.session import Session
from sfsc.window import Skip, Window

AHEAD: Final = 32
"""Files that are asked for before the first has arrived; each answer brings up to 256 KiB."""
Target = str | os.PathLike[str] | BinaryIO
Place = Callable[[Metadata], AbstractContextManager[BinaryIO]]
"""Where a file goes, once its metadata is known."""


class Got(Value):
    """A version that was fetched, whole and verified.

    `size` in bytes, `mtime` in unix seconds (None where the source had none); `path` is where it
    is, None where it went into a stream.
    """

    name: str
    file_id: str
    version: int
    size: int
    mtime: int | None
    path: Path | None


class Item(Value):
    """One of many to fetch: `name` in its `version`, to `place`, which is at `path`. `owner` shares
    it with us, None for our own."""

    name: str
    file_id: str
    version: int
    path: Path
    place: Place
    owner: Owner | None = None

    def wanted(self, session: Session) -> Wanted:
        """To be built when it is asked for, not before."""
        if self.owner is None:
            return Wanted.of(session, self.name, self.version)
        return Wanted.shared(session, self.owner, self.file_id, self.version, self.name)


class Downloads:
    """Gets files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen = Seen(session)

    def get(self, name: str, target: Target | None = None, *, version: int | None = None) -> Got:
        """Fetch `name`, its current version or an older one, into a file, folder or stream.

        Without a target, into its last part in the present folder. Where this raises, no file was
        made or changed.
        """
        check_name(name)
        if version is not None and version < 1:
            raise UsageError(f"there is no version {version}", "versions count from 1")
        return self.fetch(Blob.open(self._session, name, version or 0), target)

    def fetch(self, blob: Blob, target: Target | None = None) -> Got:
        """As `get`, what was opened already: a file of ours, or one that is shared with us."""
        name = blob.metadata.name
        self._seen.note(blob.file)
        self._seen.prove()
        self._session.progress.expect(blob.metadata.size)
        path: Path | None = None
        if isinstance(target, (str, os.PathLike, type(None))):
            path = _path(target, name)
            with arriving(path, blob.metadata) as file:
                self._pour(blob, file)
        else:
            self._pour(blob, target)
        return _got(blob, path)

    def get_many(self, items: Iterable[Item], skip: Skip) -> Iterator[Got]:
        """Fetch many, small ones without waiting for each; answers in order.

        One that fails is told to `skip`, and the work goes on, unless it is the connection. What
        their signers had seen of the log is proven last, all together.
        """
        window = Window[tuple[Item, Wanted]](self._session, AHEAD)
        try:
            for item in items:
                if window.full:
                    yield from self._arrived(*window.take(), skip)
                wanted = item.wanted(self._session)
                window.send((item, wanted), wanted.request)
            while window:
                yield from self._arrived(*window.take(), skip)
        finally:
            window.abandon()
        self._seen.prove()

    def _arrived(self, asked: tuple[Item, Wanted], reply: Reply, skip: Skip) -> Iterator[Got]:
        item, wanted = asked
        try:
            blob = Blob(self._session, wanted, reply)
            self._seen.note(blob.file)
            with item.place(blob.metadata) as file:
                self._pour(blob, file)
        except NetworkError:
            raise
        except SfscError as exc:
            skip(item.name, exc)
            return
        yield _got(blob, item.path)

    def _pour(self, blob: Blob, file: BinaryIO) -> None:
        """Write all of it. What `file` raises is the caller's own and goes through."""
        for segment in blob.segments():
            size = len(segment)
            while segment:
                # A raw stream may take less than it is given.
                segment = segment[file.write(segment) :]
            self._session.progress.advance(size)
        file.flush()


def _got(blob: Blob, path: Path | None) -> Got:
    metadata, file = blob.metadata, blob.file
    mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
    return Got(metadata.name, file.file_id, file.version, metadata.size, mtime, path)


def _path(target: str | os.PathLike[str] | None, name: str) -> Path:
    last = PurePosixPath(name).name
    path = Path(last if target is None else target)
    return path / last if path.is_dir() else path
