"""Fetching files: verified piece by piece, and at their place only once they are whole.

Nothing is written that was not checked against the signed record: each piece against its leaf of
`segments_root`, then by its own tag. A file goes into a temporary one (0600) beside its target,
which takes its place when all is there; a stream is given verified bytes only, but whoever reads it
must mind an error at the end.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from protocol import merkle
from protocol.encoding import Buffer
from protocol.messages import Error
from protocol.messages.base import PIECE
from protocol.messages.downloads import Bytes, GetLeaves, GetOpen, LeavesPage, Opened, Read
from sfsc.envelope import Metadata, check_name
from sfsc.errors import ConflictError, LocalError, NotFound, ProtocolFailure, Tampered, UsageError
from sfsc.pieces import Fetching
from sfsc.segments import HEADER_SIZE, segment_count
from sfsc.session import Session, answered

_PERMISSIONS = 0o777
"""No set-user-id, set-group-id or sticky bit comes back from a server."""

Target = str | os.PathLike[str] | BinaryIO


@dataclass(frozen=True, slots=True)
class Got:
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


class Downloads:
    """Gets files over one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, name: str, target: Target | None = None, *, version: int | None = None) -> Got:
        """Fetch `name`, its current version or an older one, into a file, folder or stream.

        Without a target, into its last part in the present folder. Where this raises, no file was
        made or changed.
        """
        check_name(name)
        if version is not None and version < 1:
            raise UsageError(f"there is no version {version}", "versions count from 1")
        blob = _Blob(self._session, name, version or 0)
        path: Path | None = None
        if isinstance(target, (str, os.PathLike, type(None))):
            path = _path(target, name)
            with _arriving(path, blob.metadata) as file:
                _pour(blob.segments(), file)
        else:
            _pour(blob.segments(), target)
        metadata = blob.metadata
        mtime = None if metadata.mtime is None else metadata.mtime // 1_000_000_000
        return Got(name, blob.file.file_id, blob.file.version, metadata.size, mtime, path)


class _Blob:
    """One version, opened and verified but for its ciphertext: `file`, `metadata`, `segments`."""

    def __init__(self, session: Session, name: str, version: int) -> None:
        """Raises `NotFound`, `IntegrityError`, and `KeyringError` where we have no key for it."""
        self._session = session
        account = session.account
        file_id = account.file_id(name)
        known = session.state.file(file_id)
        reply = session.ask(GetOpen(account.user, file_id, version))
        if isinstance(reply, Error) and reply.code == "not-found":
            which = f"{name} has no version {version}" if version else f"there is no file {name}"
            raise NotFound(which, "`sfsc ls` shows what there is")
        opened = answered(reply, Opened)
        self.file = account.opened(
            opened.view, file_id, version, None if known is None else known.known
        )
        self._key, self.metadata = account.open(self.file)
        if self.metadata.name != name:
            raise Tampered("the server gave another file than the one asked for")
        session.learn_head(self.file, known)
        self._size = self.file.content.ciphertext_size or 0
        self._handle = opened.handle
        self._first: Buffer = opened.data
        self._leaves = opened.leaves

    def segments(self) -> Iterator[memoryview]:
        """All plaintext in order, each part valid until the next; see `Fetching.segments`."""
        self._session.surviving(self._complete, self._reopen)
        decryptor = self._key.decryptor(memoryview(self._first)[:HEADER_SIZE], self._size)
        fetching = Fetching(
            self._session, decryptor, self._leaves, self._first, self._handle, self._reopen
        )
        return fetching.segments()

    def _complete(self) -> None:
        """All leaf hashes, checked against the record; and a first part with the whole header."""
        transport, expected = self._session.transport, 32 * segment_count(self._size)
        while len(self._leaves) < expected:
            asked = GetLeaves(self._handle, len(self._leaves) // 32)
            page = answered(transport.call(asked), LeavesPage).leaves
            if not page or len(page) % 32:
                raise ProtocolFailure("the server sends no hashes where some are missing")
            self._leaves += page
        hashes = [self._leaves[at : at + 32] for at in range(0, len(self._leaves), 32)]
        if len(self._leaves) != expected or merkle.root(hashes) != self.file.content.segments_root:
            raise Tampered("the hashes of the file's pieces are not what was signed")
        if len(self._first) < HEADER_SIZE:
            read = Read(self._handle, 0, min(self._size, PIECE))
            self._first = answered(transport.call(read), Bytes).data

    def _reopen(self) -> bytes:
        """A handle on the same version, over the present connection."""
        asked = GetOpen(self._session.account.user, self.file.file_id, self.file.version)
        opened = answered(self._session.transport.call(asked), Opened)
        if opened.view.content.record != self.file.content_body:
            raise ConflictError("the file was encrypted anew meanwhile", "run the command again")
        self._handle = opened.handle
        return self._handle


def _pour(segments: Iterator[memoryview], file: BinaryIO) -> None:
    """Write all of it. What `file` raises is the caller's own and goes through."""
    for segment in segments:
        while segment:
            # A raw stream may take less than it is given.
            segment = segment[file.write(segment) :]
    file.flush()


def _path(target: str | os.PathLike[str] | None, name: str) -> Path:
    last = PurePosixPath(name).name
    path = Path(last if target is None else target)
    return path / last if path.is_dir() else path


@contextlib.contextmanager
def _arriving(path: Path, metadata: Metadata) -> Iterator[BinaryIO]:
    """A file to write that takes its place at `path` when the block ends well, and else is gone.

    Raises `LocalError` for every fault of the file system, those in the block included.
    """
    try:
        if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
            with path.open("wb") as stream:
                yield stream
            return
        descriptor, temporary = tempfile.mkstemp(prefix=".sfsc-", dir=path.parent)
        try:
            with open(descriptor, "wb", buffering=0) as file:
                yield file
                os.fsync(file.fileno())
            _restore(temporary, metadata)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror}") from exc


def _restore(path: str, metadata: Metadata) -> None:
    """Time and permissions of the source, where it had any; else it stays with its owner alone."""
    if metadata.mtime is not None:
        with contextlib.suppress(OverflowError):  # a time that this system cannot hold
            os.utime(path, ns=(metadata.mtime, metadata.mtime))
    if metadata.mode is not None:
        os.chmod(path, metadata.mode & _PERMISSIONS)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder; there the rename itself is journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
