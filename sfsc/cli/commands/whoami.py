"""`sfsc whoami`: who this keyring is, without asking the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import sfsc
from sfsc.cli import terminal
from sfsc.cli.commands import Context

if TYPE_CHECKING:
    from sfsc.keys.account_info import Whoami


@click.command(short_help="Show who you are, and your key's fingerprint.")
@click.pass_obj
def command(context: Context) -> None:
    """Show your name, your server, and the fingerprint others can compare."""
    me = sfsc.whoami(context.home, passphrase=terminal.passphrase_source())
    show(me, as_json=context.json)


def show(me: Whoami, *, as_json: bool) -> None:
    """Answer with an identity."""
    if as_json:
        terminal.answer_json(
            {
                "user": me.user,
                "address": me.address,
                "server": me.server_id.hex(),
                "fingerprint": me.fingerprint.hex(),
                "generation": me.generation,
                "key_type": me.key_type,
            }
        )
        return
    terminal.answer(f"user         {me.user}")
    terminal.answer(f"address      {me.address}")
    terminal.answer(f"server       {me.server_id.hex()}")
    terminal.answer(f"fingerprint  {me.fingerprint.hex()}")
    terminal.answer(f"keys         generation {me.generation}, {me.key_type}")
