"""`sfsd restore`: make a root of a backup."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.codec.terminal_text import counted
from protocol.codec.values import as_dict
from sfsd.commands import answer, answer_json, json_option
from sfsd.commands.fsck import describe
from sfsd.errors import CommandError
from sfsd.storage.restore import restore


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The new root: a folder that is empty or does not exist.",
)
@json_option
def command(folder: Path, root: Path, as_json: bool) -> None:
    """Copy the backup DIR to a new root, and compare it with its log.

    DIR is one backup, or a folder of backups, of which the newest is taken. Everything is read and
    compared. Damaged files are named, the rest is restored, and the exit code is 5. Nothing outside
    DIR is read: links in it are left out. An existing root is never changed.

    Do not start the old daemon again. Users whose clients have seen entries that the backup does
    not have run `sfsc audit accept`.

    Example: sfsd restore /backup/sfsd --root /var/lib/sfsd
    """
    made = restore(folder, root)
    if as_json:
        damaged = [as_dict(one) for one in made.damaged]
        answer_json(as_dict(made) | {"damaged": damaged})
    else:
        answer(f"backup   {made.backup}")
        answer(f"log      {counted(made.entries, 'entry', 'entries')}, the last of {made.time}")
        answer(f"files    {made.files}")
        for one in made.damaged:
            answer(describe(one))
        answer("users whose clients have seen more run `sfsc audit accept`")
    if made.damaged:
        raise CommandError(
            f"{counted(len(made.damaged), 'difference')} from the log; see above",
            "the root can be served without these files; copy them from another backup first",
            exit_code=CommandError.DAMAGED,
        )
