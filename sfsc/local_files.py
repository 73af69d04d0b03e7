"""Questions about files of this machine, before anything is sent to the server.

An error of the system is a `LocalError`: it is never taken for a file that does not exist.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from protocol.buffers import file_status
from sfsc.atomicfile import make_folder
from sfsc.errors import LocalError


def exists(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file or folder; links are followed. Raises `LocalError`."""
    with _examining(path):
        return file_status.exists(path)


def status_of(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of a file or folder, None if there is none; links are followed. Raises
    `LocalError`."""
    with _examining(path):
        return file_status.file_status(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a regular file; links are followed. Raises `LocalError`."""
    with _examining(path):
        return file_status.is_file(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a folder; links are followed. Raises `LocalError`."""
    with _examining(path):
        return file_status.is_folder(path)


def is_link(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a symbolic link, broken or not. Raises `LocalError`."""
    with _examining(path):
        status = file_status.file_status(path, follow=False)
        return status is not None and stat.S_ISLNK(status.st_mode)


def mode_of(path: str | os.PathLike[str]) -> int:
    """Return `st_mode` of a file that exists; links are followed. Raises `LocalError`."""
    with _examining(path):
        return os.stat(path).st_mode


def check_new_file(path: Path, hint: str, *, parents: bool = False) -> None:
    """Check that the file `path` does not exist and can be created, for a command that writes it
    only after the server has done something. `parents` creates the folders that are missing;
    nothing else is left behind. Raises `LocalError`."""
    if exists(path):
        raise LocalError(f"the file exists: {path}", hint)
    trial = path.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        if parents:
            make_folder(path.parent)
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        trial.unlink()
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror}", hint) from exc


@contextlib.contextmanager
def _examining(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise LocalError(f"cannot examine {os.fspath(path)}: {exc.strerror}") from exc
