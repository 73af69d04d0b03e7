"""`sfsc status`: the account and its server."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import human_time, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context


@click.command(short_help="Show the server, your usage and your keys' age.")
@click.pass_obj
def command(context: Context) -> None:
    """Log in, check the log's consistency, and show how the account stands."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        status = store.status()
    if context.json:
        terminal.answer_json(
            {
                "user": status.user,
                "address": status.address,
                "server": status.server_id.hex(),
                "used": status.used,
                "quota": status.quota,
                "files": status.files,
                "log_size": status.log_size,
                "generation": status.generation,
                "due": status.due,
                "expires": status.expires,
                "log_vkey": status.log_vkey,
            }
        )
        return
    quota = f"of {terminal.human_size(status.quota)}" if status.quota else "no quota"
    terminal.answer(f"user      {status.user} at {status.address}")
    terminal.answer(f"server    {status.server_id.hex()}")
    used = terminal.human_size(status.used)
    terminal.answer(f"stored    {status.files} files, {used}, {quota}")
    terminal.answer(f"log       {status.log_size} entries, consistent with what was seen before")
    terminal.answer(f"log key   {printable(status.log_vkey)}")
    due = human_time(status.due)
    terminal.answer(f"keys      generation {status.generation}, to be rotated by {due}")
