"""`sfsc get`: fetch and decrypt."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

import click

import sfsc
from sfsc import terminal
from sfsc.client import Got
from sfsc.commands import Context
from sfsc.errors import UsageError


@click.command(short_help="Fetch and decrypt a file.")
@click.argument("name")
@click.option("-o", "--output", metavar="PATH", help="Where to write; `-` is stdout.")
@click.option(
    "-r", "--recursive", is_flag=True, help="NAME is a folder (`/`: all): every file in it."
)
@click.option("--version", type=click.IntRange(min=1), help="An older version.")
@click.pass_obj
def command(
    context: Context, name: str, output: str | None, *, recursive: bool, version: int | None
) -> None:
    """Fetch NAME and write it to -o PATH, else to its last part in the present folder.

    The file appears whole and verified, or not at all. To stdout, only verified bytes are
    written, but a later part may still turn out to be bad: mind the exit code.

    With -r the folder NAME arrives below -o PATH, else below the present folder. What is there is
    replaced; links there are not followed.
    """
    with (
        terminal.Bar() as bar,
        sfsc.connect(context.home, passphrase=terminal.passphrase_source(), progress=bar) as store,
    ):
        if recursive:
            if version is not None or output == "-":
                raise UsageError("-r goes with neither --version nor `-`", "leave one out")
            failures = terminal.Failures()
            for got in store.get_tree(name, Path(output or "."), skip=failures):
                _show(got, context)
            failures.check()
            return
        if output == "-":
            store.get(name, sys.stdout.buffer, version=version)
            return
        target = Path(output) if output is not None else Path(PurePosixPath(name).name)
        got = store.get(
            name, target / PurePosixPath(name).name if target.is_dir() else target, version=version
        )
    _show(got, context)


def _show(got: Got, context: Context) -> None:
    if context.json:
        terminal.answer_json(
            {"name": got.name, "version": got.version, "size": got.size, "path": str(got.path)}
        )
    else:
        size = terminal.human_size(got.size)
        terminal.say(f"{terminal.printable(str(got.path))}  version {got.version}, {size}")
