"""`sfsc verify-rotation`: that the last rotation left nothing behind."""

from __future__ import annotations

import click

import sfsc
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.rotate import show


@click.command(short_help="Check that nothing of an older key is left.")
@click.pass_obj
def command(context: Context) -> None:
    """Check every version of every file: wrapped for the present key, its records signed or
    endorsed with it. Exit code 5 where one is not.
    """
    with sfsc.connect(
        context.home, passphrase=terminal.passphrase_source(), auto_rotate=False
    ) as store:
        show(store.verify_rotation(), as_json=context.json)
