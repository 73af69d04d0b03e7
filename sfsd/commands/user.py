"""`sfsd user`: manage accounts."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import cast

import click
from msgspec import structs

from protocol.codec.quantities import parse_duration, parse_size
from protocol.codec.terminal_text import counted, human_size, human_time
from protocol.records.invitation import TOKEN_SIZE, Invitation, parse_address
from protocol.wire.messages.accounts import (
    Account,
    AccountsPage,
    UserAccess,
    UserAdd,
    UserQuota,
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
from sfsd.config import Config
from sfsd.errors import CommandError, ConfigError
from sfsd.setting_kinds import ANY_ADDRESS

_NUMBERS = ("files", "stored", "quota")


@click.group()
def command() -> None:
    """Invite, list, disable and enable users, and set quotas.

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
def list_(root: Path, as_json: bool) -> None:
    """List all accounts, including invited users: what they store, and how much of it they may.

    Example: sfsd user list --json
    """
    with table("user", "state", "files", "stored", "quota", right=_NUMBERS) as rows:
        for account in operator_client.all_accounts(root):
            if as_json:
                answer_json(_to_json(account))
                continue
            quota = human_size(account.quota) if account.quota else "none"
            rows.add(account.user, _state(account), account.files, human_size(account.used), quota)


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
    due, invited_until = account.due, account.invited_until
    answer(f"rotate by    {human_time(due, local=not utc) if due else '-'}")
    invited = f"until {human_time(invited_until, local=not utc)}" if invited_until else "-"
    answer(f"invited      {invited}")
    answer(f"stored       {counted(account.files, 'file')}, {counted(account.used, 'byte')}")
    answer(f"quota        {account.quota or 'none'}")


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
    """Accept NAME again.

    Example: sfsd user enable alice
    """
    operator_client.send_requests(root, [UserAccess(name, False, reason)])


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
    if account.disabled:
        return "disabled"
    return "enrolled" if account.fingerprint else "invited"


def _to_json(account: Account) -> dict[str, object]:
    values = structs.asdict(account)
    del values["disabled"]  # part of the state
    return values | {"state": _state(account), "fingerprint": account.fingerprint.hex()}
