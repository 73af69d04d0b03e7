"""`sfsc audit`: the log, for whom it concerns."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, BinaryIO

import click

import sfsc
from protocol.codec.terminal_text import printable, printable_lines
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.log.audit import LogEvent

_MAX_FILE = 256 * 1024


@click.group(short_help="Read and verify the server's log.")
def command() -> None:
    """Read what the server's log says of you, verify it, and compare it with others."""


@command.command()
@click.argument("name", required=False)
@click.pass_obj
def log(context: Context, name: str | None) -> None:
    """Show who did what, when: in your account, or with the file NAME.

    Every line was proven to stand in the log, none is left out. Changes are signed by who made
    them; that somebody read a file is the server's word.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for event in store.audit_log(name):
            if context.json:
                terminal.answer_json(dataclasses.asdict(event))
            else:
                terminal.answer(_line(event))


def _line(event: LogEvent) -> str:
    what = event.name or event.file_id or ""
    version = f" version {event.version}" if event.version else ""
    said = " ".join(f"{key}={json.dumps(value)}" for key, value in event.detail.items())
    text = f"{event.seq:>8}  {event.time}  {event.op:<12} {event.actor:<12} {what}{version} {said}"
    return printable(text.rstrip())


@command.command()
@click.pass_obj
def verify(context: Context) -> None:
    """Check your whole history: nothing left out, every change signed by you, log and store agree.

    Exit code 5 where something is not so.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        found = store.audit_verify()
    if context.json:
        terminal.answer_json(dataclasses.asdict(found))
        return
    terminal.answer(f"entries     {found.entries} of yours in a log of {found.log_size}, no gap")
    terminal.answer(f"changes     {found.records}, each signed with a key of yours")
    terminal.answer(f"statements  {found.statements}, all of them of your chain")
    terminal.answer(f"files       {found.files}, the same in store and log")


@command.command()
@click.argument("file", type=click.File("rb"))
@click.option("--vkey", help="The log's verification key, where this machine has no account there.")
@click.pass_obj
def check(context: Context, file: BinaryIO, vkey: str | None) -> None:
    """Verify FILE, a `put --receipt`, without the server and without any key of the account."""
    proven = sfsc.check_proof(file.read(_MAX_FILE), home=context.home, vkey=vkey)
    if context.json:
        terminal.answer_json(dataclasses.asdict(proven))
        return
    terminal.answer(
        f"entry       {proven.seq} of a log that had {proven.log_size}, {proven.origin}"
    )
    terminal.answer(f"time        {printable(proven.time)}")
    terminal.answer(f"what        {printable(f'{proven.op} by {proven.actor}')}")
    if proven.file_id is not None:
        version = f" version {proven.version}" if proven.version else ""
        terminal.answer(f"file        {printable(str(proven.owner))}:{proven.file_id}{version}")


@command.command("checkpoint")
@click.pass_obj
def checkpoint_(context: Context) -> None:
    """Print the newest proven state of the log, signed by the server, for others to compare."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        note = store.checkpoint().decode()
    # A server may sign lines beside those that we know: to a terminal they go as all foreign text.
    terminal.write(printable_lines(note) if sys.stdout.isatty() else note)


@command.command()
@click.argument("file", type=click.File("rb"))
@click.pass_obj
def compare(context: Context, file: BinaryIO) -> None:
    """Check that FILE, somebody else's `audit checkpoint`, is of the log that you see.

    Where it is not, the server has told two stories: exit code 5, and both are kept as evidence.
    """
    note = file.read(_MAX_FILE)
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        theirs, ours = store.audit_compare(note)
    if context.json:
        terminal.answer_json({"theirs": theirs, "ours": ours, "one_log": True})
    else:
        terminal.answer(f"one log: {theirs} entries there, {ours} here")


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def accept(context: Context, *, yes: bool) -> None:
    """Take the server's log as it is now for the truth, after it has told two stories.

    What was known of it, and of your files, is forgotten; the evidence stays where it is. Right
    where the operator has put back a backup and says so; else ask others first.
    """
    if not yes and terminal.ask("Forget what this server said before? [yes/no] ") != "yes":
        raise UsageError("nothing was accepted", "answer yes, or say --yes")
    size, kept = sfsc.accept(context.home, passphrase=terminal.passphrase_source())
    if context.json:
        terminal.answer_json({"log_size": size, "evidence": kept})
    else:
        terminal.say(f"the server's log of {size} entries counts from now on")
