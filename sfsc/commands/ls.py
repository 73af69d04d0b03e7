"""`sfsc ls`: what is stored."""

from __future__ import annotations

import click

import sfsc
from sfsc import terminal
from sfsc.commands import Context
from sfsc.commands.stat import as_object


@click.command(short_help="List your files.")
@click.argument("prefix", default="")
@click.option("-l", "--long", is_flag=True, help="Version, size and time too.")
@click.pass_obj
def command(context: Context, prefix: str, long: bool) -> None:
    """List your files by name, those that begin with PREFIX where it is given."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for entry in store.ls(prefix):
            if context.json:
                terminal.answer_json(as_object(entry))
            elif long:
                size = terminal.human_size(entry.size)
                modified = terminal.human_time(entry.mtime)
                name = terminal.printable(entry.name)
                terminal.answer(f"{entry.version:>4}  {size:>11}  {modified}  {name}")
            else:
                terminal.answer(terminal.printable(entry.name))
