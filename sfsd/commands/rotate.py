"""`sfsd rotate`: require users to rotate their keys."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.wire.messages.accounts import ForceRotation
from sfsd.commands import answer, operator_client, reason_option, root_option, user_name


@click.command()
@click.argument("name", metavar="USER", required=False, callback=user_name)
@click.option("--all", "everyone", is_flag=True, help="Every enrolled user.")
@reason_option("Shown to the user, and logged.")
@root_option
def command(root: Path, name: str | None, *, everyone: bool, reason: str) -> None:
    """Require USER to rotate their keys; until then, the account can only read.

    The user's next sfsc command rotates them.

    Example: sfsd rotate alice --reason "laptop lost"
    """
    if (name is None) != everyone:
        raise click.UsageError("give either a USER or --all")
    names = _enrolled(root) if name is None else [name]
    operator_client.send_requests(root, [ForceRotation(one, reason) for one in names])
    for one in names:
        answer(one)


def _enrolled(root: Path) -> list[str]:
    return [account.user for account in operator_client.all_accounts(root) if account.fingerprint]
