"""`sfsc unshare`: take back what was shared."""

from __future__ import annotations

import click

import sfsc
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.share import show


@click.command(short_help="Take that back.")
@click.argument("name")
@click.argument("user")
@click.option("-r", "--recursive", is_flag=True, help="NAME is a folder that was shared with -r.")
@click.option("--reencrypt", is_flag=True, help="Encrypt the present version anew too.")
@click.pass_obj
def command(context: Context, name: str, user: str, *, recursive: bool, reencrypt: bool) -> None:
    """Let USER read NAME no more. The server refuses him from the moment this is acknowledged.

    What he has fetched he keeps. With --reencrypt the present version is stored anew under a key
    that he never had: then also one that he kept opens nothing that is there.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        if recursive:
            for grant in store.unshare_tree(name, user, reencrypt=reencrypt):
                show(grant, "unshared", as_json=context.json)
        else:
            show(store.unshare(name, user, reencrypt=reencrypt), "unshared", as_json=context.json)
