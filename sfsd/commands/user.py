"""`sfsd user`: accounts."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import cast

import click

from protocol.codec.terminal_text import human_time
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
    parsed,
    reason_option,
    root_option,
    user_name,
)
from sfsd.config import Config, parse_duration, parse_size
from sfsd.errors import ConfigError

_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104


@click.group()
def command() -> None:
    """Invite users, look at them, disable and enable them."""


_name = click.argument("name", callback=user_name)


@command.command()
@_name
@root_option
@click.option(
    "--quota",
    callback=parsed(parse_size),
    help="Most that the user may store, such as 50G; 0 is no limit.",
)
@click.option(
    "--expires",
    default="7d",
    show_default=True,
    callback=parsed(parse_duration),
    help="How long the invitation holds.",
)
def add(name: str, root: Path, quota: int | None, expires: int) -> None:
    """Invite NAME. Prints the invitation and nothing else: it holds a secret, works once, expires.

    A name that was invited and has not enrolled gets a new invitation; the old one is void.
    """
    config = Config.load(root)
    host, port = parse_address(_public_address(root, config))
    pin = server_keys.load(root / "keys").server_id
    invitation = Invitation(host, port, name, pin, secrets.token_bytes(TOKEN_SIZE))
    request = UserAdd(
        user=name,
        token_sha256=invitation.token_sha256,
        expires=int(time.time()) + expires,
        quota=config.quota if quota is None else quota,
    )
    operator_client.ask(root, [request])
    click.echo(invitation.to_text())


def _public_address(root: Path, config: Config) -> str:
    """Where the invitation sends the user. Raises `ConfigError` where nothing says it."""
    address = config.public or operator_client.running_address(root)
    if address is None or parse_address(address)[0] in _EVERYWHERE:
        raise ConfigError(
            "nothing says at which address users reach this daemon",
            f'set `public = "HOST:PORT"` in {root / "sfsd.toml"}',
        )
    return address


@command.command("list")
@root_option
@json_option
def list_(root: Path, as_json: bool) -> None:
    """List all accounts, the invited ones too."""
    for account in operator_client.accounts(root):
        if as_json:
            answer_json(_as_object(account))
        else:
            state = _state(account)
            answer(f"{account.user:<32} {state:<9} {account.files:>8} {account.used:>15}")


@command.command()
@_name
@root_option
@json_option
def show(name: str, root: Path, as_json: bool) -> None:
    """Show one account."""
    page = cast(AccountsPage, operator_client.ask(root, [UserShow(name)])[0])
    (account,) = page.accounts
    if as_json:
        answer_json(_as_object(account))
        return
    answer(f"user         {account.user}")
    answer(f"state        {_state(account)}")
    answer(f"fingerprint  {account.fingerprint.hex() or '-'}")
    answer(f"keys         generation {account.generation}, {account.wrap_alg or '-'}")
    answer(f"rotate by    {human_time(account.due) if account.due else '-'}")
    answer(f"invited to   {human_time(account.invited_until) if account.invited_until else '-'}")
    answer(f"stored       {account.files} files, {account.used} bytes")
    answer(f"quota        {account.quota or 'none'}")


@command.command()
@_name
@root_option
@reason_option("For the log.")
def disable(name: str, root: Path, reason: str) -> None:
    """Refuse NAME from now on, and close the sessions he has."""
    operator_client.ask(root, [UserAccess(name, True, reason)])


@command.command()
@_name
@root_option
@reason_option("For the log.")
def enable(name: str, root: Path, reason: str) -> None:
    """Let NAME in again."""
    operator_client.ask(root, [UserAccess(name, False, reason)])


@command.command("quota")
@_name
@click.argument("size", callback=parsed(parse_size))
@root_option
def set_quota(name: str, size: int, root: Path) -> None:
    """Let NAME keep SIZE bytes of ciphertext (10GB, 512MiB; 0: no limit). What is there stays."""
    operator_client.ask(root, [UserQuota(name, size)])


def _state(account: Account) -> str:
    if account.disabled:
        return "disabled"
    return "enrolled" if account.fingerprint else "invited"


def _as_object(account: Account) -> dict[str, object]:
    return {
        "user": account.user,
        "state": _state(account),
        "fingerprint": account.fingerprint.hex(),
        "generation": account.generation,
        "wrap_alg": account.wrap_alg,
        "created": account.created,
        "due": account.due,
        "expires": account.expires,
        "invited_until": account.invited_until,
        "used": account.used,
        "quota": account.quota,
        "files": account.files,
    }
