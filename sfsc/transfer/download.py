"""Fetching files: verified piece by piece, and at their place only once they are whole.

Nothing is written that was not checked against the signed record: each piece against its leaf of
`segments_root`, then by its own tag. A file takes its place when all is there (`places`); a stream
is given verified bytes only, but whoever reads it must mind an error at the end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from protocol.codec.values import Value
from protocol.wire.messages.base import PIECE
from sfsc.crypto.envelope import check_name, requested_version
from sfsc.errors import NetworkError, SfscError
from sfsc.log.seen_checkpoints import Seen
from sfsc.session.pipeline import Skip, Window
from sfsc.session.session import Session
from sfsc.transfer.blob import Answer, Blob, Wanted
from sfsc.transfer.destination import Place, arriving
from sfsc.transfer.local_io import LargeFileWriter
from sfsc.trust.file_records import FileOwner
from sfsc.trust.peer_state import PeerState

AHEAD: Final = 32
"""Files that are asked for before the first has arrived; each answer brings up to 256 KiB."""
_ASKED_AHEAD: Final = 8 * PIECE
"""Bytes of larger files that may have come before it is their turn, unless it is one file's."""
Target = str | os.PathLike[str] | BinaryIO


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
    """One of many to fetch: `name` in its `version`, to `place`, which is at `path`."""

    name: str
    file_id: str
    version: int
    path: Path
    place: Place


_Asked = tuple[Item, Wanted]


class _Opened(Value):
    """One that was answered: its `blob`, or why there is none."""

    item: Item
    blob: Blob | SfscError

    @property
    def ahead(self) -> int:
        """Bytes that were asked for before its turn."""
        return self.blob.ahead if isinstance(self.blob, Blob) else 0

    def abandon(self) -> None:
        """Nobody wants it any more."""
        if isinstance(self.blob, Blob):
            self.blob.abandon()


class _Line:
    """Those that were `judged`, and before them those that wait for their turn. `ahead` are the
    bytes, about, that were asked for before it."""

    def __init__(self) -> None:
        self.ahead = 0
        self.judged: deque[_Opened] = deque()
        self._waiting: deque[_Opened] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + len(self.judged)

    @property
    def has_next(self) -> bool:
        """Whether there is one to `take`."""
        return bool(self._waiting)

    def add(self, one: _Opened) -> None:
        """The first that was judged, asked ahead by now."""
        self.ahead += one.ahead
        self._waiting.append(one)

    def take(self) -> _Opened:
        """The oldest, nothing of which was used yet."""
        one = self._waiting.popleft()
        self.ahead -= one.ahead
        return one

    def abandon(self) -> None:
        """Nobody wants them any more."""
        for one in self._waiting:
            one.abandon()


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
        return self.fetch(Blob.open(self._session, name, requested_version(version)), target)

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

    def get_many(
        self, items: Iterable[Item], skip: Skip, owner: FileOwner | None = None
    ) -> Iterator[Got]:
        """Fetch many, small ones without waiting for each; answers in order. `owner` shares them
        with us, None for our own.

        One that fails is told to `skip`, and the work goes on, unless it is the connection. What
        their signers had seen of the log is proven last, or where there is much of it.
        """
        window = Window[_Asked](self._session, AHEAD)
        line = _Line()
        try:
            for asked in self._wanted(items, owner):
                if len(window) + len(line) >= AHEAD:
                    yield from self._placed(self._next(window, line), skip)
                window.send(asked, asked[1].request)
                if self._seen.are_many:
                    self._seen.prove()
            while window or line:
                yield from self._placed(self._next(window, line), skip)
        finally:
            window.abandon()
            line.abandon()
        self._seen.prove()

    def _wanted(self, items: Iterable[Item], owner: FileOwner | None) -> Iterator[_Asked]:
        """To be sent as they come. What is known of them is looked up for some together, just
        before the first of these is asked for."""
        session, left = self._session, iter(items)
        while some := list(islice(left, AHEAD)):
            ids = [item.file_id for item in some]
            if owner is None:
                known = session.state.known_revisions(ids)
                for item in some:
                    yield item, Wanted.of(session, item.name, item.version, known)
            else:
                known = PeerState(session.state).known_revisions(owner.user, ids)
                for item in some:
                    asked = item.file_id, item.version, item.name
                    yield item, Wanted.shared(session, owner, *asked, known)

    def _next(self, window: Window[_Asked], line: _Line) -> _Opened:
        """The oldest. Those behind it that were answered are opened too, and where they did not
        come whole, the rest is asked for: it comes while those before it are written."""
        while not line.has_next or (line.ahead < _ASKED_AHEAD and (line.judged or window.answered)):
            if not line.judged:
                line.judged.extend(self._judged(window))
            line.add(self._asked_ahead(line.judged.popleft()))
        return line.take()

    def _judged(self, window: Window[_Asked]) -> Iterator[_Opened]:
        """All that are answered, and one at least."""
        items: list[Item] = []
        answers: list[Answer] = []
        while not answers or window.answered:
            (item, wanted), reply = window.take()
            items.append(item)
            answers.append(Answer(self._session, wanted, reply))
        return map(_Opened, items, Blob.judged(answers))

    def _asked_ahead(self, one: _Opened) -> _Opened:
        blob = one.blob
        if isinstance(blob, SfscError):
            return one
        try:
            self._seen.note(blob.file)
            if not blob.is_whole:
                blob.ask_ahead()
        except SfscError as exc:
            return _Opened(one.item, exc)
        return one

    def _placed(self, one: _Opened, skip: Skip) -> Iterator[Got]:
        item, blob = one.item, one.blob
        try:
            if isinstance(blob, SfscError):
                raise blob
            with item.place(blob.metadata) as file:
                self._pour(blob, file)
        except NetworkError:
            raise
        except SfscError as exc:
            skip(item.name, exc)
            return
        finally:
            one.abandon()
        yield _got(blob, item.path)

    def _pour(self, blob: Blob, file: BinaryIO) -> None:
        """Write all of it. What `file` raises is the caller's own and goes through."""
        room = file.room if isinstance(file, LargeFileWriter) else None
        for segment in blob.segments(room):
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
    # Not `Path.is_dir`, which raises what the file system says of a name that is too long for it.
    return path / last if os.path.isdir(path) else path
