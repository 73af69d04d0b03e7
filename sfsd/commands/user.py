"""`sfsd user`: manage accounts."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import cast

import click

from protocol.codec.quantities import parse_duration, parse_size
from protocol.codec.terminal_text import counted, human_size, human_time
from protocol.codec.values import as_dict
from protocol.records.invitation import TOKEN_SIZE, Invitation, parse_address
from protocol.wire.messages.accounts import (
    Account,
    AccountsPage,
    UserAccess,
    UserAdd,
    UserErase,
    UserErased,
    UserQuota,
    UserRemove,
    UserRevoke,
    UserShow,
)
from sfsd import server_keys
from sfsd.commands import (
    answer,
    answer_json,
    json_option,
    operator_client,
    parse_with,
    reason_option,
    root_option,
    table,
    user_name,
    utc_option,
)
from sfsd.errors import CommandError, ConfigError
from sfsd.settings.config import Config
from sfsd.settings.kinds import ANY_ADDRESS, DAY

_NUMBERS = ("files", "stored", "quota", "keys")
_COLUMNS = (
    "user",
    "state",
    "files",
    "stored",
    "quota",
    "last login",
    "keys",
    "due",
    "rotation",
)
_DAYS = len("2026-11-24")
"""Characters of a time as `human_time` shows it."""


@click.group()
def command() -> None:
    """Invite, list, disable, enable, revoke and remove users, and set quotas.

    Example: sfsd user add alice
    """


_name = click.argument("name", callback=user_name)


@command.command()
@_name
@root_option
@click.option(
    "--quota",
    callback=parse_with(parse_size),
    help="Limit on what the user may store, such as 50G; 0: no limit.",
)
@click.option(
    "--expires",
    default="7d",
    show_default=True,
    callback=parse_with(parse_duration),
    help="How long the invitation is valid.",
)
def add(name: str, root: Path, quota: int | None, expires: int) -> None:
    """Invite NAME and print the invitation.

    The invitation is secret, works once and expires. If NAME was invited before and has not
    enrolled, the old invitation becomes invalid, and the quota stays unless --quota is given.

    Example: sfsd user add alice --quota 50G
    """
    config = Config.load(root)
    host, port = parse_address(_public_address(root, config))
    pin = server_keys.load(root / "keys").server_id
    invitation = Invitation(host, port, name, pin, secrets.token_bytes(TOKEN_SIZE))
    request = UserAdd(
        user=name,
        token_sha256=invitation.token_sha256,
        expires=int(time.time()) + expires,
        quota=_present_quota(root, name, config.quota) if quota is None else quota,
    )
    operator_client.send_requests(root, [request])
    click.echo(invitation.to_text())


def _present_quota(root: Path, name: str, default: int) -> int:
    """Return the quota of the user `name`, or `default` if there is no such user."""
    try:
        page = cast(AccountsPage, operator_client.send_requests(root, [UserShow(name)])[0])
    except CommandError as exc:
        if exc.exit_code != CommandError.NOT_FOUND:
            raise
        return default
    return page.accounts[0].quota


def _public_address(root: Path, config: Config) -> str:
    """Return the address for invitations. Raises `ConfigError` if none is known."""
    address = config.public or operator_client.running_address(root)
    if address is None or parse_address(address)[0] in ANY_ADDRESS:
        raise ConfigError(
            "unknown at which address users reach this daemon",
            f'set `public = "HOST:PORT"` in {root.absolute() / "sfsd.toml"}',
        )
    return address


@command.command("list")
@root_option
@json_option
@utc_option
def list_(root: Path, as_json: bool, utc: bool) -> None:
    """List all accounts, also of invited and removed users: what they store and may store, the last
    login, the generation of their keys, when these are due, and whether a rotation is pending.

    Example: sfsd user list --json
    """
    with table(*_COLUMNS, right=_NUMBERS) as rows:
        for account in operator_client.all_accounts(root):
            if as_json:
                answer_json(_to_json(account))
                continue
            rows.add(
                account.user,
                _state(account),
                account.files,
                human_size(account.used),
                human_size(account.quota) if account.quota else "none",
                _time(account.last_login, utc)[:_DAYS],
                account.generation or "-",
                _time(account.due, utc)[:_DAYS],
                _rotation(account) or "-",
            )


@command.command()
@_name
@root_option
@json_option
@utc_option
def show(name: str, root: Path, as_json: bool, utc: bool) -> None:
    """Show one account.

    Example: sfsd user show alice
    """
    page = cast(AccountsPage, operator_client.send_requests(root, [UserShow(name)])[0])
    (account,) = page.accounts
    if as_json:
        answer_json(_to_json(account))
        return
    answer(f"user         {account.user}")
    answer(f"state        {_state(account)}")
    answer(f"fingerprint  {account.fingerprint.hex() or '-'}")
    answer(f"keys         generation {account.generation}, {account.wrap_alg or '-'}")
    answer(f"rotate by    {_time(account.due, utc)}")
    answer(f"rotation     {_rotation(account) or 'none pending'}")
    answer(f"last login   {_time(account.last_login, utc)}")
    answer(
        f"invited      {'until ' * bool(account.invited_until)}{_time(account.invited_until, utc)}"
    )
    answer(f"removal      {_time(account.removal, utc)}")
    answer(f"stored       {counted(account.files, 'file')}, {human_size(account.used)}")
    answer(f"quota        {human_size(account.quota) if account.quota else 'none'}")


@command.command()
@_name
@root_option
@reason_option("For the log.")
def disable(name: str, root: Path, reason: str) -> None:
    """Refuse NAME from now on, and close the user's sessions.

    Example: sfsd user disable alice --reason "left the company"
    """
    operator_client.send_requests(root, [UserAccess(name, True, reason)])


@command.command()
@_name
@root_option
@reason_option("For the log.")
def enable(name: str, root: Path, reason: str) -> None:
    """Accept NAME again: after `disable`, after `revoke`, and before the files of a removed user
    are removed.

    Example: sfsd user enable alice
    """
    operator_client.send_requests(root, [UserAccess(name, False, reason)])


@command.command()
@_name
@root_option
@reason_option("For the log.")
def revoke(name: str, root: Path, reason: str) -> None:
    """Refuse every device that NAME has now, and close the user's sessions.

    For a stolen machine whose owner cannot drop it at once. The user takes the account back with
    the recovery code (`sfsc init --recovery --take-back` or `sfsc rotate --recovery`), which
    replaces all devices and keys. Without a code, `user enable` accepts the devices again. `user
    disable` refuses the recovery code too.

    Example: sfsd user revoke alice --reason "a laptop was stolen"
    """
    operator_client.send_requests(root, [UserRevoke(name, reason)])


@command.command()
@_name
@root_option
@click.option(
    "--keep-days",
    type=click.IntRange(0, 3650),
    metavar="N",
    default=0,
    show_default=True,
    help="Remove the files after N days. Until then, `user enable` ends the removal.",
)
@reason_option("For the log.")
def remove(name: str, root: Path, keep_days: int, reason: str) -> None:
    """Remove NAME: the files, their names and keys, what was shared with the user, and the login.

    The user is refused at once, as by `disable`. The content of all files is removed, with names,
    wrapped keys and the notes in the inboxes of readers, and the user's own wraps in files of
    others. This cannot be undone. Signed records and log entries stay, and the name is not given
    again: other users have pinned it. The name of a user who has not enrolled is free again.

    Example: sfsd user remove alice --keep-days 30 --reason "left the company"
    """
    removal = int(time.time()) + keep_days * DAY

    def talk() -> operator_client.Talk[None]:
        yield UserRemove(name, removal, reason)
        erased, after = bool(keep_days), ""
        while not erased:
            found = cast(UserErased, (yield UserErase(name, after)))
            erased, after = found.done, found.next

    operator_client.converse(root, talk())
    if keep_days:
        answer(f"{name} is disabled, and the files are removed after {human_time(removal)}")
    else:
        answer(f"removed {name}")


@command.command()
@_name
@click.argument("new", metavar="NEW", callback=user_name)
@root_option
def rename(name: str, new: str, root: Path) -> None:  # noqa: ARG001
    """Refused: users cannot be renamed.

    Example: sfsd user rename alice alicia
    """
    raise CommandError(
        f"{name} cannot become {new}: the name is in every record that the user has signed, and in "
        "every key that others have wrapped for the user",
        f"invite {new}, let the user store the files again, then `sfsd user remove {name}`",
        exit_code=4,
    )


@command.command("quota")
@_name
@click.argument("size", callback=parse_with(parse_size))
@root_option
def set_quota(name: str, size: int, root: Path) -> None:
    """Limit what the files of NAME take on the disk to SIZE (10GB, 512MiB; 0: no limit).

    Stored files stay.

    Example: sfsd user quota alice 100G
    """
    operator_client.send_requests(root, [UserQuota(name, size)])


def _state(account: Account) -> str:
    if account.removed:
        return "removed"
    if account.removal:
        return "removing"
    if account.disabled:
        return "disabled"
    if account.revoked:
        return "revoked"
    return "enrolled" if account.fingerprint else "invited"


def _rotation(account: Account) -> str:
    """Return which rotation is pending and why, or ""."""
    if account.rotation == "forced":
        return f"forced: {account.reason}"
    return account.rotation


def _time(seconds: int, utc: bool) -> str:
    return human_time(seconds, local=not utc) if seconds else "-"


def _to_json(account: Account) -> dict[str, object]:
    values = as_dict(account)
    for part in ("disabled", "revoked", "removed"):
        del values[part]  # parts of the state
    return values | {"state": _state(account), "fingerprint": account.fingerprint.hex()}
