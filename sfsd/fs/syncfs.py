"""A call of Linux that Python does not have: syncfs(2).

One sync of a whole file system stands for one of each of many files. Only where a failure is
certain to be told: Linux from 5.8 on, and file systems that are known to write everything back and
to wait for the disk. On any other, in particular one in user space, which is free to do nothing,
each file is synced by itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import cache
from typing import Final

_KERNEL: Final = (5, 8)
"""From here on syncfs reports what could not be written (syncfs(2), "VERSIONS")."""
_EXT, _XFS, _BTRFS = 0xEF53, 0x58465342, 0x9123683E
_TRUSTED: Final = frozenset({_EXT, _XFS, _BTRFS})
"""`f_type` of statfs(2): ext4 and its forebears, XFS, Btrfs."""
_STATFS_SIZE: Final = 256
"""Bytes; the structure is 120 long, and `f_type` is its first word."""


def sync(folder: int) -> bool:
    """Sync the file system of the open `folder`; False where it is not trusted with that. Raises
    OSError where something could not be written since `folder` was opened."""
    library = _library()
    if library is None or _type_of(library, folder) not in _TRUSTED:
        return False
    if library.syncfs(folder) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return True


@cache
def _library() -> ctypes.CDLL | None:
    """The C library, None where it or the kernel has no syncfs that tells."""
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if version is None or (int(version[1]), int(version[2])) < _KERNEL:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return library if hasattr(library, "syncfs") and hasattr(library, "fstatfs") else None


def _type_of(library: ctypes.CDLL, folder: int) -> int | None:
    told = ctypes.create_string_buffer(_STATFS_SIZE)
    if library.fstatfs(folder, told) != 0:
        return None
    return ctypes.c_ulong.from_buffer(told).value
