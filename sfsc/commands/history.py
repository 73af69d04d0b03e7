"""`sfsc history`: all that was ever recorded of one file."""

from __future__ import annotations

import dataclasses

import click

import sfsc
from sfsc import terminal
from sfsc.client import Revision
from sfsc.commands import Context


@click.command(short_help="Show every version of a file.")
@click.argument("name")
@click.pass_obj
def command(context: Context, name: str) -> None:
    """Show every record of NAME, oldest first, deleted or not. All of them are verified.

    `sfsc get NAME --version N` fetches a version, `sfsc restore` makes it the current one.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        revisions = store.history(name)
    for one in revisions:
        if context.json:
            terminal.answer_json(dataclasses.asdict(one))
        else:
            terminal.answer(_line(one))


def _line(one: Revision) -> str:
    when = terminal.human_time(one.created)
    if one.version is None or one.size is None:
        about = f"versions {', '.join(map(str, one.purged))}" if one.purged else ""
        return f"{one.revision:>4}  {when}  {one.op:<8} {about}".rstrip()
    origin = "" if one.restored is None else f"  from version {one.restored}"
    gone = "" if one.kept else "  (content removed)"
    size = terminal.human_size(one.size)
    return f"{one.revision:>4}  {when}  {one.op:<8} version {one.version}, {size}{origin}{gone}"
