"""Small private files, each written completely or not at all, and durable after a power cut.

Write order: temporary file, fsync, rename, fsync of the folder. If a folder is created, its parent
is synced too. Files are created with mode 0600, folders with 0700. On Windows they inherit the
access list of their folder, which below a user's profile admits that user, SYSTEM and
administrators only.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from protocol.buffers.file_status import exists

if sys.platform == "darwin":
    import fcntl

_RANDOM = 8
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def replace_file(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by `data`, atomically and durably. Raises `OSError`; the file
    then has either the new or the old contents."""
    temporary = path.with_name(f".{path.name}.{os.urandom(_RANDOM).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            sync_to_disk(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporary_files(path: Path) -> None:
    """Remove the temporary files of writers that were killed while they replaced `path`. The caller
    must hold the lock of `path`, so that no other writer is active."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _RANDOM}}}")
    for left in path.parent.iterdir():
        if name.fullmatch(left.name):
            left.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, durably."""
    missing = [one for one in (folder, *folder.parents) if not exists(one)]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for one in missing:
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder; there the file system journals renames
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync_folder(handle)
        finally:
            os.close(handle)


def sync_folder(handle: int) -> None:
    """Flush an open folder to the disk, if its file system supports that. Raises `OSError`.

    Network shares (CIFS) and some file systems in user space do not; they order changes of folders
    themselves, or on a server.
    """
    try:
        sync_to_disk(handle)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise


def sync_to_disk(handle: int) -> None:
    """Flush an open file to the disk. Raises `OSError`."""
    if sys.platform == "darwin":  # macOS: `fsync` leaves data in the drive's cache
        try:
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        except OSError as exc:
            if exc.errno != errno.ENOTSUP:
                raise
        else:
            return
        # A network share supports `fsync` only.
    os.fsync(handle)
