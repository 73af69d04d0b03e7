"""Everything that can go wrong in `sfsd`, one tree::

SfsdError                     has `.cause`, `.hint` and the command's `.exit_code`
├── ConfigError               sfsd.toml, a flag or a key file is not usable
├── RootBusyError             another process holds the root's lock
├── ListenError               the address to serve on cannot be had
├── UnreachableError          the running daemon cannot be talked to
├── RequestRefusedError       an operator's request was not done; has `.code`
├── JournalError              the log file
│   ├── JournalRangeError     a seq or size that the log does not have
│   ├── EntryTooLongError     a draft whose line would pass 64 KiB; has `.index`
│   ├── JournalRefusedError   a group was taken back; the log is whole and goes on
│   │   └── JournalFullError  … because the disk is full
│   ├── JournalFailedError    sticky: after this nothing more is appended
│   └── JournalDamagedError   the log is not what was written; has `.seq`
└── StoreError                bytes by path
    └── DamagedError          stored bytes are not what the log says; has `.path`
"""

from __future__ import annotations

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


class JournalError(SfsdError):
    """Something about the log file."""


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

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(f"entry {seq}: {message}")
        self.seq = seq


class StoreError(SfsdError):
    """Something about the stored bytes."""


class DamagedError(StoreError):
    """The bytes under `path` (relative to the store) are not what the log says."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
