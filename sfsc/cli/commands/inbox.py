"""`sfsc inbox`: what others share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_time, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.stat import as_object

if TYPE_CHECKING:
    from sfsc.files.inbox import Shared


@click.command(short_help="List what others share with you.")
@click.pass_obj
def command(context: Context) -> None:
    """List what others let you read, as OWNER:NAME. `sfsc get OWNER:NAME` fetches it.

    An owner whom you never compared fingerprints with is marked `unverified`: so far only the
    server says who that is. `sfsc key verify OWNER FINGERPRINT` settles it.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        failures = terminal.Failures()
        for item in store.inbox(skip=failures):
            show(item, context, long=True)
        failures.check()


def show(item: Shared, context: Context, *, long: bool) -> None:
    """Answer with one shared file."""
    entry = item.entry
    if context.json:
        about = {"owner": item.owner, "expires": item.expires, "verified": item.verified}
        terminal.answer_json({**about, **as_object(entry)})
        return
    name = f"{item.owner}:{printable(entry.name)}"
    if not long:
        terminal.answer(name)
        return
    size, modified = terminal.human_size(entry.size), human_time(entry.mtime)
    until = f" {terminal.until(item.expires)}" if item.expires else ""
    unverified = "" if item.verified else "  unverified"
    terminal.answer(f"{entry.version:>4}  {size:>11}  {modified}  {name}{until}{unverified}")
