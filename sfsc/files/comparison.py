"""Tells whether a file, folder or link of this machine is what is stored."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from typing import Final

from sfsc.crypto.envelope import FILE, FOLDER, LINK
from sfsc.transfer.source import TreeItem
from sfsc.trust.file_records import Entry

_SECOND: Final = 1_000_000_000
_CLOCK: Final = 1
"""Seconds. A file that was stored this soon after it was changed may have been changed again
without a new time: the clock of a file system moves in steps."""
_NO_LINK: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def is_same(entry: Entry, item: TreeItem, *, checksum: bool) -> bool:
    """Return whether `item` is what `entry` describes.

    Folders are the same if their modes and times are, links if their targets are. Of a file, size
    and time of the last change decide; its content is read only if it may have been changed while
    its time stood still. With `checksum` its SHA-256 decides, and a file of which none is stored
    counts as different. So does a file that cannot be read.
    """
    status = item.status
    if item.kind != entry.kind:
        return False
    if item.kind == LINK:
        return item.target == entry.target
    if item.kind == FOLDER:
        return status.st_mtime_ns == entry.mtime_ns and stat.S_IMODE(status.st_mode) == entry.mode
    if status.st_size != entry.size:
        return False
    if checksum:
        return entry.sha256 is not None and _has_hash(item.path, entry.sha256)
    if status.st_mtime_ns != entry.mtime_ns:
        return False
    is_recent = status.st_mtime_ns >= (entry.created - _CLOCK) * _SECOND
    return not is_recent or entry.sha256 is None or _has_hash(item.path, entry.sha256)


def local_item(path: str, status: os.stat_result) -> TreeItem | None:
    """Return what is at `path`, which has this status, None if it is neither a file, a folder nor a
    link. Raises OSError."""
    if stat.S_ISLNK(status.st_mode):
        return TreeItem(path, "", LINK, status, os.readlink(path))
    if stat.S_ISDIR(status.st_mode):
        return TreeItem(path, "", FOLDER, status)
    return TreeItem(path, "", FILE, status) if stat.S_ISREG(status.st_mode) else None


def _has_hash(path: str, expected: bytes) -> bool:
    try:
        with open(os.open(path, _NO_LINK), "rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return False
    return hmac.compare_digest(digest, expected)
