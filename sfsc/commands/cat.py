"""`sfsc cat`: files to stdout."""

from __future__ import annotations

import sys

import click

import sfsc
from sfsc import terminal
from sfsc.commands import Context


@click.command(short_help="Write files to stdout.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--version", type=click.IntRange(min=1), help="An older version of one NAME.")
@click.pass_obj
def command(context: Context, names: tuple[str, ...], version: int | None) -> None:
    """Fetch each NAME, decrypt it and write it to stdout, one behind the other.

    Only verified bytes are written, but a later part may still turn out to be bad: mind the exit
    code. The first NAME that cannot be fetched ends it.
    """
    if version is not None and len(names) > 1:
        raise click.UsageError("--version is for one NAME")
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for name in names:
            store.get(name, sys.stdout.buffer, version=version)
