"""`sfsd serve`: run the daemon."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from sfsd import setting_kinds
from sfsd.commands import parse_with, root_option
from sfsd.net.listener import serve_root


@click.command()
@root_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=parse_with(setting_kinds.check_listen_address),
    help="Where to listen; port 0 is any free port.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write the bound address to, once connections are accepted.",
)
def command(root: Path, listen: str | None, ready_file: Path | None) -> None:
    """Serve the root until SIGTERM or SIGINT.

    Example: sfsd serve --root /srv/sfs --listen 0.0.0.0:7373
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    serve_root(root, listen, ready_file)
