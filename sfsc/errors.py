"""Exceptions of `sfsc`, one tree. The number is the exit code of the command::

    SfscError                    1
    ├── LocalError               1  fault of this machine: missing file, full disk, no permission
    │   ├── UnreadableSource        a source that cannot be read
    │   │   └── NotRegularFile      a pipe or device that is not stored, a link that is not made
    │   ├── CommandFailed           a command whose output was to be stored; has `.code`
    │   ├── BadDestination          a name that cannot be a file here, or leads elsewhere
    │   ├── UnsupportedKind         a stored folder or link, which has no content
    │   ├── SyncRunning             another process synchronises the same folder
    │   └── AgentUnavailable        the agent does not answer, or cannot run here
    ├── UsageError               2  an invalid call
    │   └── Mistyped                an account or recovery code that was not typed as printed
    ├── NotFound                 3  no such file or user, or not visible to this account
    ├── Denied                   4  the server refuses an authenticated request
    │   ├── QuotaExceeded
    │   ├── ShareRefused            users who take no more files; has `.readers`
    │   ├── TokenRefused            the invitation is used, expired or unknown
    │   ├── StaleGeneration         the keys of this machine are older than the account's
    │   ├── Untrusted               a user whose key was not compared yet; has `.fingerprint`
    │   └── WeakRecipient           a user whose key is expired or too weak to encrypt for
    ├── IntegrityError           5  data differs from what was signed
    │   ├── Damaged                 a version of which the server has lost bytes
    │   ├── Tampered                bytes that do not decrypt or have the wrong hash
    │   ├── WrongServer             the server is not the pinned one
    │   ├── BrokenChain             identity statements that do not follow from the pinned one
    │   ├── BadRecord               a statement or record that is malformed or badly signed
    │   ├── BadReceipt              a change that the log does not prove
    │   ├── Rollback                data older than this client has already seen
    │   ├── Fork                    two histories of one log
    │   ├── PartialSet              a part of changes that belong together
    │   ├── TakenOver               the account's newest keys exclude its recovery key
    │   ├── Destroyed               a version that an attacker with stolen keys destroyed
    │   └── Distrusted              signing is blocked until the fork of this server is accepted
    ├── ConflictError            6  another change came first; has `.head`
    ├── NetworkError             7
    │   ├── Unreachable
    │   ├── TimedOut
    │   └── ProtocolFailure         the peer does not speak this protocol, or violated it
    └── KeyringError             8  key or passphrase
        ├── KeyringMissing
        ├── KeyringDamaged
        ├── WrongPassphrase
        └── UnsupportedKey          a key of an unknown kind, size or encoding

Every error carries `cause`, what happened, and `hint`, what to do about it. Neither ever holds a
secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

_Hints = dict[str, str | None]
"""Code of a server's error -> hint for it; None for the usual one of the class."""


class SfscError(Exception):
    """Root of this package's errors; `exit_code` is the exit code of the command."""

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str] = "see `sfsc --help`"
    """Hint if the raising code gives none."""
    server_codes: ClassVar[Mapping[str, str | None]] = {}
    """The server's error codes that raise this class itself, each with its hint."""

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint: str = hint or self.usual_hint


class LocalError(SfscError):
    """A fault of this machine: a missing file, a full disk, a folder without permission."""

    usual_hint = "look at the path named, then run the command again"


class UnreadableSource(LocalError):
    """A source that cannot be read."""


class NotRegularFile(UnreadableSource):
    """A pipe or a device in a folder that is stored, or a link that is not wanted: it is left
    out."""


class CommandFailed(LocalError):
    """A command whose output was to be stored has failed: nothing was stored. `code` is its exit
    code, or 128 plus the number of the signal that ended it."""

    usual_hint = "nothing was stored; run the command by itself to see why it fails"

    def __init__(self, cause: str, hint: str | None = None, *, code: int = 1) -> None:
        super().__init__(cause, hint)
        self.code = code


class BadDestination(LocalError):
    """A name that cannot be a file in the target folder: a device, or a path through a link."""

    usual_hint = "fetch it by itself: `sfsc get NAME -o PATH`"


class UnsupportedKind(LocalError):
    """A stored folder or symbolic link, which has no content to read."""

    usual_hint = "`sfsc get -r --links` makes folders and links"


class SyncRunning(LocalError):
    """Another process is synchronising the same folder."""

    usual_hint = "wait for its end"


class AgentUnavailable(LocalError):
    """The agent does not answer as it should, or cannot run on this system."""

    usual_hint = "run `sfsc agent stop`, then start it again"


class UsageError(SfscError):
    """An invalid call, independent of the server."""

    exit_code = 2


class Mistyped(UsageError):
    """A printed text that was typed otherwise. `groups` are the numbers of the wrong groups, from
    1, if they can be known."""

    def __init__(
        self, cause: str, hint: str | None = None, *, groups: tuple[int, ...] = ()
    ) -> None:
        super().__init__(cause, hint)
        self.groups = groups


class NotFound(SfscError):
    """No such file or user. Files of other users look the same."""

    exit_code = 3
    usual_hint = "`sfsc ls` shows what there is"
    server_codes: ClassVar[_Hints] = {"not-found": None}


class Denied(SfscError):
    """The server refused the request."""

    exit_code = 4
    usual_hint = "the operator can tell why"
    server_codes: ClassVar[_Hints] = {
        "not-allowed": None,
        "refused": "the operator can tell why: `sfsd user show`; if a backup of the server was put "
        "back, run `sfsc audit accept`",
        "denied": None,
        "clock": "set this machine's clock: `sfsc doctor` compares it with the server's",
        "rotation-required": "rotate the keys first",
    }


class QuotaExceeded(Denied):
    """The request would exceed the owner's quota."""

    server_codes: ClassVar[_Hints] = {
        # Deleted files are trash, which counts as stored.
        "quota": "make room by `purge --trash` or `prune`, or ask the operator: `sfsd user"
        " quota`; an upload of a client that is gone gives way after a minute"
    }


class ShareRefused(Denied):
    """Users who take no more files from us: they block us, or have as many as the server allows.
    `readers` are their names."""

    server_codes: ClassVar[_Hints] = {
        "share-refused": "if they block you, `sfsc inbox unblock YOU` ends that"
    }

    def __init__(
        self, cause: str, hint: str | None = None, *, readers: tuple[str, ...] = ()
    ) -> None:
        super().__init__(cause, hint)
        self.readers = readers


class TokenRefused(Denied):
    """The invitation is used, expired or unknown."""

    server_codes: ClassVar[_Hints] = {
        "token": "ask the operator for a new invitation: `sfsd user add`"
    }


class StaleGeneration(Denied):
    """The account has newer keys than this machine."""

    server_codes: ClassVar[_Hints] = {
        "stale-generation": "this account's keys were rotated elsewhere"
    }


class Untrusted(Denied):
    """A user whose key only the server vouches for. `fingerprint` is the hash of the first
    statement that the server shows for the user (lower hex)."""

    def __init__(self, cause: str, hint: str | None = None, *, fingerprint: str = "") -> None:
        super().__init__(cause, hint)
        self.fingerprint = fingerprint


class WeakRecipient(Denied):
    """A user whose key has expired, or is weaker than `min_wrap_alg` allows."""


class IntegrityError(SfscError):
    """Data differs from what was signed. Never retried, never ignored.

    If the server has lied (`blames_server`), what proves it is kept: `evidence` is the path of the
    file. `notes` are two signed texts that cannot both be true, the known one and the one that was
    shown, if there are two. `proofs` are other bytes that prove the lie, each with a name, beside
    the server's last answers.
    """

    exit_code = 5
    usual_hint = "the changed data was not used: report this to the server's operator"
    blames_server = True

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause, hint)
        self.evidence: str | None = None
        self.notes: tuple[bytes, bytes] | None = None
        self.proofs: tuple[tuple[str, bytes], ...] = ()


class Damaged(IntegrityError):
    """A version of which the server has lost bytes. `file_id` and `version` name it, if it is known
    which one that is (else "" and 0)."""

    blames_server = False
    usual_hint = (
        "ask the operator to restore it; otherwise `sfsc rm --purge --damaged NAME` gives it up"
    )
    server_codes: ClassVar[_Hints] = {"damaged": None}

    def __init__(
        self, cause: str, hint: str | None = None, *, file_id: str = "", version: int = 0
    ) -> None:
        super().__init__(cause, hint)
        self.file_id = file_id
        self.version = version


class Tampered(IntegrityError):
    """Bytes that do not decrypt, or do not have the signed hash."""


class _Mismatch(IntegrityError):
    """Two fingerprints that should be equal: `pinned` here, `shown` by the server (lower hex)."""

    def __init__(
        self,
        cause: str,
        hint: str | None = None,
        *,
        pinned: str | None = None,
        shown: str | None = None,
    ) -> None:
        super().__init__(cause, hint)
        self.pinned = pinned
        self.shown = shown


class WrongServer(_Mismatch):
    """The server is not the pinned one. `pinned` and `shown` are server_ids."""


class BrokenChain(_Mismatch):
    """A user's statements do not lead from the pinned one to the one shown."""


class BadRecord(IntegrityError):
    """A statement, record or wrap that is malformed or not validly signed."""


class BadReceipt(IntegrityError):
    """A receipt that does not prove that the log holds the change."""


class PartialSet(IntegrityError):
    """The server has made, or shows, only a part of changes that are made together or not at
    all."""


class _LogConflict(IntegrityError):
    """The server's log contradicts what was seen."""

    def __init__(
        self, cause: str, hint: str | None = None, *, notes: tuple[bytes, bytes] | None = None
    ) -> None:
        super().__init__(cause, hint)
        self.notes = notes


class Rollback(_LogConflict):
    """The server shows something older than this client has seen."""


class Fork(_LogConflict):
    """Two checkpoints of one log that cannot both be true."""


class TakenOver(IntegrityError):
    """An attacker has continued the account's chain and left its recovery key out of its bundle.
    `first` is the number of the first statement to undo, 0 if it is unknown."""

    usual_hint = "take the account back: `sfsc init --recovery --take-back`"
    blames_server = False

    def __init__(self, cause: str, hint: str | None = None, *, first: int = 0) -> None:
        super().__init__(cause, hint)
        self.first = first


class Destroyed(IntegrityError):
    """A version that an attacker with stolen keys removed, replaced, or wrapped for another key."""

    usual_hint = "see `sfsc history`; restore the contents from another copy, if there is one"
    blames_server = False


class Distrusted(IntegrityError):
    """The server has shown two histories of its log. Nothing is signed until the user
    accepts it."""

    blames_server = False


class ConflictError(SfscError):
    """A change based on a state that is no longer the newest. `head` is the bytes of the newest
    signed record, if the server sent it."""

    exit_code = 6
    usual_hint = "check the current state with `sfsc ls`, then run the command again"
    server_codes: ClassVar[_Hints] = {
        "conflict": None,
        "changed": "run the command again",
        "stale-recipient": "run the command again",
    }

    def __init__(self, cause: str, hint: str | None = None, *, head: bytes | None = None) -> None:
        super().__init__(cause, hint)
        self.head = head


class NetworkError(SfscError):
    """The connection failed, not the request."""

    exit_code = 7
    usual_hint = "is the server running and reachable? run the command again"


class Unreachable(NetworkError):
    """No connection could be made, or it was lost."""

    server_codes: ClassVar[_Hints] = {
        "upload-lost": "run the command again",
        "busy": "run the command again in a moment",
        "unavailable": "the operator must look at the server: `sfsd status`",
        "shutting-down": "run the command again in a moment",
    }


class TimedOut(NetworkError):
    """The server did not answer in time."""


class ProtocolFailure(NetworkError):
    """The peer does not speak this protocol, or violated it."""


class KeyringError(SfscError):
    """A key or passphrase is missing, wrong or unusable."""

    exit_code = 8
    usual_hint = "see `sfsc whoami`, or restore the keyring from a backup"


class KeyringMissing(KeyringError):
    """No keyring exists at the expected path."""


class KeyringDamaged(KeyringError):
    """A file that is not a keyring, or whose bytes have changed."""


class WrongPassphrase(KeyringError):
    """The passphrase does not unlock the key."""


class UnsupportedKey(KeyringError):
    """A key of an unknown kind, size or encoding."""
