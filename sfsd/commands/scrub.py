"""`sfsd scrub`: show what the scrub has found, and have it begin now."""

from __future__ import annotations

from pathlib import Path

import click

from protocol.codec.terminal_text import counted, human_size, human_time
from protocol.codec.values import as_dict
from protocol.wire.messages.accounts import ScrubStatus, Status
from sfsd.commands import answer, answer_json, json_option, operator_client, root_option, utc_option
from sfsd.errors import CommandError


@click.command()
@root_option
@json_option
@utc_option
@click.option("--now", is_flag=True, help="Begin a pass now, or continue the one that was begun.")
def command(root: Path, as_json: bool, utc: bool, now: bool) -> None:
    """Show how far the scrub has come, and which files differ from the log.

    The daemon compares every file of the store with the log, as often as scrub.every in sfsd.toml
    says, while it serves. A damaged file stays in the list until a later pass finds it right, or
    its version is purged or given up. Exit code 5 if files are damaged.

    `sfsd fsck --read-data` does the same for a root that is not served, and repairs.

    Example: sfsd scrub --now
    """
    shown = operator_client.start_scrub(root) if now else operator_client.ask_status(root, Status())
    scrub = shown.scrub
    if as_json:
        answer_json(scrub_fields(scrub))
    else:
        answer(f"last pass  {last_pass(scrub, utc=utc)}")
        answer(f"running    {running_pass(scrub, utc=utc) or ('begins now' if now else 'no')}")
        for one in scrub.damaged:
            answer(f"DAMAGED    store/users/{one.path} (entry {one.seq}): {one.text}")
    if scrub.damage:
        raise CommandError(
            f"{counted(scrub.damage, 'damaged file')}",
            "restore them from a backup, or mark the versions as lost: `sfsd fsck --give-up`",
            exit_code=CommandError.DAMAGED,
        )


def scrub_fields(scrub: ScrubStatus) -> dict[str, object]:
    """Return the members of the JSON object."""
    return as_dict(scrub) | {"damaged": [as_dict(one) for one in scrub.damaged]}


def last_pass(scrub: ScrubStatus, *, utc: bool) -> str:
    """Return when the last whole pass ended and what it read, or that there was none."""
    if not scrub.last_finished:
        return "none yet"
    ended = human_time(scrub.last_finished, local=not utc)
    return f"ended {ended}: {counted(scrub.last_files, 'file')}, {human_size(scrub.last_bytes)}"


def running_pass(scrub: ScrubStatus, *, utc: bool) -> str:
    """Return how far the running pass is; empty if none runs."""
    if not scrub.began:
        return ""
    began = human_time(scrub.began, local=not utc)
    of = f" of about {scrub.last_files}" if scrub.last_files else ""
    return f"since {began}: {scrub.files}{of} files, {human_size(scrub.bytes)}"
