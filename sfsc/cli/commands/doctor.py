"""`sfsc doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import counted
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import SfscError


@click.command()
@click.pass_obj
def doctor(context: Context) -> None:
    """Check this machine, the server and your account, and say what to do.

    Each check has a line: the permissions of your files, the keyring, whether each address of the
    server answers and is the pinned one, this machine's clock, the log, the rotation of your keys,
    your quota, and the recovery code. It is `ok`, a `warning` or an `error`, with what to run. What
    depends on something that failed is left out.

    The exit code is 1 if there is an error, otherwise 0.

    Example: sfsc doctor
    """
    failed = 0
    with context.table("state", "check", "about") as rows:
        for one in sfsc.doctor(context.home, passphrase=terminal.passphrase_source()):
            failed += one.state == "error"
            hint = f"; {one.hint}" if one.hint else ""
            rows.add(one, one.state, one.check, f"{one.message}{hint}")
    if failed:
        raise SfscError(f"{counted(failed, 'check')} failed", "run what the lines above say")
