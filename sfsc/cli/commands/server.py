"""`sfsc server`: where the account's server is."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context


@click.group()
def server() -> None:
    """Say where your server is, if it has moved or has several addresses.

    Example: sfsc server set nas.example:7373
    """


@server.command("set")
@click.argument("addresses", metavar="HOST:PORT[,HOST:PORT...]")
@click.pass_obj
def server_set(context: Context, addresses: str) -> None:
    """Connect to the first of these addresses that answers, from now on.

    They must be addresses of your server: each is asked for its key, which never changes. Nothing
    is changed if one is another server, or if none answers.

    Example: sfsc server set nas.example:7373,192.168.1.5:7373
    """
    wanted = [one.strip() for one in addresses.split(",")]
    source = terminal.passphrase_source()
    found = sfsc.set_addresses(wanted, home=context.home, passphrase=source)
    context.confirm({"addresses": found}, f"your server is at {printable(', '.join(found))}")
