"""`sfsd status`: show the state of the daemon, and tell whether it is well."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.codec.terminal_text import counted, human_size, human_time
from protocol.codec.values import as_dict
from protocol.wire.messages.accounts import Status, StatusAnswer
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option, utc_option
from sfsd.commands.scrub import last_pass, running_pass, scrub_fields
from sfsd.errors import CommandError, SfsdError
from sfsd.log.journal import log_warnings


@click.command()
@root_option
@json_option
@utc_option
@click.option("--check", is_flag=True, help="Exit with 1 and say why if the daemon is not well.")
def command(root: Path, as_json: bool, utc: bool, check: bool) -> int:
    """Show where the daemon listens, since when, and the size of the log and the disk.

    With --check, print nothing and exit with 0 if the daemon runs, can write to its disks, has
    signed what it has logged, has room and no failed job (the bounds are in [health] of sfsd.toml).
    Else print the reasons, one a line, and exit with 1. Asking adds nothing to the log.

    Example: sfsd status --root /srv/sfs

    Example: sfsd status --check --root /srv/sfs
    """
    if check:
        return _check(root, as_json)
    status = operator_client.ask_status(root, Status())
    warnings = log_warnings(root / "logs")
    if as_json:
        answer_json({**_as_dict(status), "warnings": warnings})
        return 0
    since = human_time(status.started, local=not utc)
    running = f"{status.address}, since {since}" if status.address else "no"
    answer(f"running      {running}")
    answer(f"version      {status.version}")
    answer(f"connections  {status.connections}, of which {status.sessions} logged in")
    answer(f"users        {status.users}")
    answer(f"log          {counted(status.log_size, 'entry', 'entries')}")
    files = "" if status.files_free is None else f", room for {counted(status.files_free, 'file')}"
    answer(f"disk         {human_size(status.disk_free)} free{files}")
    now = running_pass(status.scrub, utc=utc)
    scrub = f"running {now}" if now else last_pass(status.scrub, utc=utc)
    answer(f"scrub        {scrub}")
    if status.metrics:
        answer(f"metrics      http://{status.metrics}/metrics")
    for warning in warnings:
        answer(f"WARNING      {warning}")
    for user in status.damaged:
        answer(f"DAMAGED      the account of {user}: `sfsd fsck` shows more")
    if status.scrub.damage:
        damage = counted(status.scrub.damage, "file")
        answer(f"DAMAGED      {damage} of the store: `sfsd scrub` shows which")
    if status.failed:
        answer(f"FAILED       {status.failed}")
    return 0


def _as_dict(status: StatusAnswer) -> dict[str, object]:
    return as_dict(status) | {"scrub": scrub_fields(status.scrub)}


def _check(root: Path, as_json: bool) -> int:
    """Print why the daemon of `root` is not well; return the exit code."""
    shown: dict[str, object] = {}
    try:
        status = operator_client.ask_running(root, Status(check=True))
    except SfsdError as exc:
        reasons = [exc.cause]
    else:
        reasons, shown = list(status.reasons), _as_dict(status)
    if as_json:
        answer_json({**shown, "healthy": not reasons, "reasons": reasons})
    else:
        for reason in reasons:
            answer(reason)
    return CommandError.exit_code if reasons else 0
