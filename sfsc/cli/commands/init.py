"""`sfsc init`: make keys and enrol with an invitation, or open an account on another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

import sfsc
from protocol.codec.terminal_text import printable
from protocol.records.records import WRAP_ALGORITHMS
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.whoami import show
from sfsc.errors import TakenOver, UsageError

if TYPE_CHECKING:
    from sfsc.keys.account_info import Whoami

_MAX_KEY_FILE = 64 * 1024


@click.command(short_help="Enrol on a server with an invitation.")
@click.argument("invitation", required=False)
@click.option("--recovery", is_flag=True, help="Open an account with its recovery code instead.")
@click.option(
    "--take-back",
    is_flag=True,
    help="With --recovery: undo what somebody with stolen keys has signed.",
)
@click.option(
    "--undo-from",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --take-back: from this statement on, where you know better.",
)
@click.option(
    "--import-key",
    "pem",
    type=click.File("rb"),
    metavar="FILE",
    help="PEM keys: of an account (`sfsc key export`); with INVITATION your own to enrol with.",
)
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    default="xwing",
    show_default=True,
    help="Kind of key that file keys are wrapped to.",
)
@click.option("--no-passphrase", is_flag=True, help="Keep the keyring unlocked by file mode only.")
@click.pass_obj
def command(
    context: Context,
    *,
    invitation: str | None,
    recovery: bool,
    take_back: bool,
    undo_from: int | None,
    pem: BinaryIO | None,
    key_type: str,
    no_passphrase: bool,
) -> None:
    """Make a key pair, and enrol with INVITATION, an sfs:// line from the operator.

    `-` reads it from stdin: it holds a secret, and arguments are seen by everyone on a machine.

    With --recovery, or with --import-key FILE and no INVITATION, an account that there is already
    is opened on this machine. For --recovery the line that names it (sfs://…&first=…) and the code
    are asked for, or read from stdin, a line each. Where somebody else has signed new keys for the
    account and left the code out, --take-back undoes that: his statements, and what he did to the
    files. Every other machine is then out of the account.
    """
    if (take_back or undo_from is not None) and not recovery:
        raise UsageError("--take-back and --undo-from go with --recovery")
    if recovery and (invitation or pem):
        raise UsageError("--recovery needs neither INVITATION nor a key file", "leave one out")
    if recovery:
        _recover(context, undo_from, take_back=take_back, no_passphrase=no_passphrase)
        return
    if invitation == "-":
        invitation = terminal.ask("The invitation: ")
    keys = None if pem is None else pem.read(_MAX_KEY_FILE + 1)
    lock = None if no_passphrase else terminal.new_passphrase()
    of_keys = terminal.passphrase_source("Passphrase of the key file: ")
    if invitation is not None:
        me = sfsc.enrol(
            invitation,
            home=context.home,
            key_type=key_type,
            pem=keys,
            pem_passphrase=of_keys,
            passphrase=lock,
            no_passphrase=no_passphrase,
        )
    elif keys is not None:
        me = sfsc.import_pem(
            keys,
            home=context.home,
            pem_passphrase=of_keys,
            passphrase=lock,
            no_passphrase=no_passphrase,
        )
    else:
        raise UsageError("there is no INVITATION", "or say --recovery, or --import-key FILE")
    show(me, as_json=context.json)


def _recover(
    context: Context, undo_from: int | None, *, take_back: bool, no_passphrase: bool
) -> None:
    account = terminal.ask("The line that names the account: ")
    code = terminal.ask_secret("Its recovery code: ")
    lock = None if no_passphrase else terminal.new_passphrase()
    failures = terminal.Failures()

    def opened(first: int | None, *, taking: bool) -> Whoami:
        return sfsc.recover(
            account,
            code,
            home=context.home,
            passphrase=lock,
            no_passphrase=no_passphrase,
            take_back=taking,
            undo_from=first,
            on_destroyed=failures,
        )

    try:
        me = opened(undo_from, taking=take_back or undo_from is not None)
    except TakenOver as exc:
        terminal.say(f"sfsc: {printable(exc.cause)}")
        if not terminal.confirmed(f"Undo all from statement {exc.first} on?"):
            raise
        me = opened(exc.first, taking=True)
    show(me, as_json=context.json)
    failures.check()
