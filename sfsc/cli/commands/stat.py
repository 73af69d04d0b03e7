"""`sfsc stat`: one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_time, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context

if TYPE_CHECKING:
    from sfsc.trust.file_records import Entry


@click.command(short_help="Show what is known about a file.")
@click.argument("name")
@click.pass_obj
def command(context: Context, name: str) -> None:
    """Show NAME's version, sizes, times and id, all of it verified."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        entry, readers = store.stat(name), store.readers(name)
    if context.json:
        shared = [{"user": one.user, "expires": one.expires} for one in readers]
        terminal.answer_json({**as_object(entry), "readers": shared})
        return
    terminal.answer(f"name        {printable(entry.name)}")
    terminal.answer(f"version     {entry.version} (revision {entry.revision})")
    terminal.answer(f"size        {entry.size} bytes, {entry.ciphertext_size} encrypted")
    terminal.answer(f"modified    {human_time(entry.mtime)}")
    terminal.answer(f"stored      {human_time(entry.created)}")
    terminal.answer(f"file id     {entry.file_id}")
    for one in readers:
        terminal.answer(f"shared      with {one.user}{terminal.until(one.expires)}")


def as_object(entry: Entry) -> dict[str, object]:
    """An entry as `--json` shows it; times in unix seconds, sizes in bytes."""
    return {
        "name": entry.name,
        "file_id": entry.file_id,
        "version": entry.version,
        "revision": entry.revision,
        "size": entry.size,
        "ciphertext_size": entry.ciphertext_size,
        "mtime": entry.mtime,
        "mode": entry.mode,
        "created": entry.created,
    }
