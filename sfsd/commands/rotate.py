"""`sfsd rotate`: require users to rotate their keys."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.wire.messages.accounts import ForceRotation
from sfsd.commands import answer, operator_client, reason_option, root_option, user_name
from sfsd.errors import CommandError


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
    names, damaged = ([name], None) if name is not None else _enrolled(root)
    operator_client.send_requests(root, [ForceRotation(one, reason) for one in names])
    for one in names:
        answer(one)
    if damaged is not None:
        raise damaged


def _enrolled(root: Path) -> tuple[list[str], CommandError | None]:
    """Return all enrolled users, and the error that names damaged accounts."""
    names: list[str] = []
    try:
        for account in operator_client.all_accounts(root):
            if account.fingerprint:
                names.append(account.user)  # noqa: PERF401 - kept if the error follows
    except CommandError as exc:
        if exc.exit_code != CommandError.DAMAGED:
            raise
        return names, exc
    return names, None
