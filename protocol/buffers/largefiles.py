"""Linux calls for large files that Python lacks: direct I/O and block preallocation.

Taking a new page of the page cache costs more than encrypting or hashing its bytes, and a file of
gigabytes evicts what others have cached. If the system or the file system lacks a call, callers
use the page cache.
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
"""Smallest file size in bytes that bypasses the page cache."""
_NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT})
"""Errors that mean: the file system lacks O_DIRECT, or /proc is not mounted."""
_KEEP_SIZE: Final = 1
"""`FALLOC_FL_KEEP_SIZE` of fallocate(2)."""


def open_direct(descriptor: int, *, writing: bool) -> int | None:
    """Open a second descriptor of an open file with O_DIRECT; None if that is not supported.

    Memory, offsets and lengths used with it must be whole pages. Raises OSError.
    """
    if sys.platform == "linux":
        try:
            # Not by its path: that may name another file by now.
            same = f"/proc/self/fd/{descriptor}"
            access = os.O_RDWR if writing else os.O_RDONLY
            return os.open(same, os.O_DIRECT | os.O_CLOEXEC | access)
        except OSError as exc:
            if exc.errno not in _NOT_DIRECT:
                raise
    return None


def reserve(descriptor: int, offset: int, length: int) -> bool:
    """Reserve disk blocks for a byte range without changing the file's size; return success.

    The file system then places them once and not for each page written. `os.posix_fallocate` is
    unsafe here: if the file system cannot reserve, it writes to every block, and so overwrites what
    other threads write at the same time.
    """
    library = _library()
    return library is not None and library.fallocate64(descriptor, _KEEP_SIZE, offset, length) == 0


@cache
def _library() -> ctypes.CDLL | None:
    """Return the C library, or None if it has no fallocate64."""
    if sys.platform == "linux":
        import ctypes  # its import takes a tenth of the run time of the smallest command

        library = ctypes.CDLL(None)
        if hasattr(library, "fallocate64"):
            kinds = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            library.fallocate64.argtypes = kinds
            return library
    return None
