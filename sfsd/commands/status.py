"""`sfsd status`: how the daemon is."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from protocol.codec.terminal_text import human_time
from protocol.wire.messages.accounts import Status, StatusAnswer
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option


@click.command()
@root_option
@json_option
def command(root: Path, as_json: bool) -> None:
    """Show where the daemon listens, since when, and how full log and disk are."""
    status = cast(StatusAnswer, operator_client.ask(root, [Status()])[0])
    if as_json:
        answer_json(
            {
                "version": status.version,
                "address": status.address,
                "started": status.started,
                "log_size": status.log_size,
                "connections": status.connections,
                "sessions": status.sessions,
                "users": status.users,
                "disk_free": status.disk_free,
                "failed": status.failed,
            }
        )
        return
    running = f"{status.address}, since {human_time(status.started)}" if status.address else "no"
    answer(f"running      {running}")
    answer(f"version      {status.version}")
    answer(f"connections  {status.connections}, {status.sessions} logged in")
    answer(f"users        {status.users}")
    answer(f"log          {status.log_size} entries")
    answer(f"disk         {status.disk_free} bytes free")
    if status.failed:
        answer(f"FAILED       {status.failed}")
