"""Everything that `sfsc` raises on purpose, one tree; the figure is the command's exit code::

    SfscError                    1
    ├── LocalError               1  this machine: a missing file, a full disk, no permission
    │   ├── UnreadableSource        a source that cannot be read
    │   │   └── NotRegularFile      a link, pipe or device in a folder: not what is stored
    │   └── BadDestination          a name that can be no file of this machine, or leads elsewhere
    ├── UsageError               2  the call itself makes no sense
    ├── NotFound                 3  no such file or user, or not one that may be seen
    ├── Denied                   4  the server knows who asks and says no
    │   ├── QuotaExceeded
    │   ├── TokenRefused            the invitation is used, expired or unknown
    │   ├── StaleGeneration         this machine's keys are older than the account's
    │   ├── Untrusted               another user whose key was not compared yet; has `.fingerprint`
    │   └── WeakRecipient           another user whose key is not one to encrypt for
    ├── IntegrityError           5  something is not what was signed
    │   ├── Tampered                bytes that do not open or hash to what was promised
    │   ├── WrongServer             not the server that was pinned
    │   ├── BrokenChain             identity statements that do not follow from the pinned one
    │   ├── BadRecord               a statement or record that is malformed or not validly signed
    │   ├── BadReceipt              a change that the log does not prove
    │   ├── Rollback                older than what this client has already seen
    │   ├── Fork                    two histories of one log
    │   ├── TakenOver               the account's newest keys are sealed for somebody else alone
    │   ├── Destroyed               what somebody with stolen keys has left of a file
    │   └── Distrusted              nothing is signed for this server until that was looked into
    ├── ConflictError            6  someone was faster; has `.head`
    ├── NetworkError             7
    │   ├── Unreachable
    │   ├── TimedOut
    │   └── ProtocolFailure         the peer does not speak this protocol, or broke it off
    └── KeyringError             8  key or passphrase
        ├── KeyringMissing
        ├── KeyringDamaged
        ├── WrongPassphrase
        └── UnsupportedKey          a key of an unknown kind, size or encoding

Every error carries `cause`, what happened, and `hint`, what to do about it. Neither
ever holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class SfscError(Exception):
    """Root of this package's errors; `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str] = "see `sfsc --help`"
    """The hint if the caller gives none."""
    server_codes: ClassVar[Mapping[str, str | None]] = {}
    """The server's error codes that raise this class itself, each with its hint."""

    def __init__(self, cause: str, hint: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint or self.usual_hint


class LocalError(SfscError):
    """A fault of this machine: a missing file, a full disk, a folder without permission."""

    usual_hint = "look at the path named, then run the command again"


class UnreadableSource(LocalError):
    """A source that cannot be read."""


class NotRegularFile(UnreadableSource):
    """A link, pipe or device in a folder that is stored. Only its regular files are."""


class BadDestination(LocalError):
    """A name that can be no file in the folder meant: a device, or through a link."""

    usual_hint = "fetch it by itself: `sfsc get NAME -o PATH`"


class UsageError(SfscError):
    """A call that makes no sense, whatever the server would say."""

    exit_code = 2


class NotFound(SfscError):
    """No such file or user. What belongs to others looks the same."""

    exit_code = 3
    usual_hint = "`sfsc ls` shows what there is"
    server_codes: ClassVar = {"not-found": None}


class Denied(SfscError):
    """The server refused what was asked."""

    exit_code = 4
    usual_hint = "the operator can tell why"
    server_codes: ClassVar = {
        "not-allowed": None,
        "refused": "the operator can tell why: `sfsd user show`",
        "denied": None,
        "rotation-required": "rotate the keys first",
    }


class QuotaExceeded(Denied):
    """The owner's quota would be passed."""

    server_codes: ClassVar = {
        # Deleted files are trash, which counts as stored.
        "quota": "make room by `rm --purge` or `history --prune`, or ask the operator: `sfsd user"
        " quota`; an unfinished upload is dropped within the hour"
    }


class TokenRefused(Denied):
    """The invitation was used before, has expired, or was never given."""

    server_codes: ClassVar = {"token": "ask the operator for a new invitation: `sfsd user add`"}


class StaleGeneration(Denied):
    """The account has newer keys than this machine."""

    server_codes: ClassVar = {"stale-generation": "this account's keys were rotated elsewhere"}


class Untrusted(Denied):
    """Another user of whom only the server says whose key is his.

    `fingerprint` is what it shows, the hash of his first statement (lower hex).
    """

    def __init__(self, cause: str, hint: str | None = None, *, fingerprint: str = "") -> None:
        super().__init__(cause, hint)
        self.fingerprint = fingerprint


class WeakRecipient(Denied):
    """Another user whose key has expired, or is weaker than `min_wrap_alg` allows."""


class IntegrityError(SfscError):
    """Something is not what was signed. Never retried, never ignored."""

    exit_code = 5
    usual_hint = "something was changed, and nothing of it was used: tell the server's operator"
    server_codes: ClassVar = {"damaged": "the operator finds out more with `sfsd fsck`"}


class Tampered(IntegrityError):
    """Bytes that do not decrypt, or do not hash, to what was promised."""


class _Mismatch(IntegrityError):
    """Two fingerprints that should be one: `pinned` here, `shown` by the server (lower hex)."""

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


class _LogConflict(IntegrityError):
    """`notes` are the signed checkpoint that was known and the one that was shown, where both are
    at hand; `evidence` the file that they were written to."""

    def __init__(
        self, cause: str, hint: str | None = None, *, notes: tuple[bytes, bytes] | None = None
    ) -> None:
        super().__init__(cause, hint)
        self.notes = notes
        self.evidence: str | None = None


class Rollback(_LogConflict):
    """The server shows something older than this client has seen."""


class Fork(_LogConflict):
    """Two checkpoints of one log that cannot both be true."""


class TakenOver(IntegrityError):
    """Somebody has continued the account's chain and left its recovery key out of its bundle.
    `first` is the number of the first statement that is to be undone, 0 where that is not known."""

    usual_hint = "take the account back: `sfsc init --recovery --take-back`"

    def __init__(self, cause: str, hint: str | None = None, *, first: int = 0) -> None:
        super().__init__(cause, hint)
        self.first = first


class Destroyed(IntegrityError):
    """A version that somebody with stolen keys has removed, replaced, or wrapped for himself."""

    usual_hint = "`sfsc history` shows what was done; other copies are all that is left of it"


class Distrusted(IntegrityError):
    """The server has told two stories, and nobody has accepted that yet: nothing is signed."""


class ConflictError(SfscError):
    """A change made onto something that is no longer the newest.

    `head` is the bytes of the signed record that is the newest, where the server sent it.
    """

    exit_code = 6
    usual_hint = "look what is there now, and run the command again"
    server_codes: ClassVar = {
        "conflict": None,
        "changed": "run the command again",
        "stale-recipient": "run the command again",
    }

    def __init__(self, cause: str, hint: str | None = None, *, head: bytes | None = None) -> None:
        super().__init__(cause, hint)
        self.head = head


class NetworkError(SfscError):
    """The connection, not the answer, failed."""

    exit_code = 7
    usual_hint = "is the server running and reachable? run the command again"


class Unreachable(NetworkError):
    """No connection could be made, or it was lost."""

    server_codes: ClassVar = {
        "upload-lost": "run the command again",
        "busy": "run the command again in a moment",
        "unavailable": "the operator must look at the server: `sfsd status`",
        "shutting-down": "run the command again in a moment",
    }


class TimedOut(NetworkError):
    """The server did not answer in time."""


class ProtocolFailure(NetworkError):
    """The peer speaks something else, or broke the protocol."""


class KeyringError(SfscError):
    """A key or passphrase is missing, wrong or unusable."""

    exit_code = 8
    usual_hint = "see `sfsc whoami`, or restore the keyring from a backup"


class KeyringMissing(KeyringError):
    """There is no keyring where one was looked for."""


class KeyringDamaged(KeyringError):
    """A keyring file that is not one, or whose bytes have changed."""


class WrongPassphrase(KeyringError):
    """The passphrase is not the one the key was locked with."""


class UnsupportedKey(KeyringError):
    """A key of an unknown kind, size or encoding."""
