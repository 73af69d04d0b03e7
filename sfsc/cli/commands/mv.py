"""`sfsc mv`: rename."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.stat import as_object


@click.command(short_help="Rename a file.")
@click.argument("name")
@click.argument("new_name")
@click.pass_obj
def command(context: Context, name: str, new_name: str) -> None:
    """Give the file NAME the name NEW_NAME. Nothing is sent anew.

    Where there is a file NEW_NAME already it is left alone: exit code 6. Older versions stay under
    the old name: see `sfsc history NAME`.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        entry = store.mv(name, new_name)
    if context.json:
        terminal.answer_json(as_object(entry))
    else:
        terminal.say(f"{printable(name)} is now {printable(entry.name)}")
