"""Messages about accounts: a user's own usage, and administration by the operator."""

from __future__ import annotations

from typing import Annotated

from protocol.codec.fields import AtMost, Bytes32, Count, OneOf, Struct, Text, UserName
from protocol.wire.messages.base import Done, Reply, Request, message


@message(97)
class UsageAnswer(Reply):
    """Bytes that the account's versions and running uploads take on the disk, its quota in bytes
    (0: none), and its current files."""

    used: Count
    quota: Count
    files: Count


@message(96, replies=(UsageAnswer,))
class Usage(Request):
    """Get the usage of the user's own account."""


class Account(Struct):
    """One account as the operator sees it.

    `fingerprint` is the first statement's hash, empty before enrolment. `created`, `due` and
    `expires` are those of the newest statement, 0 before enrolment. `last_login` is when the user
    last opened a session, 0 for never. `rotation` tells whether the keys must be rotated, and
    `reason` why, until that is done. `revoked` tells whether the devices of the account are
    refused. `removal` is when the files are removed, 0 for never; `removed` whether they were.
    Times are in unix seconds.
    """

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
    last_login: Count = 0
    rotation: Annotated[str, OneOf(("", "due", "overdue", "forced"))] = ""
    reason: Annotated[str, AtMost(512)] = ""
    revoked: bool = False
    removal: Count = 0
    removed: bool = False


@message(99)
class AccountsPage(Reply):
    """Accounts by name; `next` is the next page's `after`, "" at the end.

    `damaged` are the users of this page whose settings or identity chain are damaged.
    """

    accounts: Annotated[tuple[Account, ...], AtMost(256)]
    next: Annotated[str, AtMost(32)]
    damaged: Annotated[tuple[UserName, ...], AtMost(256)] = ()


@message(98, replies=(AccountsPage,))
class UserList(Request):
    """List accounts by name after `after` ("": from the start); operator only."""

    after: Annotated[str, AtMost(32)]


@message(100, replies=(AccountsPage,))
class UserShow(Request):
    """Get one account, as a page of one; operator only."""

    user: UserName


@message(101, replies=(Done,))
class UserAdd(Request):
    """Invite a user, or replace the token of one not yet enrolled; operator only.

    Only SHA-256 of the token is sent and stored. `expires` is in unix seconds.
    """

    user: UserName
    token_sha256: Bytes32
    expires: Count
    quota: Count


@message(102, replies=(Done,))
class UserAccess(Request):
    """Disable a user and close the user's sessions, or enable the user again; operator only."""

    user: UserName
    disabled: bool
    reason: Text


class DamagedFile(Struct):
    """A file of the store, by its path below store/users, and how it differs from what entry `seq`
    of the log wrote."""

    path: Annotated[str, AtMost(255)]
    seq: Count
    text: Text


class ScrubStatus(Struct):
    """Progress of the scrub. Times are in unix seconds, 0 if there is none.

    `began` is that of the pass that runs or is to go on, with the `files` and `bytes` that it has
    read; the `last_` ones are of the last whole pass. `damage` is how many files are damaged as far
    as is known, `damaged` has some of them.
    """

    began: Count
    files: Count
    bytes: Count
    last_began: Count
    last_finished: Count
    last_files: Count
    last_bytes: Count
    damage: Count
    damaged: Annotated[tuple[DamagedFile, ...], AtMost(256)]


@message(106, replies=(Done,))
class UserRevoke(Request):
    """Refuse all devices of a user and close the user's sessions, until the user has recovered the
    account or is enabled again; operator only."""

    user: UserName
    reason: Text


@message(107, replies=(Done,))
class UserRemove(Request):
    """Disable a user, and have the user's files removed at `removal`, in unix seconds; operator
    only. Until then, enabling the user ends it."""

    user: UserName
    removal: Count
    reason: Text


@message(109)
class UserErased(Reply):
    """Some files were removed. `next` is the `after` of the next request, "" if none is left."""

    next: Annotated[str, AtMost(32)]
    done: bool


@message(108, replies=(UserErased,))
class UserErase(Request):
    """Remove files of a user whose removal is due, past the file id `after`; operator only. It
    takes a few seconds at most, so it is repeated."""

    user: UserName
    after: Annotated[str, AtMost(32)]


@message(104)
class StatusAnswer(Reply):
    """Status of the daemon. `failed` is empty, or why changes are refused since a failed sync.
    `damaged` has users whose stored account differs from the log, as far as it was read.
    `disk_free` and `files_free` are the least bytes and files for which a disk of the root has
    room; `files_free` is None if no disk has a limit of its own. `metrics` is the address of the
    metrics, "" if they are not served. `reasons` are lines why the daemon is not well, if a check
    was asked for."""

    version: Annotated[str, AtMost(64)]
    address: Text
    started: Count
    log_size: Count
    connections: Count
    sessions: Count
    users: Count
    disk_free: Count
    failed: Text
    scrub: ScrubStatus
    damaged: Annotated[tuple[UserName, ...], AtMost(256)] = ()
    files_free: Count | None = None
    metrics: Text = ""
    reasons: Annotated[tuple[Text, ...], AtMost(64)] = ()


@message(142, replies=(Done,))
class UserQuota(Request):
    """Set a user's quota in bytes, 0 for no limit; operator only."""

    user: UserName
    quota: Count


@message(144, replies=(Done,))
class ForceRotation(Request):
    """Restrict a user to reading until the user's keys are rotated; operator only.

    The user is shown `reason`.
    """

    user: UserName
    reason: Text


@message(103, replies=(StatusAnswer,))
class Status(Request):
    """Get the daemon's status; operator only. `check` asks for a proof that it is well."""

    check: bool = False


@message(105, replies=(StatusAnswer,))
class StartScrub(Request):
    """Begin or continue a pass of the scrub now, and get the status; operator only."""
