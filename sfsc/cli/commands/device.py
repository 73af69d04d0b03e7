"""`sfsc device`: the machines that have your keys."""

from __future__ import annotations

import click

import sfsc
from protocol.codec.terminal_text import human_time
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.rotate import find_device, show


@click.group(short_help="Show the machines that have your keys.")
def command() -> None:
    """The machines and backups that have your account's keys."""


@command.command()
@click.argument("device")
@click.pass_obj
def drop(context: Context, device: str) -> None:
    """Lock DEVICE (its id, or the beginning of it) out: your keys are replaced without it.

    What it could read until now it may have kept, and its copy of the old keys opens what the
    server had of old wraps. A recovery code or backup that may be in the same hands is not ended by
    this: drop the backup too, and replace the code.
    """
    with sfsc.connect(
        context.home, passphrase=terminal.passphrase_source(), auto_rotate=False
    ) as store:
        done = store.rotate(drop_device=find_device(store, device))
    show(done, as_json=context.json)


@command.command("list")
@click.pass_obj
def list_(context: Context) -> None:
    """List them, and since when each has your keys. A `key backup` is one too."""
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        devices = store.devices()
    for device in devices:
        if context.json:
            about = {"device": device.device_id.hex(), "here": device.here}
            terminal.answer_json({**about, "since": device.since})
        else:
            here = "  this machine" if device.here else ""
            since = human_time(device.since)
            terminal.answer(f"{device.device_id.hex()}  since {since}{here}")
