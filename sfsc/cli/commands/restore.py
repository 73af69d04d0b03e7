"""`sfsc restore`: bring an old content back."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.stat import as_object


@click.command(short_help="Bring a deleted file or an old version back.")
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="Which one; else the last before rm.")
@click.pass_obj
def command(context: Context, name: str, version: int | None) -> None:
    """Make an old content of NAME its newest version. Nothing is sent or encrypted anew.

    Without --version a deleted NAME gets back what it held last.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        entry = store.restore(name, version=version)
    if context.json:
        terminal.answer_json(as_object(entry))
    else:
        size = terminal.human_size(entry.size)
        terminal.answer(f"{printable(entry.name)}  version {entry.version}, {size}")
