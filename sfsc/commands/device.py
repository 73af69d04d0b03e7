"""`sfsc device`: the machines that have your keys."""

from __future__ import annotations

import click

import sfsc
from sfsc import terminal
from sfsc.commands import Context


@click.group(short_help="Show the machines that have your keys.")
def command() -> None:
    """The machines and backups that have your account's keys."""


@command.command("list")
@click.pass_obj
def list_(context: Context) -> None:
    """List them. A `key backup` is one too."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        devices = store.devices()
    for device in devices:
        if context.json:
            terminal.answer_json({"device": device.device_id.hex(), "here": device.here})
        else:
            here = "  this machine" if device.here else ""
            terminal.answer(f"{device.device_id.hex()}{here}")
