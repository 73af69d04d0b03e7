"""`sfsc key`: the account's keys, to compare, to keep safe, and to have on another machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.whoami import show as show_identity

if TYPE_CHECKING:
    from sfsc.store import Store

_WORDS_A_LINE = 8


@click.group(short_help="Show, back up and restore your keys.")
def command() -> None:
    """Your account's keys: compare them, keep them safe, have them on another machine."""


@command.command()
@click.pass_obj
def show(context: Context) -> None:
    """Show your fingerprint in hex and in words, for others to compare."""
    me = sfsc.whoami(context.home, passphrase=terminal.passphrase_source())
    if context.json:
        terminal.answer_json(
            {"user": me.user, "fingerprint": me.fingerprint.hex(), "words": " ".join(me.words)}
        )
        return
    show_identity(me, as_json=False)
    _show_words(me.words)


def _show_words(spelled: Sequence[str]) -> None:
    for at in range(0, len(spelled), _WORDS_A_LINE):
        label = "in words" if at == 0 else ""
        terminal.answer(f"{label:<12} {' '.join(spelled[at : at + _WORDS_A_LINE])}")


@command.command()
@click.argument("user")
@click.argument("fingerprint", required=False)
@click.pass_obj
def verify(context: Context, user: str, fingerprint: str | None) -> None:
    """Remember USER by a FINGERPRINT that you have compared with him: by voice, on paper, not by
    this server. Without one, show what the server says, for comparing.

    He sees his own with `sfsc key show`.
    """
    with _connected(context) as store:
        from sfsc.files.contacts import parse_fingerprint
        from sfsc.keys.pgp_words import pgp_words

        if fingerprint is None:
            person = store.person(user)
        else:
            person = store.verify_person(user, parse_fingerprint(fingerprint))
    spelled = pgp_words(person.fingerprint)
    if context.json:
        about = {"user": user, "fingerprint": person.fingerprint.hex(), "words": " ".join(spelled)}
        terminal.answer_json({**about, "verified": person.pinned})
        return
    terminal.answer(f"user         {user}, {'verified' if person.pinned else 'unverified'}")
    terminal.answer(f"fingerprint  {person.fingerprint.hex()}")
    _show_words(spelled)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--no-passphrase", is_flag=True, help="Lock FILE with nothing: who has it, is you.")
@click.pass_obj
def backup(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Write a copy of your keys to FILE, locked with a passphrase of its own.

    It stays good when your keys are rotated. `sfsc key restore FILE` opens the account with it on
    another machine, again and again. It counts as one of your devices.
    """
    passphrase = None if no_passphrase else terminal.new_passphrase(" of the backup")
    with _connected(context) as store:
        store.backup(file, passphrase=passphrase, no_passphrase=no_passphrase)
    terminal.say(f"your keys are in {printable(str(file))}; keep it away from this machine")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--no-passphrase", is_flag=True, help="Keep the keyring unlocked by file mode only.")
@click.pass_obj
def restore(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Open your account on this machine with FILE, a `key backup` made elsewhere."""
    me = sfsc.restore(
        file,
        home=context.home,
        file_passphrase=terminal.passphrase_source("Passphrase of the backup: "),
        passphrase=None if no_passphrase else terminal.new_passphrase(),
        no_passphrase=no_passphrase,
    )
    show_identity(me, as_json=context.json)


@command.command()
@click.pass_obj
def recovery(context: Context) -> None:
    """Make a recovery code to print: it opens your account where every machine was lost.

    Where there is one already, the old code is asked for, and is worth nothing afterwards.
    """
    with _connected(context) as store:
        old = None
        if store.has_recovery():
            old = terminal.ask_secret("The present recovery code: ")
            store.check_recovery(old)  # else a code would be shown, and printed, that is none
        # Shown before it counts: a code that nobody has seen must never be the account's.
        code = sfsc.new_recovery_code()
        link = store.link
        if context.json:
            terminal.answer_json({"account": link, "code": code})
        else:
            for line in ("", "account", f"  {link}", "recovery code", f"  {code}", ""):
                terminal.answer(line)
            terminal.answer(terminal.qr(f"{link}\n{code}"))
        with terminal.answering():
            sys.stdout.flush()
        store.set_recovery(code, old)
    terminal.say("print it, and keep it where nobody else looks; `sfsc init --recovery` uses it")


@command.command()
@click.option("--pem", "file", type=click.Path(path_type=Path), required=True, metavar="FILE")
@click.option("--no-passphrase", is_flag=True, help="Do not encrypt the keys in FILE.")
@click.pass_obj
def export(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Write your private keys to FILE as PEM (PKCS#8): Ed25519, and RSA or X25519.

    Good for the keys as they are now: after a rotation export them again.
    """
    pem = sfsc.export_pem(
        context.home,
        passphrase=terminal.passphrase_source(),
        pem_passphrase=None if no_passphrase else terminal.new_passphrase(" of the key file"),
        no_passphrase=no_passphrase,
    )
    terminal.write_private(file, pem)
    terminal.say(f"your private keys are in {printable(str(file))}")


@command.command("export-dek")
@click.argument("name")
@click.option("--version", type=click.IntRange(min=1), help="An older version.")
@click.pass_obj
def export_dek(context: Context, name: str, version: int | None) -> None:
    """Show the key of one file's content, for another program to open its ciphertext with.

    Any implementation of Tink's AES256_GCM_HKDF_1MB does. It opens this version and no other.
    """
    with _connected(context) as store:
        key = store.export_dek(name, version=version)
    found = {
        "dek": key.dek.hex(),
        "associated_data": key.associated_data.hex(),
        "ciphertext": key.ciphertext,
    }
    if context.json:
        terminal.answer_json(found)
    else:
        for label, value in found.items():
            terminal.answer(f"{label:<16} {value}")


def _connected(context: Context) -> Store:
    return sfsc.connect(context.home, passphrase=terminal.passphrase_source())
