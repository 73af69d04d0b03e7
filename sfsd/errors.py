"""Everything that can go wrong in `sfsd`, one tree::

SfsdError                     has `.cause`, `.hint` and the command's `.exit_code`
├── ConfigError               sfsd.toml, a flag or a key file is not usable
├── RootBusyError             another process holds the root's lock
├── ListenError               the address to serve on cannot be had
├── UnreachableError          the running daemon cannot be talked to
├── RequestRefusedError       an operator's request was not done; has `.code`
├── Refused                   a request is not done, and its asker is told; has `.code`, `.head`
├── JournalError              the log file
│   ├── JournalUnreadableError  the disk does not give what the log has
│   ├── JournalRangeError     a seq or size that the log does not have
│   ├── EntryTooLongError     a draft whose line would pass 64 KiB; has `.index`
│   ├── JournalRefusedError   a group was taken back; the log is whole and goes on
│   │   └── JournalFullError  … because the disk is full
│   ├── JournalFailedError    sticky: after this nothing more is appended
│   └── JournalDamagedError   the log is not what was written; has `.seq`
├── StoreError                bytes by path
│   ├── PathError             not a path of the store: a mistake of ours
│   ├── Absent                nothing is stored under a path; has `.path`
│   ├── DamagedError          stored bytes are not what the log says; has `.path`
│   ├── FoundDamageError      `fsck` has found differences, and some are left
│   ├── StagingClosedError    an open file, mostly an upload, that was closed meanwhile
│   ├── IncompleteError       an upload that lacks pieces
│   ├── PackError             a pack in staging/ that does not parse
│   ├── RecoveryError         the store cannot be made what the log says; has `.path`
│   ├── StoreRefusedError     a call failed and was undone; the store goes on
│   │   └── StoreFullError    … because the disk is full
│   └── StoreFailedError      sticky: after this nothing more is acknowledged
└── CommitError               a change that was not made
    ├── Stale                 what it was decided on has changed; has `.paths`
    └── ShuttingDown          the daemon stops; nothing was done
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from protocol.codec.errors import LogError
    from protocol.wire.messages import FileView

_EXIT_CODES = {
    "not-found": 3,
    "not-allowed": 4,
    "refused": 4,
    "denied": 4,
    "damaged": 5,
    "conflict": 6,
    "unavailable": 7,
    "busy": 7,
    "shutting-down": 7,
}


class SfsdError(Exception):
    """Root of this package's errors: what happened, and what to do about it (or None)."""

    exit_code: int = 1

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint


class ConfigError(SfsdError):
    """A setting or key file is missing, malformed or contradicts another."""


class RootBusyError(SfsdError):
    """Another process holds the lock of this root."""


class ListenError(SfsdError):
    """The daemon cannot listen where it was told to."""


class UnreachableError(SfsdError):
    """A daemon holds the root's lock, but it cannot be reached or does not speak as it should."""

    exit_code = 7


class RequestRefusedError(SfsdError):
    """The operation answered with an error. `code` is one of protocol's ERROR_CODES."""

    def __init__(self, cause: str, hint: str | None = None, *, code: str) -> None:
        super().__init__(cause, hint)
        self.code = code
        self.exit_code = _EXIT_CODES.get(code, 1)


class Refused(SfsdError):
    """A request that an operation does not do. Nothing changed, and the asker is told `code`.

    `code` is one of protocol's ERROR_CODES, `head` a conflict's present state of the file.
    """

    def __init__(self, code: str, cause: str, *, head: FileView | None = None) -> None:
        super().__init__(cause)
        self.code = code
        self.head = head


def require(holds: bool, rule: str) -> None:
    """Raise `Refused` unless `holds`: a request that breaks `rule`, which no honest client does."""
    if not holds:
        raise Refused("bad-request", rule)


class JournalError(SfsdError):
    """Something about the log file."""


class JournalUnreadableError(JournalError):
    """The log, or the cache of its tree, cannot be read from the disk."""


class JournalRangeError(JournalError):
    """A seq or size was asked for that the log does not have."""


class EntryTooLongError(JournalError):
    """The line of draft number `index` of a group would pass 64 KiB; nothing was written."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class JournalRefusedError(JournalError):
    """A group could not be written and was taken back: the log is as before and goes on."""


class JournalFullError(JournalRefusedError):
    """The disk is full. The reserve is released: reads, delete and purge may be tried again."""


class JournalFailedError(JournalError):
    """What reached the disk is unknown, so nothing more may be appended until a restart."""


class JournalDamagedError(JournalError):
    """The log is not what was once written. `seq` is the first entry that is wrong."""

    exit_code = 5

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(
            f"entry {seq}: {message}", "keep logs/ as it is, and compare it with a backup"
        )
        self.seq = seq

    @classmethod
    def of(cls, exc: LogError) -> Self:
        """The same as an error of this package."""
        return cls(exc.problem, seq=exc.seq)


class StoreError(SfsdError):
    """Something about the stored bytes."""


class DamagedError(StoreError):
    """The bytes under `path` (relative to the store) are not what the log says."""

    exit_code = 5

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class FoundDamageError(StoreError):
    """What `fsck` has named, and could not or was not asked to repair."""

    exit_code = 5


class PathError(StoreError):
    """Not a path that the store has; whoever built it erred."""


class Absent(StoreError):
    """Nothing is stored under `path` (relative to the store)."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: not there")
        self.path = path


class StagingClosedError(StoreError):
    """An open file was closed meanwhile: an upload's, which was committed or dropped and takes no
    more bytes, or a download's, for which others were opened."""


class IncompleteError(StoreError):
    """A piece of the upload is missing, or short and not the last."""


class PackError(StoreError):
    """A pack that is torn, changed, of another version or past a cap."""


class RecoveryError(StoreError):
    """The store cannot be made what the log says; `path` names the file that stands in the way."""

    exit_code = 5

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(f"{path}: {message}", hint)
        self.path = path


class StoreRefusedError(StoreError):
    """The system refused a call before the commit point; what was begun has been undone."""


class StoreFullError(StoreRefusedError):
    """The disk is full."""


class StoreFailedError(StoreError):
    """What reached the disk is unknown, so nothing more is acknowledged until a restart."""


class CommitError(SfsdError):
    """A change that was not made; the log and the store are as if it had not been asked for."""


class Stale(CommitError):
    """The change was decided on a state that is gone: decide again.

    `paths` (relative to the store) are those that no longer are as expected.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__(f"changed since it was read: {', '.join(paths)}")
        self.paths = paths


class ShuttingDown(CommitError):
    """The daemon is stopping and takes no more changes."""
