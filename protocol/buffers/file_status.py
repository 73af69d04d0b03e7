"""Tells whether a file exists, and fails if the system does not know.

`os.path.exists` and its relatives return False for every error, and so do those of `pathlib` from
Python 3.14 on: a disk that fails, a folder without permission or a lack of memory would look like a
missing file, and another one would be written in its place.
"""

from __future__ import annotations

import os
import stat


def file_status(path: str | os.PathLike[str], *, follow: bool = True) -> os.stat_result | None:
    """Return the status of a file or folder, None if there is none (ENOENT, ENOTDIR). With `follow`
    it is that of the target of a link. Raises OSError for every other failure."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file or folder; links are followed. Raises OSError."""
    return file_status(path) is not None


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a regular file; links are followed. Raises OSError."""
    status = file_status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder; links are followed. Raises OSError."""
    status = file_status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)
