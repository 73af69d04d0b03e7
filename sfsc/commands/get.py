"""`sfsc get`: fetch and decrypt."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

import click

import sfsc
from sfsc import terminal
from sfsc.commands import Context


@click.command(short_help="Fetch and decrypt a file.")
@click.argument("name")
@click.option("-o", "--output", metavar="PATH", help="Where to write; `-` is stdout.")
@click.option("--version", type=click.IntRange(min=1), help="An older version.")
@click.pass_obj
def command(context: Context, name: str, output: str | None, version: int | None) -> None:
    """Fetch NAME and write it to -o PATH, else to its last part in the present folder.

    The file appears whole and verified, or not at all. To stdout, only verified bytes are
    written, but a later part may still turn out to be bad: mind the exit code.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        if output == "-":
            store.get(name, sys.stdout.buffer, version=version)
            return
        target = Path(output) if output is not None else Path(PurePosixPath(name).name)
        got = store.get(
            name, target / PurePosixPath(name).name if target.is_dir() else target, version=version
        )
    if context.json:
        terminal.answer_json(
            {"name": got.name, "version": got.version, "size": got.size, "path": str(got.path)}
        )
    else:
        size = terminal.human_size(got.size)
        terminal.say(f"{terminal.printable(str(got.path))}  version {got.version}, {size}")
