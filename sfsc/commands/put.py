"""`sfsc put`: encrypt and store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

import sfsc
from sfsc import terminal
from sfsc.client import Put
from sfsc.commands import Context
from sfsc.errors import LocalError, UsageError


@click.command(short_help="Encrypt and store files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--name", help="Name to store it under; needed for `-` (stdin), one FILE only.")
@click.pass_obj
def command(context: Context, files: tuple[str, ...], name: str | None) -> None:
    """Encrypt each FILE and store it under its own path, or one under --name.

    A file that is stored already gets a new version. `-` reads stdin, of any length. A path that
    is absolute or climbs out of the present folder is stored under its last part.
    """
    items = list(_items(files, name))
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for done in store.put_many(items):
            _show(done, as_json=context.json)


def _items(
    files: tuple[str, ...], name: str | None
) -> Iterator[tuple[Path | BinaryIO, str | None]]:
    if name is not None and len(files) > 1:
        raise UsageError("--name is for one file", "leave it out, or put the files one by one")
    for file in files:
        if file == "-":
            if name is None:
                raise UsageError("stdin has no name", "give it one with --name")
            yield sys.stdin.buffer, name
        else:
            path = Path(file)
            # Looked at before anything is sent: a missing fifth file is no half-done command.
            if not path.is_file():
                raise LocalError(f"no such file: {file}", "folders are stored file by file")
            yield path, name


def _show(done: Put, *, as_json: bool) -> None:
    if as_json:
        terminal.answer_json(
            {
                "name": done.name,
                "file_id": done.file_id,
                "version": done.version,
                "size": done.size,
            }
        )
    else:
        name = terminal.printable(done.name)
        terminal.answer(f"{name}  version {done.version}, {terminal.human_size(done.size)}")
