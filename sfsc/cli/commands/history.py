"""`sfsc history`: all that was ever recorded of one file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_time
from sfsc.cli import terminal
from sfsc.cli.commands import Context

if TYPE_CHECKING:
    from sfsc.files.history import Revision


@click.command(short_help="Show every version of a file.")
@click.argument("name")
@click.option(
    "--prune",
    type=click.IntRange(min=1),
    metavar="KEEP",
    help="First remove, for good, the content of all versions but the newest KEEP.",
)
@click.pass_obj
def command(context: Context, name: str, prune: int | None) -> None:
    """Show every record of NAME, oldest first, deleted or not. All of them are verified.

    `sfsc get NAME --version N` fetches a version, `sfsc restore` makes it the current one. What a
    file held before it was renamed is in the history of its old name.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        if prune is not None:
            gone = store.prune(name, keep=prune)
            terminal.say(f"the content of {len(gone)} versions was removed")
        revisions = store.history(name)
    for one in revisions:
        if context.json:
            terminal.answer_json(dataclasses.asdict(one))
        else:
            terminal.answer(_line(one))


def _line(one: Revision) -> str:
    when = human_time(one.created)
    undone = "  (by a stolen key, undone)" if one.voided else ""
    if one.version is None or one.size is None:
        about = f"versions {', '.join(map(str, one.purged))}" if one.purged else ""
        op = one.op if one.moved is None else "moved"  # away; the file's id is all that is known
        return f"{one.revision:>4}  {when}  {op:<8} {about}".rstrip() + undone
    origin = "" if one.restored is None else f"  from version {one.restored}"
    gone = "" if one.kept else "  (content removed)"
    about = f"version {one.version}, {terminal.human_size(one.size)}{origin}{gone}{undone}"
    return f"{one.revision:>4}  {when}  {one.op:<8} {about}"
