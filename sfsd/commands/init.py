"""`sfsd init`: make a new root."""

from __future__ import annotations

import time
from pathlib import Path

import click

from protocol.buffers.file_status import exists
from sfsd import config, server_keys
from sfsd.commands import parse_with, root_option
from sfsd.errors import ConfigError
from sfsd.fs.files import Files


@click.command()
@root_option
@click.option(
    "--public",
    metavar="HOST:PORT",
    callback=parse_with(config.check_public_address),
    help="Address at which users reach the daemon.",
)
def command(root: Path, public: str | None) -> None:
    """Make a new root: keys, settings and empty folders. Prints the server's id.

    Back up keys/: without these keys, clients reject the server.

    Example: sfsd init --root /srv/sfs --public files.example:7373
    """
    settings = root / config.FILE_NAME
    if exists(settings):
        raise ConfigError(f"{root} is already a root", "choose another folder")
    Files().make_folder(root)
    files = Files.below(root)
    # One by one, because parents made implicitly would not get mode 0700.
    for name in ("keys", "staging", "run", "logs", "store", "store/users"):
        files.make_folder(root / name)
    keys = server_keys.create(root / "keys", int(time.time()), files)
    # Last: a folder without settings is not a root, so an interrupted init is never served.
    files.replace_durable(settings, config.initial_text(public or "").encode())
    click.echo(keys.server_id.hex())
