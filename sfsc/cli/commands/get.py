"""`sfsc get`: fetch and decrypt."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context, split_owner
from sfsc.cli.commands.share import shared_options, trusting
from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.transfer.download import Got


@click.command(short_help="Fetch and decrypt a file.")
@click.argument("name")
@click.option("-o", "--output", metavar="PATH", help="Where to write; `-` is stdout.")
@click.option(
    "-r", "--recursive", is_flag=True, help="NAME is a folder (`/`: all): every file in it."
)
@click.option("--version", type=click.IntRange(min=1), help="An older version.")
@shared_options
@click.pass_obj
def command(
    context: Context,
    name: str,
    output: str | None,
    *,
    recursive: bool,
    version: int | None,
    file_id: str | None,
    trust_first_use: bool,
) -> None:
    """Fetch NAME and write it to -o PATH, else to its last part in the present folder. OWNER:NAME
    is a file that OWNER shares with you.

    The file appears whole and verified, or not at all. To stdout, only verified bytes are
    written, but a later part may still turn out to be bad: mind the exit code.

    With -r the folder NAME arrives below -o PATH, else below the present folder. What is there is
    replaced; links there are not followed.
    """
    with (
        terminal.Bar() as bar,
        sfsc.connect(context.home, passphrase=terminal.passphrase_source(), progress=bar) as store,
    ):
        owner, name = split_owner(store, name)
        if recursive:
            if version is not None or output == "-":
                raise UsageError("-r goes with neither --version nor `-`", "leave one out")
            failures = terminal.Failures()
            tree = trusting(
                lambda first_use: store.get_tree(
                    name, Path(output or "."), owner, skip=failures, trust_first_use=first_use
                ),
                first_use=trust_first_use,
            )
            for got in tree:
                _show(got, context)
            failures.check()
            return
        target: BinaryIO | Path = sys.stdout.buffer
        if output != "-":
            last = PurePosixPath(name).name
            path = Path(output) if output is not None else Path(last)
            target = path / last if os.path.isdir(path) else path
        with terminal.answering():
            if owner is None:
                got = store.get(name, target, version=version)
            else:
                got = trusting(
                    lambda first_use: store.get_shared(
                        owner,
                        name,
                        target,
                        version=version,
                        file_id=file_id,
                        trust_first_use=first_use,
                    ),
                    first_use=trust_first_use,
                )
    if output != "-":
        _show(got, context)


def _show(got: Got, context: Context) -> None:
    if context.json:
        terminal.answer_json(
            {"name": got.name, "version": got.version, "size": got.size, "path": str(got.path)}
        )
    else:
        size = terminal.human_size(got.size)
        terminal.say(f"{printable(str(got.path))}  version {got.version}, {size}")
