"""Accounts: usage, and the operator's requests to add, change and list them."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Final

from protocol import VERSION
from protocol.codec.fields import shortened
from protocol.codec.values import changed
from protocol.log.auditlog import RETENTION
from protocol.wire.messages import Reply
from protocol.wire.messages.accounts import (
    Account,
    AccountsPage,
    DamagedFile,
    ForceRotation,
    ScrubStatus,
    StartScrub,
    Status,
    StatusAnswer,
    Usage,
    UsageAnswer,
    UserAccess,
    UserAdd,
    UserErase,
    UserErased,
    UserList,
    UserQuota,
    UserRemove,
    UserRevoke,
    UserShow,
)
from sfsd.errors import DamagedError, Refused, Stale, require
from sfsd.operations.health import find_problems
from sfsd.rules.context import (
    MONITORING,
    OPERATOR,
    USER,
    Principal,
    ServerContext,
    Transaction,
    draft,
    operation,
)
from sfsd.rules.removal import erasure_changes, is_removal_due
from sfsd.rules.users import rotation_notice
from sfsd.state.documents import Document
from sfsd.state.scrub_progress import ScrubProgress
from sfsd.storage.change import Change, Write
from sfsd.storage.json_files import StoredAccount
from sfsd.storage.paths import account_path, statements_path

PER_PAGE: Final = 256
"""Accounts in one reply to UserList."""
ERASE_SECONDS: Final = 2.0
"""How long one request removes files."""
MAX_REASONS: Final = 64
"""Reasons in one reply to Status."""


@operation(Usage, access=USER, slow=True)
def usage(server: ServerContext, who: Principal, message: Usage) -> UsageAnswer:  # noqa: ARG001
    """Return the bytes and files that count against the user's quota."""
    ledger = server.index.for_user(who.user).loaded_ledger()
    _, quota = server.users.quota(who.user)
    return UsageAnswer(ledger.used, quota, ledger.files)


@operation(UserAdd, access=OPERATOR, logged="user-add")
def user_add(server: ServerContext, who: Principal, message: UserAdd) -> Transaction[Reply]:
    """Invite a user. A second invitation before enrolment replaces the token of the first."""
    present = server.users.account(message.user)
    if present is not None and present.value.used_by is not None:
        if present.value.removal:
            raise Refused("conflict", f"{message.user} is the name of a removed account")
        raise Refused("conflict", f"{message.user} has enrolled already")
    if present is None and server.journal.count(message.user):
        # Clients of others have pinned that user, and its entries in the log are counted already.
        raise Refused("conflict", f"the name {message.user} was used before")
    if message.expires <= server.now:
        raise Refused("bad-request", "the invitation's expiry is in the past")
    account = StoredAccount(
        seq=0,
        token_sha256=message.token_sha256,
        token_expires=message.expires,
        used_by=None,
        disabled=False,
        quota=message.quota,
        forced=None,
    )
    detail = {"quota": message.quota, "expires": message.expires}
    path = account_path(message.user)
    change = Change(
        draft(who, "user-add", owner=message.user, detail=detail),
        expect={
            path: None if present is None else present.digest,
            statements_path(message.user): None,
        },
        effects=(Write(path, account.encode),),
    )
    return Transaction(change, lambda seq: server.done(seq, who))


@operation(UserAccess, access=OPERATOR, logged="user-access")
def user_access(server: ServerContext, who: Principal, message: UserAccess) -> Transaction[Reply]:
    """Disable or enable an account. Enabling it ends a revocation, and a removal that waits."""
    account = _find(server, message.user)
    if account.value.removed or is_removal_due(server, message.user):
        raise Refused("conflict", f"the account of {message.user} was removed")
    detail = {"disabled": message.disabled, "reason": message.reason}
    new = changed(account.value, disabled=message.disabled)
    if not message.disabled:
        new = changed(new, revoked=0, removal=0)
    return _replace(server, who, "user-access", message.user, account, new, detail)


@operation(UserQuota, access=OPERATOR, logged="user-quota")
def user_quota(server: ServerContext, who: Principal, message: UserQuota) -> Transaction[Reply]:
    """Set a user's quota. Stored files stay even if they exceed it."""
    account = _find(server, message.user)
    detail = {"quota": message.quota, "before": account.value.quota}
    new = changed(account.value, quota=message.quota)
    return _replace(server, who, "user-quota", message.user, account, new, detail)


@operation(ForceRotation, access=OPERATOR, logged="rotate-force")
def force_rotation(
    server: ServerContext, who: Principal, message: ForceRotation
) -> Transaction[Reply]:
    """Restrict a user to reading, from the acknowledgement on, until they have rotated."""
    account = _find(server, message.user)
    if account.value.used_by is None:
        raise Refused("not-found", f"{message.user} has not enrolled")
    reason = message.reason or "the operator asks for it"
    new = changed(account.value, forced=reason)
    return _replace(server, who, "rotate-force", message.user, account, new, {"reason": reason})


@operation(UserRevoke, access=OPERATOR, logged="user-revoke")
def user_revoke(server: ServerContext, who: Principal, message: UserRevoke) -> Transaction[Reply]:
    """Refuse every device that the account has now. Its recovery key opens it, and replaces them.

    The devices are in statements that only the account's keys sign, so they are refused by the
    number of the newest one.
    """
    account = _find(server, message.user)
    found = server.users.chain(message.user)
    if found is None:
        raise Refused("not-found", f"{message.user} has not enrolled")
    chain, digest = found
    detail = {"statements": chain.head.n, "reason": message.reason}
    new = changed(account.value, revoked=chain.head.n)
    expect = {statements_path(message.user): digest}
    return _replace(server, who, "user-revoke", message.user, account, new, detail, expect)


@operation(UserRemove, access=OPERATOR, logged="user-remove")
def user_remove(server: ServerContext, who: Principal, message: UserRemove) -> Transaction[Reply]:
    """Disable an account, and say when its files are removed."""
    account = _find(server, message.user)
    if account.value.removed:
        raise Refused("conflict", f"the account of {message.user} was removed")
    require(message.removal > 0, "the time of a removal")
    detail = {"removal": message.removal, "reason": message.reason}
    new = changed(account.value, disabled=True, removal=message.removal)
    return _replace(server, who, "user-remove", message.user, account, new, detail)


@operation(UserErase, access=OPERATOR, logged=RETENTION, slow=True)
def user_erase(server: ServerContext, who: Principal, message: UserErase) -> UserErased:  # noqa: ARG001
    """Remove files of an account whose removal is due, for some seconds."""
    account = _find(server, message.user)
    if account.value.removed:
        return UserErased("", done=True)
    if not is_removal_due(server, message.user):
        raise Refused("conflict", f"the removal of {message.user} is not due")
    server.check_storage()
    until = time.monotonic() + ERASE_SECONDS
    for after, change in erasure_changes(server, message.user, message.after):
        with suppress(Stale):  # it is found again
            server.committer.submit(change).result()
        if time.monotonic() > until:
            return UserErased(after, done=False)
    return UserErased("", done=True)


@operation(UserList, access=OPERATOR, slow=True)
def user_list(server: ServerContext, who: Principal, message: UserList) -> AccountsPage:  # noqa: ARG001
    """Return one page of accounts, in order of their names."""
    every = server.journal.latest.users()
    start = bisect.bisect_right(every, message.after)
    names = every[start : start + PER_PAGE]
    shown, damaged = list[Account](), list[str]()
    for name in names:
        try:
            account = server.users.account(name)
            if account is not None:
                shown.append(_summary(server, name, account.value))
        except DamagedError:
            damaged.append(name)
    last = names[-1] if len(names) == PER_PAGE else ""
    return AccountsPage(tuple(shown), last, tuple(damaged))


@operation(UserShow, access=OPERATOR, slow=True)
def user_show(server: ServerContext, who: Principal, message: UserShow) -> AccountsPage:  # noqa: ARG001
    """Return one account."""
    account = _find(server, message.user)
    return AccountsPage((_summary(server, message.user, account.value),), "")


@operation(Status, access=MONITORING, slow=True)
def status(server: ServerContext, who: Principal, message: Status) -> StatusAnswer:  # noqa: ARG001
    """Return the daemon's version, address, counters, free disk space and failure, and on demand
    whether it is well."""
    metrics, files, disks = server.metrics, server.store.files, server.disks
    reasons = find_problems(server)[:MAX_REASONS] if message.check else ()
    files_free = [left for one in disks if (left := files.free_files(one)) is not None]
    return StatusAnswer(
        version=VERSION,
        address=metrics.address,
        started=metrics.started,
        log_size=server.journal.size,
        connections=metrics.connections,
        sessions=metrics.sessions,
        users=len(server.journal.latest.users()),
        # The store may be on a disk of its own; the one that is full first counts.
        disk_free=min(map(files.free, disks)),
        failed=shortened(server.failed or ""),
        damaged=tuple(server.documents.damaged_accounts()[:PER_PAGE]),
        files_free=min(files_free, default=None),
        metrics=metrics.metrics_address,
        reasons=tuple(map(shortened, reasons)),
        scrub=_scrub_status(server.scrub),
    )


@operation(StartScrub, access=OPERATOR, slow=True)
def start_scrub(server: ServerContext, who: Principal, message: StartScrub) -> StatusAnswer:  # noqa: ARG001
    """Have the scrub begin or continue a pass."""
    server.scrub.want()
    return status(server, who, Status())


def _scrub_status(scrub: ScrubProgress) -> ScrubStatus:
    damaged = scrub.damaged
    some = islice(damaged.items(), PER_PAGE)
    return ScrubStatus(
        began=scrub.began,
        files=scrub.files if scrub.began else 0,
        bytes=scrub.bytes if scrub.began else 0,
        last_began=scrub.last_began,
        last_finished=scrub.last_finished,
        last_files=scrub.last_files,
        last_bytes=scrub.last_bytes,
        damage=len(damaged),
        damaged=tuple(DamagedFile(path, one.seq, shortened(one.text)) for path, one in some),
    )


def _find(server: ServerContext, user: str) -> Document[StoredAccount]:
    """Return the account of an invited or enrolled user. Raises `Refused` (not-found)."""
    account = server.users.account(user)
    if account is None:
        raise Refused("not-found", f"no such user: {user}")
    return account


def _replace(
    server: ServerContext,
    who: Principal,
    op: str,
    user: str,
    old: Document[StoredAccount],
    new: StoredAccount,
    detail: Mapping[str, object],
    expect: Mapping[str, bytes | None] | None = None,
) -> Transaction[Reply]:
    """Return the change from `old` to `new`, which is logged even if they are equal. It relies on
    `expect` too."""
    change = Change(
        draft(who, op, owner=user, detail=detail, accounts=(user,)),
        expect={old.path: old.digest, **(expect or {})},
        effects=(Write(old.path, new.encode),),
    )
    return Transaction(change, lambda seq: server.done(seq, who))


def _summary(server: ServerContext, name: str, account: StoredAccount) -> Account:
    """Return what the operator is shown of an account."""
    chain = server.users.chain(name)
    head = None if chain is None else chain[0].head
    ledger = server.index.for_user(name).loaded_ledger()
    user = None if chain is None or account.disabled else server.users.find(name)
    notice = None if user is None else rotation_notice(user, server.now)
    return Account(
        user=name,
        fingerprint=b"" if chain is None else chain[0].first_hash,
        generation=0 if head is None else head.generation,
        wrap_alg="" if head is None else head.wrap_alg,
        created=0 if head is None else head.created,
        due=0 if head is None else head.due,
        expires=0 if head is None else head.expires,
        disabled=account.disabled,
        invited_until=account.token_expires if account.used_by is None else 0,
        used=ledger.used,
        quota=account.quota,
        files=0 if account.removed else ledger.files,
        last_login=server.last_logins.of(name),
        rotation="" if notice is None else notice.state,
        reason="" if notice is None else notice.reason,
        revoked=head is not None and account.revoked >= head.n,
        removal=account.removal,
        removed=account.removed,
    )
