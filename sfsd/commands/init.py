"""`sfsd init`: make a new root."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from protocol.buffers.file_status import exists
from protocol.records.invitation import parse_address
from sfsd import server_keys
from sfsd.commands import parse_with, root_option, show_steps
from sfsd.errors import ConfigError
from sfsd.fs.files import Files
from sfsd.settings import config, kinds, text

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@root_option
@click.option(
    "--public",
    metavar="HOST:PORT",
    callback=parse_with(kinds.check_public_address),
    help="Address at which users reach the daemon.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=parse_with(kinds.check_listen_address),
    help="Address that the daemon listens on; [::]:7373 is every address of this machine.",
)
def command(root: Path, public: str | None, listen: str | None) -> None:
    """Make a new root: keys, settings and empty folders. Prints the server's id.

    Both addresses are written to sfsd.toml in the root, where every setting is listed. Back up
    keys/: without these keys, clients reject the server.

    Example: sfsd init --root /srv/sfs --public files.example:7373
    """
    settings = root / config.FILE_NAME
    if exists(settings):
        raise ConfigError(f"{root.absolute()} is already a root", "choose another folder")
    Files().make_folder(root)
    files = Files.below(root)
    # One by one, because parents made implicitly would not get mode 0700.
    for name in ("keys", "staging", "run", "logs", "store", "store/users"):
        files.make_folder(root / name)
    keys = server_keys.create(root / "keys", int(time.time()), files)
    # Last: a folder without settings is not a root, so an interrupted init is never served.
    initial = text.initial_text(public=public or "", listen=listen or "")
    files.replace_durable(settings, initial.encode())
    click.echo(keys.server_id.hex())
    root = root.absolute()
    heading = f"Made {root}. The line above is the server's id. Next:"
    show_steps(heading, _next_steps(root, public, listen))


def _next_steps(root: Path, public: str | None, listen: str | None) -> list[str]:
    """Return what the operator does after `init`."""
    at = f"--root {shlex.quote(str(root))}"
    steps = [f"Copy {root / 'keys'} to a safe place: without it, clients reject the server."]
    if public is None:
        steps.append(f'Say how users reach it: set public = "HOST:PORT" in {root / "sfsd.toml"}.')
    host = parse_address(listen or str(config.default("listen")))[0]
    if host in _LOOPBACK:
        steps.append(
            f"Only this machine can connect to {listen or config.default('listen')}: set "
            f'listen = "[::]:7373" in {root / "sfsd.toml"} for others.'
        )
    return [
        *steps,
        f"Look at the settings in {root / 'sfsd.toml'}, then: sfsd check-config {at}",
        f"Start the daemon: sfsd serve {at}",
        f"Invite a user, and send them the line that it prints: sfsd user add NAME {at}",
    ]
