"""What large files need of Linux and Python does not have: a handle past the page cache, and blocks
that are reserved ahead.

A page of the cache that is newly taken costs more than to encrypt or to hash what is put there, and
a file of gigabytes drives out what others have in it. Elsewhere, and where the file system cannot,
there is neither, and the cache serves.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes

LARGE: Final = 16 * 1024 * 1024
"""Bytes of a file from which on it goes past the cache."""
_NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT})
"""The file system cannot, or there is no /proc."""
_KEEP_SIZE: Final = 1
"""`FALLOC_FL_KEEP_SIZE` of fallocate(2)."""


def open_direct(descriptor: int, *, writing: bool) -> int | None:
    """A second handle of an open file, to read or to write past the page cache; None where that
    cannot be had. Memory, offsets and lengths must then be whole pages. Raises OSError."""
    if sys.platform == "linux":
        try:
            # Not by its path, under which another file may stand by now.
            same = f"/proc/self/fd/{descriptor}"
            access = os.O_RDWR if writing else os.O_RDONLY
            return os.open(same, os.O_DIRECT | os.O_CLOEXEC | access)
        except OSError as exc:
            if exc.errno not in _NOT_DIRECT:
                raise
    return None


def reserve(descriptor: int, offset: int, length: int) -> bool:
    """Blocks for these bytes of a file, which becomes no longer; whether that could be done. So it
    is decided at once where they go, not for every page as it is written.

    Not `os.posix_fallocate`, which writes to every block where the file system cannot reserve:
    between the writes of other threads, and over them.
    """
    library = _library()
    return library is not None and library.fallocate64(descriptor, _KEEP_SIZE, offset, length) == 0


@cache
def _library() -> ctypes.CDLL | None:
    """The C library, None where it has no such call."""
    if sys.platform == "linux":
        import ctypes  # takes a tenth of what the smallest command does

        library = ctypes.CDLL(None)
        if hasattr(library, "fallocate64"):
            kinds = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            library.fallocate64.argtypes = kinds
            return library
    return None
