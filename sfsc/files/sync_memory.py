"""Memory of `sync` for a folder of this machine and a folder of the store: what both held when they
were last equal. It is a file in the client's home, encrypted under the key of its state.

Losing it loses no data: files that differ then count as changed on both sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from protocol.buffers.file_status import exists
from protocol.codec.values import Value
from sfsc.atomicfile import make_folder, replace_file
from sfsc.crypto.envelope import FOLDER
from sfsc.errors import LocalError, SyncRunning
from sfsc.transfer.source import TreeItem
from sfsc.trust.state import ClientState

FOLDER_NAME: Final = "sync"
"""Folder in the client's home."""
_FORM: Final = 1


class Seen(Value):
    """A file, link or folder when both sides were equal: the version in the store, and kind, size
    and time of the last change (nanoseconds) here. A folder has its mode in place of a size, and no
    time, because each change of what is in it changes its time."""

    version: int
    kind: str
    size: int
    mtime: int

    @classmethod
    def from_item(cls, version: int, item: TreeItem) -> Seen:
        """Build from the version and the local item that is equal to it."""
        status = item.status
        if item.kind == FOLDER:
            return cls(version, item.kind, stat.S_IMODE(status.st_mode), 0)
        return cls(version, item.kind, status.st_size, status.st_mtime_ns)

    def matches(self, item: TreeItem) -> bool:
        """Return whether the local item has not changed since."""
        return Seen.from_item(self.version, item) == self


class SyncMemory:
    """Memory for `folder` and the names that begin with `prefix`, by path below both."""

    def __init__(self, state: ClientState, folder: Path, prefix: str) -> None:
        """`folder` is an absolute path without links."""
        self._state = state
        digest = hashlib.sha256(os.fsencode(f"{folder}\0{prefix}")).hexdigest()
        self._bound = f"sync:{digest}"
        self._path = state.home / FOLDER_NAME / digest[:32]
        self._saved = ""
        self.identity = (0, 0)
        """Device and inode of the folder when it was last synced."""
        self.seen: dict[str, Seen] = {}

    @contextlib.contextmanager
    def locked(self, *, save: bool) -> Iterator[None]:
        """Read what is remembered; with `save`, save it at the end of the block, also if that
        raises. Raises `LocalError`, and `SyncRunning` if another process holds the lock."""
        from filelock import FileLock, Timeout

        try:
            make_folder(self._path.parent)
            lock = FileLock(self._path.with_suffix(".lock"), timeout=0)
            with lock:
                self._read()
                try:
                    yield
                finally:
                    if save:
                        self.save()
        except Timeout as exc:
            raise SyncRunning("another command is synchronising this folder") from exc

    @property
    def is_known(self) -> bool:
        """Whether both sides were ever synchronised."""
        return bool(self._saved)

    def save(self) -> None:
        """Save what has changed. Raises `LocalError`."""
        self._state.check_current()
        rows = {
            path: [one.version, one.kind, one.size, one.mtime] for path, one in self.seen.items()
        }
        text = json.dumps([_FORM, self.identity, rows], separators=(",", ":"))
        if text == self._saved:
            return
        try:
            replace_file(self._path, self._state.seal(text.encode(), self._bound))
        except OSError as exc:
            raise LocalError(f"cannot write {self._path}: {exc.strerror}") from exc
        self._saved = text

    def _read(self) -> None:
        try:
            if not exists(self._path):
                return
            sealed = self._path.read_bytes()
        except OSError as exc:
            raise LocalError(f"cannot read {self._path}: {exc.strerror}") from exc
        try:
            text = self._state.unseal(sealed, self._bound).decode()
        except LocalError:
            return  # sealed under the key that this machine had before
        form, identity, rows = json.loads(text)
        if form == _FORM:
            self._saved = text
            self.identity = (identity[0], identity[1])
            self.seen = {path: Seen(*row) for path, row in rows.items()}
