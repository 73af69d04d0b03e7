"""All exceptions that `sfsd` raises on purpose.

`JournalError` is the family of the log file, `StoreError` that of stored bytes. In both, a
``…RefusedError`` was rolled back and the daemon goes on, a ``…FailedError`` lasts until a restart,
and a ``…DamagedError`` says that bytes differ from what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeAlias, TypeVar

if TYPE_CHECKING:
    from protocol.codec.errors import LogError
    from protocol.wire.messages import FileView

_Result = TypeVar("_Result")
_NOT_WRITTEN: Final = "it could not be written; nothing was done"
_BUSY: Final = "the server has too many files open; nothing was done"
_DISK_FULL: Final = "the server's disk is full; nothing was done"
_FAILED: Final = "the server's storage has failed: until a restart, nothing changes"


class SfsdError(Exception):
    """Root of this package's errors: `cause` says what happened, `hint` what to do (or None).

    `code` is the one of protocol's ERROR_CODES that a client gets for this error, and
    `client_text` the text beside it. An error without a code never reaches a client.
    """

    exit_code: int = 1
    code: str | None = None
    client_text: ClassVar[str] = ""

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint


OperationError: TypeAlias = SfsdError | OSError
"""Errors of an operation, for one request or one change."""


def without_frames(exc: OperationError) -> OperationError:
    """Return `exc` without its stack frames and those of its causes, if a client is told of it.

    An error that is kept in a variable of one of its own frames is a reference cycle. The frames
    also hold the request, which would stay in memory until Python looks for cycles. An error
    without a code is a bug: it keeps its frames for the report.
    """
    if isinstance(exc, OSError) or exc.code is not None:
        exc.__traceback__ = exc.__cause__ = exc.__context__ = None
    return exc


def outcome_of(call: Callable[[], _Result]) -> _Result | OperationError:
    """Return the result of a call, or its error, without frames."""
    try:
        return call()
    except (SfsdError, OSError) as exc:
        return without_frames(exc)


OWNER_HINT: Final = "give the root to the daemon's account: chown -R ACCOUNT ROOT"


class ConfigError(SfsdError):
    """A setting, flag or key file is missing, malformed, unusable or contradicts another."""


class RootBusyError(SfsdError):
    """Another process holds the lock of this root."""


class UnreachableError(SfsdError):
    """A daemon holds the root's lock, but cannot be reached or violates the protocol."""

    exit_code = 7


class CommandError(SfsdError):
    """A command failed, for a reason that decides its exit code."""

    NOT_FOUND: Final = 3
    DAMAGED: Final = 5

    def __init__(self, cause: str, hint: str, *, exit_code: int) -> None:
        super().__init__(cause, hint)
        self.exit_code = exit_code


class Refused(SfsdError):
    """An operation refuses a request. Nothing changed, and the client is told `code` and `cause`.

    `head` is the present state of the file, for a conflict. `readers` are the users to whom
    nothing can be given, for `share-refused`.
    """

    code: str

    def __init__(
        self,
        code: str,
        cause: str,
        *,
        head: FileView | None = None,
        readers: tuple[str, ...] = (),
    ) -> None:
        super().__init__(cause)
        self.code = code
        self.head = head
        self.readers = readers


def require(holds: bool, rule: str) -> None:
    """Raise `Refused` unless `holds`: no honest client sends a request that breaks `rule`."""
    if not holds:
        raise Refused("bad-request", rule)


class SetRefused(SfsdError):
    """A change of an atomic set is refused, so none of the set is made. `place` is that change's
    number in the set, and `error` says why."""

    def __init__(self, place: int, error: SfsdError) -> None:
        super().__init__(f"change {place} of the set: {error.cause}")
        self.place = place
        self.error = error

    def at(self, place: int) -> SfsdError:
        """Return the error of change `place`: its own, or that another one was refused."""
        return self.error if place == self.place else set_refused()


def set_refused() -> Refused:
    """Return the error of a change that is refused for another one of its atomic set."""
    text = "another change of the atomic set was refused, so this one was not made"
    return Refused("set-refused", text)


class Stale(SfsdError):
    """The state that a change was based on is gone, so the operation must decide again.

    `paths` (relative to the store) are the files that are no longer as expected.
    """

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__(f"changed since it was read: {', '.join(paths)}")
        self.paths = paths


class ShuttingDown(SfsdError):
    """The daemon is stopping and takes no more changes."""

    code = "shutting-down"
    client_text = "the server is stopping; nothing was done"


class JournalError(SfsdError):
    """A fault of the log file."""


class JournalUnreadableError(JournalError):
    """The log, or the cache of its tree, cannot be read from the disk."""

    code = "unavailable"
    client_text = "the log cannot be read"


class JournalRangeError(JournalError):
    """A seq or size that the log does not have."""


class EntryTooLongError(JournalError):
    """The lines of the drafts `indexes` of a group would exceed 64 KiB; nothing was written."""

    code = "bad-request"
    client_text = "its log entry would be too long"

    def __init__(self, message: str, *, indexes: Sequence[int]) -> None:
        super().__init__(message)
        self.indexes = indexes


class JournalRefusedError(JournalError):
    """A group could not be written and was rolled back: the log is as before and goes on."""

    code = "unavailable"
    client_text = _NOT_WRITTEN


class JournalBusyError(JournalRefusedError):
    """The system has too little memory, or too many files open."""

    code = "busy"
    client_text = _BUSY


class JournalFullError(JournalRefusedError):
    """The disk is full. The reserve is released: reads, delete and purge may be tried again."""

    client_text = _DISK_FULL


class JournalFailedError(JournalError):
    """It is unknown what reached the disk, so nothing more is appended until a restart."""

    code = "unavailable"
    client_text = _FAILED


def cut_hint(count: int) -> str:
    """Return what the operator can do if the log is valid for its first `count` entries only."""
    put_back = "if logs/audit.jsonl was moved or truncated, put it back; or restore a backup"
    if count == 0:
        return f"{put_back}; keep logs/ as it is meanwhile"
    return f"{put_back}; if nothing has the rest, run `sfsd fsck --cut-log {count}`"


class JournalDamagedError(JournalError):
    """The log is not what was once written. `seq` is the first entry that is wrong."""

    exit_code = 5
    code = "damaged"
    client_text = "the log is not what was written"

    def __init__(self, message: str, *, seq: int) -> None:
        super().__init__(f"entry {seq}: {message}", cut_hint(seq))
        self.seq = seq

    @classmethod
    def from_log_error(cls, exc: LogError) -> Self:
        """Return the same fault as an error of this package."""
        return cls(exc.problem, seq=exc.seq)


class CheckpointDamagedError(JournalDamagedError):
    """logs/checkpoint is not a signed note of this log. A start sets it aside and signs another."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"logs/checkpoint: {problem}", seq=0)
        self.problem = problem
        self.hint = "the next start of `sfsd serve` sets it aside and signs a new one"


class StoreError(SfsdError):
    """A fault of the stored bytes."""


class DamagedError(StoreError):
    """The bytes under `path` (relative to the store) differ from what the log says."""

    exit_code = 5
    code = "damaged"
    client_text = "what is stored is not what the log says"

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class LostVersionError(DamagedError):
    """The version was marked as lost: its bytes are on no disk of the server."""

    client_text = "the server has lost this version"


class UnreadableError(DamagedError):
    """The bytes under `path` are there, or may be, and the system cannot read them now. Nothing is
    ever dropped because of this."""

    client_text = "the server's disk cannot read what is stored"

    def __init__(self, problem: str, *, path: str) -> None:
        super().__init__(problem, path=path)
        self.problem = problem


class PathError(StoreError):
    """Not a path that the store can have: a bug of the code that built it."""


class Absent(StoreError):
    """Nothing is stored under `path` (relative to the store)."""

    code = "not-found"
    client_text = "no such file"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: not there")
        self.path = path


class StagingClosedError(StoreError):
    """An open file was closed meanwhile: the file of an upload that was committed or dropped and
    takes no more bytes, or the file of a download, closed to make room for others."""

    code = "upload-lost"
    client_text = "the upload is committed or gone"


class IncompleteError(StoreError):
    """A piece of the upload is missing, or is short and not the last."""


class PackError(StoreError):
    """A pack that is torn, changed, of another version, or exceeds a cap."""


class RecoveryError(StoreError):
    """The store cannot be made what the log says; `path` is the file that prevents it."""

    exit_code = 5

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(f"{path}: {message}", hint)
        self.path = path


class StoreRefusedError(StoreError):
    """The system refused a call before the commit point; the change was rolled back."""

    code = "unavailable"
    client_text = _NOT_WRITTEN


class StoreFullError(StoreRefusedError):
    """The disk is full."""

    client_text = _DISK_FULL


class StoreBusyError(StoreRefusedError):
    """The process or the system has too many files open."""

    code = "busy"
    client_text = _BUSY


class StoreFailedError(StoreError):
    """It is unknown what reached the disk, so nothing is acknowledged until a restart."""

    code = "unavailable"
    client_text = _FAILED


class StoreWaitsError(StoreFailedError):
    """A logged change has no room on the disk, or no descriptor, to be put in place. Nothing is
    acknowledged until there is room: then the daemon opens the root again."""

    client_text = "the server's disk is full: until there is room, nothing changes"
