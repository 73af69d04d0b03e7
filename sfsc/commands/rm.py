"""`sfsc rm`: delete."""

from __future__ import annotations

import click

import sfsc
from sfsc import terminal
from sfsc.commands import Context


@click.command(short_help="Delete files.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def command(context: Context, names: tuple[str, ...]) -> None:
    """Delete each NAME. A signed record of the deletion stays, and so do the versions, as trash."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for name in names:
            store.rm(name)
            if context.json:
                terminal.answer_json({"name": name, "deleted": True})
            else:
                terminal.say(f"deleted {terminal.printable(name)}")
