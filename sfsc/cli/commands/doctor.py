"""`sfsc doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check this machine, the server and your account, and say what to do.

    Each check has a line: the permissions of your files, the keyring, whether each address of the
    server answers and is the pinned one, this machine's clock, the log, the rotation of your keys,
    your quota, and the recovery code. It is `ok`, a `warning` or an `error`, with what to run. What
    depends on something that failed is left out.

    The exit code is 1 if there is an error, otherwise 0.

    Example: sfsc doctor
    """
    context = ctx.ensure_object(Context)
    failed = False
    for one in sfsc.doctor(context.home, passphrase=terminal.passphrase_source()):
        failed = failed or one.state == "error"
        hint = f"; {one.hint}" if one.hint else ""
        context.answer(one, printable(f"{one.state:<8} {one.check:<9} {one.message}{hint}"))
    if failed:
        ctx.exit(1)
