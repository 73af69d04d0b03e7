"""`sfsc audit`: read and verify what the server's log has of the account."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO

import click

import sfsc
from protocol.codec.terminal_text import counted, printable, printable_lines
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.owners import split_owner
from sfsc.cli.suggestions import any_names, paths
from sfsc.errors import UsageError

if TYPE_CHECKING:
    from sfsc.log.receipts import VerifiedProof

_MAX_FILE = 256 * 1024


@click.group()
def audit() -> None:
    """Read what the server's log has of you, verify it, and compare it with others.

    Example: sfsc audit verify
    """


@audit.command("log")
@click.argument("name", required=False, shell_complete=any_names)
@click.pass_obj
def audit_log(context: Context, name: str | None) -> None:
    """Show who did what, and when. With NAME, only what concerns that file.

    Every line is proven to be in the log, and none is missing. Changes are signed by the user who
    made them. Only the server says that a user read a file, and when.

    OWNER:NAME is a file that OWNER shares with you: when you got it, and when you read it.

    Example: sfsc audit log report.pdf
    """
    with context.connect() as store:
        headers = ("entry", "time", "operation", "user", "file", "version", "details")
        with context.table(*headers, right=("entry", "version")) as rows:
            owner, name = (None, None) if name is None else split_owner(store, name)
            for event in store.audit_log(name, owner=owner):
                when = context.time(int(datetime.fromisoformat(event.time).timestamp()))
                file = event.name or event.file_id
                details = " ".join(f"{key}={json.dumps(one)}" for key, one in event.detail.items())
                about = (event.op, event.actor, file, event.version, details)
                rows.add(event, event.seq, when, *about)


@audit.command("verify")
@click.pass_obj
def audit_verify(context: Context) -> None:
    """Verify the whole history of your account.

    Nothing is missing, you signed every change, log and store agree. The exit code is 5 if not.

    Example: sfsc audit verify
    """
    with context.connect() as store:
        found = store.audit_verify()
    context.answer(
        found,
        f"entries     {found.entries} of yours in a log of {found.log_size}, no gap",
        f"changes     {found.records}, each signed with one of your keys",
        f"statements  {found.statements}, all in your identity chain",
        f"files       {found.files}, the same in store and log",
    )


@audit.command("check")
@click.argument("file", type=click.File("rb"))
@click.argument("content", required=False, shell_complete=paths)
@click.option("--vkey", help="The log's verification key, if this machine has no account there.")
@click.pass_obj
def audit_check(context: Context, file: BinaryIO, content: str | None, vkey: str | None) -> None:
    """Verify FILE, a `put --receipt`. This needs neither the server nor the account's keys.

    With CONTENT, a file or `-` (stdin), also say whether the proof is of that content; the exit
    code is 5 if it is not. A proof names the encrypted content only. So CONTENT is encrypted again
    with the key of that version, for which this asks the server; the content is not fetched.
    If CONTENT is the encrypted content itself, as it lies on the server, no key is needed.

    Example: sfsc audit check report.receipt

    Example: sfsc audit check report.receipt report.pdf
    """
    proven = sfsc.check_proof(file.read(_MAX_FILE), home=context.home, vkey=vkey)
    checked = None
    if content is not None:
        checked = _check_content(context, proven, content)
    entries = counted(proven.log_size, "entry", "entries")
    lines = [
        f"entry       {proven.seq} of {proven.origin}, when that had {entries}",
        f"time        {printable(proven.time)}",
        f"what        {printable(f'{proven.op} by {proven.actor}')}",
    ]
    if proven.file_id is not None:
        version = f" version {proven.version}" if proven.version else ""
        lines.append(f"file        {printable(str(proven.owner))}:{proven.file_id}{version}")
    shown = {key: one for key, one in terminal.fields_of(proven).items() if key != "record"}
    if checked is not None:
        shown["content"] = checked
        same = "this is what was stored" if checked == "plain" else "this is it, encrypted"
        lines.append(f"content     {same}")
    context.answer(shown, *lines)


def _check_content(context: Context, proven: VerifiedProof, content: str) -> str:
    """Return ``encrypted`` or ``plain`` if the proof is of `content`. Raises `BadReceipt` if it is
    of another."""
    if content != "-" and proven.is_of_ciphertext(content):
        return "encrypted"
    with context.connect() as store:
        store.check_content(proven, sys.stdin.buffer if content == "-" else content)
    return "plain"


@audit.command("checkpoint")
@click.pass_obj
def audit_checkpoint(context: Context) -> None:
    """Print the newest proven checkpoint of the log. It is signed, for others to compare.

    Example: sfsc audit checkpoint > alice.checkpoint
    """
    with context.connect() as store:
        note = store.checkpoint().decode()
    # A server may add lines of any text with its signature: escape them on a terminal.
    if context.json:
        terminal.answer_json({"checkpoint": note})
    else:
        terminal.write(printable_lines(note) if sys.stdout.isatty() else note)


@audit.command("compare")
@click.argument("file", type=click.File("rb"))
@click.pass_obj
def audit_compare(context: Context, file: BinaryIO) -> None:
    """Check that FILE, a checkpoint, is of your log. Another user got it by `audit checkpoint`.

    If it is not, the server has shown two histories: the exit code is 5, and both checkpoints are
    kept as evidence.

    Example: sfsc audit compare alice.checkpoint
    """
    note = file.read(_MAX_FILE)
    with context.connect() as store:
        theirs, ours = store.audit_compare(note)
    shown = {"theirs": theirs, "ours": ours, "one_log": True}
    context.answer(shown, f"same log: {counted(theirs, 'entry', 'entries')} there, {ours} here")


@audit.command("accept")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def audit_accept(context: Context, *, yes: bool) -> None:
    """Trust the server's log as it is now. Use it after the server has shown two histories.

    This client forgets what it knew of the log and of your files; the evidence stays where it is.
    Do this if the operator says that a backup was put back. Otherwise ask other users first. If
    the backup is older than your keys, they are replaced.

    Example: sfsc audit accept
    """
    if not yes and terminal.ask("Forget what this server showed before? [yes/no] ") != "yes":
        raise UsageError("nothing was accepted", "answer yes, or use --yes")
    failures = terminal.Failures()
    size, kept, restored = sfsc.accept(
        context.home, passphrase=terminal.passphrase_source(), skip=failures
    )
    entries = counted(size, "entry", "entries")
    forgotten = 0 if restored is None else restored.forgotten
    context.confirm(
        {"log_size": size, "evidence": kept, "forgotten_statements": forgotten},
        f"this client now trusts the log of {entries}",
    )
    if restored is not None:
        terminal.warn(
            f"the server did not know {counted(forgotten, 'newer statement')} of your account; "
            "your keys were replaced, for the devices that you had last"
        )
        if restored.unknown:
            devices = counted(restored.unknown, "device is", "devices are")
            terminal.note(f"hint: {devices} new to this machine: check `sfsc device list`")
        if restored.other_code:
            terminal.note("hint: your recovery code was forgotten too: `sfsc key recovery`")
        if restored.stolen:
            terminal.note("hint: your contents are under stolen keys: `sfsc rotate --compromised`")
    failures.check()
