"""`sfsd status`: show the state of the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click
from msgspec import structs

from protocol.codec.terminal_text import counted, human_time
from protocol.wire.messages.accounts import Status, StatusAnswer
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option, utc_option
from sfsd.log.journal import log_warnings


@click.command()
@root_option
@json_option
@utc_option
def command(root: Path, as_json: bool, utc: bool) -> None:
    """Show where the daemon listens, since when, and the size of the log and the disk.

    Example: sfsd status --root /srv/sfs
    """
    status = cast(StatusAnswer, operator_client.send_requests(root, [Status()])[0])
    warnings = log_warnings(root / "logs")
    if as_json:
        answer_json({**structs.asdict(status), "warnings": warnings})
        return
    since = human_time(status.started, local=not utc)
    running = f"{status.address}, since {since}" if status.address else "no"
    answer(f"running      {running}")
    answer(f"version      {status.version}")
    answer(f"connections  {status.connections}, of which {status.sessions} logged in")
    answer(f"users        {status.users}")
    answer(f"log          {counted(status.log_size, 'entry', 'entries')}")
    answer(f"disk         {counted(status.disk_free, 'byte')} free")
    for warning in warnings:
        answer(f"WARNING      {warning}")
    for user in status.damaged:
        answer(f"DAMAGED      the account of {user}: `sfsd fsck` shows more")
    if status.failed:
        answer(f"FAILED       {status.failed}")
