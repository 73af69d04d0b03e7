"""`sfsc put`: encrypt and store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import LocalError, UsageError

if TYPE_CHECKING:
    from sfsc.transfer.upload import Put


@click.command(short_help="Encrypt and store files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-r", "--recursive", is_flag=True, help="Folders too, with every file in them.")
@click.option("--name", help="Name to store it under; needed for `-` (stdin), one FILE only.")
@click.option(
    "--if-version",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only where version N is the current one (0: no such file), one FILE only.",
)
@click.option(
    "--receipt",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write the proof that the log has it (C2SP tlog-proof), one FILE only.",
)
@click.option("--no-overwrite", is_flag=True, help="Only under names that have no file.")
@click.pass_obj
def command(
    context: Context,
    files: tuple[str, ...],
    *,
    recursive: bool,
    name: str | None,
    if_version: int | None,
    receipt: Path | None,
    no_overwrite: bool,
) -> None:
    """Encrypt each FILE and store it under its own path, or one under --name.

    A file that is stored already gets a new version. `-` reads stdin, of any length. A path that
    is absolute or climbs out of the present folder is stored under its last part.

    With -r a FILE that is a folder is stored with all that is in it, below its own path or --name.
    Links, pipes, devices and empty folders in it are left out; what cannot be read is named, and
    the others are stored all the same: exit code 1.

    With --if-version and --no-overwrite, a FILE whose name has another version is not stored: exit
    code 6. It ends there; what stands before it was stored.
    """
    expected = _expected(files, if_version, no_overwrite=no_overwrite)
    folders = [Path(file) for file in files if recursive and os.path.isdir(file)]
    if folders and (expected is not None or (name is not None and len(files) > 1)):
        raise UsageError("a folder is stored whole, and one under --name", "leave something out")
    items = list(_items([file for file in files if Path(file) not in folders], name))
    if receipt is not None and (len(items) != 1 or folders):
        raise UsageError("--receipt is for one file", "put the files one by one")
    if receipt is not None and os.path.exists(receipt):
        # Before the file is stored: an error behind that would look as if it was not.
        raise LocalError(f"there is a file {receipt} already", "name another file")
    failures = terminal.Failures()
    with (
        terminal.Bar() as bar,
        sfsc.connect(context.home, passphrase=terminal.passphrase_source(), progress=bar) as store,
    ):
        for folder in folders:
            for done in store.put_tree(folder, name=name, skip=failures):
                _show(done, as_json=context.json)
        if expected is None and receipt is None:
            stored = store.put_many(items)
        else:
            # One by one: whether a name is taken is the server's word on each.
            stored = (store.put(file, name=as_name, expected=expected) for file, as_name in items)
        for done in stored:
            if receipt is not None:
                terminal.write_private(receipt, store.proof_of(done))
            _show(done, as_json=context.json)
    failures.check()


def _expected(files: tuple[str, ...], if_version: int | None, *, no_overwrite: bool) -> int | None:
    """The version that must be current for a file to be stored, None for any."""
    if no_overwrite and if_version is not None:
        raise UsageError("--no-overwrite and --if-version exclude each other", "give one of them")
    if if_version is not None and len(files) > 1:
        raise UsageError("--if-version is for one file", "put the files one by one")
    return 0 if no_overwrite else if_version


def _items(files: Sequence[str], name: str | None) -> Iterator[tuple[Path | BinaryIO, str | None]]:
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
            if not os.path.isfile(path):
                raise _no_file(file)
            yield path, name


def _no_file(file: str) -> LocalError:
    """What is under the path `file`, which is no regular file."""
    if os.path.isdir(file):
        return LocalError(f"{file} is a folder", "a folder is stored with -r")
    if os.path.exists(file):
        hint = "what a program writes is stored by `… | sfsc put - --name NAME`"
        return LocalError(f"{file} is neither a file nor a folder", hint)
    if os.path.islink(file):
        return LocalError(f"{file} is a link to nothing")
    return LocalError(f"no such file: {file}")


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
        name = printable(done.name)
        terminal.answer(f"{name}  version {done.version}, {terminal.human_size(done.size)}")
