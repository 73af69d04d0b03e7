"""`sfsc init`: make keys, and enrol with an invitation."""

from __future__ import annotations

import sys

import click

import sfsc
from protocol.records import WRAP_ALGORITHMS
from sfsc import terminal
from sfsc.commands import Context
from sfsc.commands.whoami import show


@click.command(short_help="Enrol on a server with an invitation.")
@click.argument("invitation")
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    default="xwing",
    show_default=True,
    help="Kind of key that file keys are wrapped to.",
)
@click.option("--no-passphrase", is_flag=True, help="Keep the keyring unlocked by file mode only.")
@click.pass_obj
def command(context: Context, invitation: str, key_type: str, no_passphrase: bool) -> None:
    """Make a key pair, and enrol with INVITATION, an sfs:// line from the operator.

    `-` reads it from stdin: it holds a secret, and arguments are seen by everyone on a machine.
    """
    if invitation == "-":
        invitation = sys.stdin.readline()
    me = sfsc.enrol(
        invitation,
        home=context.home,
        key_type=key_type,
        passphrase=None if no_passphrase else terminal.new_passphrase(),
        no_passphrase=no_passphrase,
    )
    show(me, as_json=context.json)
