"""What an account uses, and what an operator does with accounts."""

from __future__ import annotations

from typing import Annotated, ClassVar

from protocol.codec.fields import AtMost, Bytes32, Count, Struct, Text, UserName
from protocol.wire.messages.base import Done, Reply, Request, message


@message(97)
class UsageAnswer(Reply):
    """Bytes of ciphertext the account holds, its quota in bytes (0: none), its current files."""

    used: Count
    quota: Count
    files: Count


@message(96)
class Usage(Request):
    """The asker's own account."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (UsageAnswer,)


class Account(Struct):
    """One account as an operator sees it. `fingerprint` is the first statement's hash, empty before
    enrolment; `created`, `due` and `expires` are the head statement's, 0 before it."""

    user: UserName
    fingerprint: Annotated[bytes, AtMost(32)]
    generation: Count
    wrap_alg: Annotated[str, AtMost(16)]
    created: Count
    due: Count
    expires: Count
    disabled: bool
    invited_until: Count
    used: Count
    quota: Count
    files: Count


@message(99)
class AccountsPage(Reply):
    accounts: Annotated[tuple[Account, ...], AtMost(256)]
    next: Annotated[str, AtMost(32)]


@message(98)
class UserList(Request):
    """Operator: accounts by name after `after` ("" = from the start)."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (AccountsPage,)

    after: Annotated[str, AtMost(32)]


@message(100)
class UserShow(Request):
    """Operator: one account; the answer's page holds just it."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (AccountsPage,)

    user: UserName


@message(101)
class UserAdd(Request):
    """Operator: invite a user. Replaces the token of one not yet enrolled.

    Only SHA-256 of the token travels and is kept; `expires` is in unix seconds.
    """

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    user: UserName
    token_sha256: Bytes32
    expires: Count
    quota: Count


@message(102)
class UserAccess(Request):
    """Operator: disable a user (closes the sessions too) or enable him again."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    user: UserName
    disabled: bool
    reason: Text


@message(104)
class StatusAnswer(Reply):
    """State of the daemon. `failed` is empty, or why changes are refused since a failed sync."""

    version: Annotated[str, AtMost(64)]
    address: Text
    started: Count
    log_size: Count
    connections: Count
    sessions: Count
    users: Count
    disk_free: Count
    failed: Text


@message(142)
class UserQuota(Request):
    """Operator: how many bytes of ciphertext a user may keep from now on, 0 for no limit."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    user: UserName
    quota: Count


@message(144)
class ForceRotation(Request):
    """Operator: a user may only read, until he has rotated his keys; `reason` is told to him."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (Done,)

    user: UserName
    reason: Text


@message(103)
class Status(Request):
    """Operator: how the daemon is."""

    REPLIES: ClassVar[tuple[type[Reply], ...]] = (StatusAnswer,)
