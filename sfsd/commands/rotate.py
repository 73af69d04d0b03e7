"""`sfsd rotate`: users must rotate their keys."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.wire.messages.accounts import ForceRotation
from sfsd.commands import answer, operator_client, reason_option, root_option, user_name


@click.command()
@click.argument("name", metavar="USER", required=False, callback=user_name)
@click.option("--all", "everyone", is_flag=True, help="Every enrolled user.")
@reason_option("Told to the user, and logged.")
@root_option
def command(root: Path, name: str | None, *, everyone: bool, reason: str) -> None:
    """Let USER only read until he has rotated his keys. His next sfsc command does it."""
    if (name is None) != everyone:
        raise click.UsageError("a USER, or --all: give one of the two")
    names = _enrolled(root) if name is None else [name]
    operator_client.ask(root, [ForceRotation(one, reason) for one in names])
    for one in names:
        answer(one)


def _enrolled(root: Path) -> list[str]:
    return [account.user for account in operator_client.accounts(root) if account.fingerprint]
