"""What an account uses, and what an operator does with accounts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Final

from protocol import VERSION
from protocol.codec.fields import shortened
from protocol.codec.values import changed
from protocol.wire.messages import Done, Reply
from protocol.wire.messages import accounts as messages
from protocol.wire.messages.accounts import (
    AccountsPage,
    ForceRotation,
    Status,
    StatusAnswer,
    Usage,
    UsageAnswer,
    UserAccess,
    UserAdd,
    UserList,
    UserQuota,
    UserShow,
)
from sfsd.errors import Refused
from sfsd.rules.context import OPERATOR, USER, Commit, Principal, ServerContext, draft, operation
from sfsd.state.documents import Document
from sfsd.storage.change import Change, Write
from sfsd.storage.json_files import StoredAccount
from sfsd.storage.paths import account_path, statements_path

PER_PAGE: Final = 256


@operation(Usage, access=USER, slow=True)
def usage(server: ServerContext, who: Principal, message: Usage) -> UsageAnswer:  # noqa: ARG001
    ledger = server.index.for_user(who.user).loaded_ledger()
    _, quota = server.users.quota(who.user)
    return UsageAnswer(ledger.used, quota, ledger.files)


@operation(UserAdd, access=OPERATOR, logged="user-add")
def user_add(server: ServerContext, who: Principal, message: UserAdd) -> Commit[Reply]:
    """Invite; one who was invited and has not enrolled gets a new token in place of the old."""
    present = server.users.account(message.user)
    if present is not None and present.value.used_by is not None:
        raise Refused("conflict", f"{message.user} has enrolled already")
    if message.expires <= server.now:
        raise Refused("bad-request", "the invitation would have expired already")
    account = StoredAccount(
        seq=0,
        token_sha256=message.token_sha256,
        token_expires=message.expires,
        used_by=None,
        disabled=False,
        quota=message.quota,
        forced=None,
    )
    path = account_path(message.user)
    change = Change(
        draft(
            who,
            "user-add",
            owner=message.user,
            detail={"quota": message.quota, "expires": message.expires},
            accounts=(message.user,),
        ),
        expect={
            path: None if present is None else present.digest,
            statements_path(message.user): None,
        },
        effects=(Write(path, account.encode),),
    )
    return Commit(change, lambda seq: Done(server.receipt(seq, who)))


@operation(UserAccess, access=OPERATOR, logged="user-access")
def user_access(server: ServerContext, who: Principal, message: UserAccess) -> Commit[Reply]:
    """Disable or enable. Whether that changes anything or not, it is logged."""
    present = server.users.account(message.user)
    if present is None:
        raise Refused("not-found", "no such user")
    account = changed(present.value, disabled=message.disabled)
    detail = {"disabled": message.disabled, "reason": message.reason}
    return _replace(server, who, "user-access", message.user, present, account, detail)


@operation(UserQuota, access=OPERATOR, logged="user-quota")
def user_quota(server: ServerContext, who: Principal, message: UserQuota) -> Commit[Reply]:
    """What is kept already stays, be it more than the new quota."""
    present = server.users.account(message.user)
    if present is None:
        raise Refused("not-found", "no such user")
    account = changed(present.value, quota=message.quota)
    detail = {"quota": message.quota, "before": present.value.quota}
    return _replace(server, who, "user-quota", message.user, present, account, detail)


@operation(ForceRotation, access=OPERATOR, logged="rotate-force")
def force_rotation(server: ServerContext, who: Principal, message: ForceRotation) -> Commit[Reply]:
    """From its acknowledgement on the user may only read, until he has rotated."""
    present = server.users.account(message.user)
    if present is None or present.value.used_by is None:
        raise Refused("not-found", "no such user, or not enrolled")
    reason = message.reason or "the operator asks for it"
    account = changed(present.value, forced=reason)
    return _replace(server, who, "rotate-force", message.user, present, account, {"reason": reason})


@operation(UserList, access=OPERATOR, slow=True)
def user_list(server: ServerContext, who: Principal, message: UserList) -> AccountsPage:  # noqa: ARG001
    names = server.store.children("", message.after, PER_PAGE)
    shown = tuple(found for name in names if (found := _shown(server, name)) is not None)
    return AccountsPage(shown, names[-1] if len(names) == PER_PAGE else "")


@operation(UserShow, access=OPERATOR, slow=True)
def user_show(server: ServerContext, who: Principal, message: UserShow) -> AccountsPage:  # noqa: ARG001
    shown = _shown(server, message.user)
    if shown is None:
        raise Refused("not-found", "no such user")
    return AccountsPage((shown,), "")


@operation(Status, access=OPERATOR)
def status(server: ServerContext, who: Principal, message: Status) -> StatusAnswer:  # noqa: ARG001
    vitals = server.metrics
    return StatusAnswer(
        version=VERSION,
        address=vitals.address,
        started=vitals.started,
        log_size=server.journal.size,
        connections=vitals.connections,
        sessions=vitals.sessions,
        users=len(server.store.children("")),
        disk_free=shutil.disk_usage(server.root).free,
        failed=shortened(server.failed or ""),
    )


def _replace(
    server: ServerContext,
    who: Principal,
    op: str,
    user: str,
    present: Document[StoredAccount],
    account: StoredAccount,
    detail: Mapping[str, object],
) -> Commit[Reply]:
    """`account` in the place of what there is; logged in any case, be it the same."""
    change = Change(
        draft(who, op, owner=user, detail=detail, accounts=(user,)),
        expect={present.path: present.digest},
        effects=(Write(present.path, account.encode),),
    )
    return Commit(change, lambda seq: Done(server.receipt(seq, who)))


def _shown(server: ServerContext, name: str) -> messages.Account | None:
    found = server.users.account(name)
    if found is None:
        return None
    account, chain = found.value, server.users.chain(name)
    head = None if chain is None else chain[0].head
    ledger = server.index.for_user(name).loaded_ledger()
    return messages.Account(
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
        files=ledger.files,
    )
