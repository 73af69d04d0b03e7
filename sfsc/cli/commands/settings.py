"""`sfsc settings`: what holds for all machines of the account."""

from __future__ import annotations

import click

from sfsc.cli.commands import Context


@click.command()
@click.argument("setting", required=False, type=click.Choice(["pad"]))
@click.argument("value", required=False, type=click.Choice(["on", "off"]))
@click.pass_obj
def settings(context: Context, setting: str | None, value: str | None) -> None:
    """Show the settings of your account, or change one of them.

    They hold for what all of your machines store from then on. `pad`: hide the size of each file by
    zero bytes after its content. The server then learns only about which size it is: files grow by
    less than 12 %, large ones by less than 3 %. Files that are stored already stay as they are;
    `sfsc put -r --always` stores them again.

    Example: sfsc settings pad on
    """
    with context.connect() as store:
        if setting is not None and value is not None:
            store.set_padding(value == "on")
        pad = store.padding()
        context.answer({"pad": pad}, f"pad {'on' if pad else 'off'}")
