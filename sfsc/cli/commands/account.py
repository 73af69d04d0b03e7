"""`sfsc init`, `whoami` and `status`: enrol on a server, and show the account."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

import click

import sfsc
from protocol.codec.terminal_text import counted, human_size, printable
from protocol.records.records import WRAP_ALGORITHMS
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.recovery_options import RecoveryInput, recovery_options
from sfsc.errors import TakenOver, UsageError

if TYPE_CHECKING:
    from sfsc.keys.account_info import Whoami

_MAX_KEY_FILE = 64 * 1024
no_passphrase_option: Final = click.option(
    "--no-passphrase", is_flag=True, help="Protect the keyring by its file mode only."
)


@click.command()
@click.argument("invitation", required=False)
@click.option("--recovery", is_flag=True, help="Open an account with its recovery code instead.")
@click.option(
    "--take-back",
    is_flag=True,
    help="With --recovery: undo what an attacker has signed with stolen keys.",
)
@click.option(
    "--undo-from",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --take-back: undo statement N and all later ones.",
)
@click.option(
    "--import-key",
    "pem",
    type=click.File("rb"),
    metavar="FILE",
    help="PEM keys: of an account (`sfsc key export`), or with INVITATION your own to enrol with.",
)
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    default="xwing",
    show_default=True,
    help="Type of the key that file keys are wrapped for.",
)
@recovery_options
@no_passphrase_option
@click.pass_obj
def init(
    context: Context,
    *,
    invitation: str | None,
    recovery: bool,
    take_back: bool,
    undo_from: int | None,
    pem: BinaryIO | None,
    key_type: str,
    sheet: BinaryIO | None,
    show_code: bool,
    no_passphrase: bool,
) -> None:
    """Make keys and enrol with INVITATION, an sfs:// line from the operator.

    Without INVITATION the command asks for it; `-` does the same, or reads it from stdin if that is
    no terminal. It holds a secret, and other users of the machine can see the arguments of a
    command. The server is checked before a passphrase is asked for.

    With --recovery, or with --import-key FILE and no INVITATION, open an existing account on this
    machine. --recovery asks for the account and the recovery code row by row, as `key recovery`
    shows them, and says at once which group of a row is mistyped. --from FILE reads both: the text
    that `key recovery` wrote, or what a phone shows of its QR code. They may also come from
    stdin. If an attacker has signed new keys for the account that exclude
    the code, --take-back undoes the attacker's statements and changes to files. All other machines
    then lose access to the account.

    Example: sfsc init
    """
    if (take_back or undo_from is not None) and not recovery:
        raise UsageError("--take-back and --undo-from need --recovery")
    if recovery and (invitation or pem):
        raise UsageError("--recovery excludes INVITATION and --import-key", "leave one out")
    if (sheet is not None or show_code) and not recovery:
        raise UsageError("--from and --show-code need --recovery")
    if recovery:
        typed = RecoveryInput.open(sheet, show_code=show_code)
        _recover(context, typed, undo_from, take_back=take_back, no_passphrase=no_passphrase)
        return
    if invitation == "-" or (invitation is None and pem is None):
        invitation = terminal.ask("Invitation: ")
        if not invitation:
            hint = "paste it when `sfsc init` asks, or use --recovery or --import-key FILE"
            raise UsageError("INVITATION is missing", hint)
    keys = None if pem is None else pem.read(_MAX_KEY_FILE + 1)
    passphrase = None if no_passphrase else terminal.new_passphrase_source()
    pem_passphrase = terminal.passphrase_source("Passphrase of the key file: ")
    if invitation is not None:
        me = sfsc.enrol(
            invitation,
            home=context.home,
            key_type=key_type,
            pem=keys,
            pem_passphrase=pem_passphrase,
            passphrase=passphrase,
            no_passphrase=no_passphrase,
        )
    else:
        me = sfsc.import_pem(
            keys or b"",
            home=context.home,
            pem_passphrase=pem_passphrase,
            passphrase=passphrase,
            no_passphrase=no_passphrase,
        )
    confirm_identity(me, context)
    if invitation is not None:
        terminal.note("make a recovery code now: sfsc key recovery")


def _recover(
    context: Context,
    typed: RecoveryInput,
    undo_from: int | None,
    *,
    take_back: bool,
    no_passphrase: bool,
) -> None:
    account, code = typed.ask_account(), typed.ask_code()
    passphrase = None if no_passphrase else terminal.new_passphrase()
    failures = terminal.Failures()

    def recover(first: int | None, *, take_back: bool) -> Whoami:
        return sfsc.recover(
            account,
            code,
            home=context.home,
            passphrase=passphrase,
            no_passphrase=no_passphrase,
            take_back=take_back,
            undo_from=first,
            on_destroyed=failures,
        )

    try:
        me = recover(undo_from, take_back=take_back or undo_from is not None)
    except TakenOver as exc:
        terminal.say(f"sfsc: {printable(exc.cause)}")
        if not terminal.confirmed(f"Undo statement {exc.first} and all later ones?"):
            raise
        me = recover(exc.first, take_back=True)
    confirm_identity(me, context)
    failures.check()


@click.command()
@click.pass_obj
def whoami(context: Context) -> None:
    """Show your user name, your server, and the fingerprint that others can compare. The server
    is not asked.

    Example: sfsc whoami
    """
    show_identity(sfsc.whoami(context.home, passphrase=terminal.passphrase_source()), context)


def show_identity(me: Whoami, context: Context, *lines: str) -> None:
    """Write the account of a keyring to stdout, and `lines` after it unless in JSON."""
    shown, known = _identity(me)
    context.answer(shown, *known, *lines)


def confirm_identity(me: Whoami, context: Context) -> None:
    """Report the account that a command has opened."""
    shown, known = _identity(me)
    context.confirm(shown, *known)


def _identity(me: Whoami) -> tuple[dict[str, object], list[str]]:
    server, fingerprint = me.server_id.hex(), me.fingerprint.hex()
    shown = {"user": me.user, "address": me.address, "server": server, "fingerprint": fingerprint}
    return {**shown, "generation": me.generation, "key_type": me.key_type}, [
        f"user         {me.user}",
        f"address      {printable(me.address)}",
        f"server       {server}",
        f"fingerprint  {fingerprint}",
        f"keys         generation {me.generation}, {me.key_type}",
    ]


@click.command()
@click.pass_obj
def status(context: Context) -> None:
    """Log in, check that the log is consistent, and show your usage, quota and keys.

    Example: sfsc status
    """
    with context.connect() as store:
        now = store.status()
    server, used = now.server_id.hex(), human_size(now.used)
    live, versions, trash = map(human_size, (now.live, now.versions, now.trash))
    shown = {"user": now.user, "address": now.address, "server": server}
    quota = f"of {human_size(now.quota)}" if now.quota else "no quota"
    entries, due = counted(now.log_size, "entry", "entries"), context.time(now.due)
    others = {key: value for key, value in terminal.fields_of(now).items() if key != "server_id"}
    context.answer(
        shown | others,
        f"user      {now.user} at {now.address}",
        f"server    {server}",
        f"stored    {counted(now.files, 'file')}, {used}, {quota}",
        f"contents  {live} live, {versions} in old versions, {trash} in the trash",
        f"log       {entries}, consistent with the log seen before",
        f"log key   {printable(now.log_vkey)}",
        f"keys      generation {now.generation}, to be rotated by {due}",
        f"rotation  {printable(now.rotation) or 'none pending'}",
        f"recovery  {'there is a code' if now.recovery else 'no code; run `sfsc key recovery`'}",
    )
