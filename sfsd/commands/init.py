"""`sfsd init`: a new root."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sfsd import config, server_keys
from sfsd.commands import parsed, root_option
from sfsd.errors import ConfigError
from sfsd.fs.files import Files


@click.command()
@root_option
@click.option(
    "--public",
    metavar="HOST:PORT",
    callback=parsed(config.check_public_address),
    help="Where users reach the daemon.",
)
def command(root: Path, public: str | None) -> None:
    """Make a new root: keys, settings, and empty folders. Prints the server's id.

    Back up keys/: without it a new server is another one to every client.
    """
    settings = root / config.FILE_NAME
    if settings.exists():
        raise ConfigError(f"{root} is a root already", "choose another folder")
    files = Files()
    # One by one: a parent that is made in passing gets other rights than 0700.
    for name in ("", "keys", "staging", "run", "logs", "store", "store/users"):
        files.make_folder(root / name)
    keys = server_keys.create(root / "keys", int(time.time()), files)
    # Last: a folder without settings is no root, so an init that was cut is never served.
    files.replace_durable(settings, config.initial_text(public or "").encode())
    click.echo(keys.server_id.hex())
