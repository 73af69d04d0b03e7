"""The errors of `sfsc` as those of Python that programs for other file systems expect."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from sfsc.errors import (
    ConflictError,
    Denied,
    KeyringError,
    LocalError,
    NetworkError,
    NotFound,
    QuotaExceeded,
    SfscError,
    TimedOut,
    UnsupportedKind,
    UsageError,
)

_NUMBERS: tuple[tuple[type[SfscError], type[OSError], int], ...] = (
    (NotFound, FileNotFoundError, errno.ENOENT),
    (QuotaExceeded, OSError, errno.ENOSPC),
    (Denied, PermissionError, errno.EACCES),
    (KeyringError, PermissionError, errno.EACCES),
    (ConflictError, FileExistsError, errno.EEXIST),
    (UnsupportedKind, OSError, errno.EINVAL),
    (TimedOut, TimeoutError, errno.ETIMEDOUT),
    (NetworkError, ConnectionError, errno.ECONNABORTED),
)
"""The first row counts whose class an error belongs to."""


def as_os_error(error: SfscError, path: str | None = None) -> Exception:
    """Return what to raise instead of `error`, at `path`. It has `error` as its `__cause__`.

    Invalid calls become a `ValueError`. An `IntegrityError` stays as it is: other programs leave
    out files that they get an `OSError` for, and nobody may leave out what was tampered with."""
    if isinstance(error, UsageError):
        made: Exception = ValueError(f"{error.cause}: {error.hint}")
    elif isinstance(error, LocalError) and isinstance(cause := error.__cause__, OSError):
        name = path if cause.filename is None else cause.filename
        made = OSError(cause.errno or errno.EIO, cause.strerror or error.cause, name)
    else:
        for kind, builtin, number in _NUMBERS:
            if isinstance(error, kind):
                made = builtin(number, error.cause, path)
                break
        else:
            return error
    made.__cause__ = error
    return made


@contextlib.contextmanager
def os_errors(path: str | None = None) -> Iterator[None]:
    """Raise each `SfscError` of the block as `as_os_error` says."""
    try:
        yield
    except SfscError as exc:
        made = as_os_error(exc, path)
        if made is exc:
            raise
        raise made from exc


def not_found(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def is_folder(path: str) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def is_file(path: str) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)


def exists(path: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)


def not_empty(path: str) -> OSError:
    return OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
