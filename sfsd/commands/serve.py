"""`sfsd serve`: run the daemon."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import click

from sfsd.commands import parse_with, root_option
from sfsd.errors import ConfigError, SfsdError
from sfsd.net.listener import ServeOptions, serve_root
from sfsd.service import log_output
from sfsd.service.activation import inherited_sockets
from sfsd.service.notify import Notifier
from sfsd.settings import kinds
from sfsd.settings.config import Config, settings

_log = logging.getLogger(__name__)


def _choices(setting: str) -> click.Choice[str]:
    kind = settings()[setting]
    return click.Choice(kind.choices if isinstance(kind, kinds.Choice) else ())


@click.command()
@root_option
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=parse_with(kinds.check_listen_address),
    help="Where to listen; port 0 is any free port.",
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write the bound address to, once connections are accepted.",
)
@click.option(
    "--log-format",
    type=_choices("log.format"),
    envvar="SFSD_LOG_FORMAT",
    help="Messages as text or as one JSON object a line (SFSD_LOG_FORMAT).",
)
@click.option(
    "--log-level",
    type=_choices("log.level"),
    envvar="SFSD_LOG_LEVEL",
    help="Least level of the messages (SFSD_LOG_LEVEL).",
)
def command(
    root: Path,
    listen: str | None,
    ready_file: Path | None,
    log_format: str | None,
    log_level: str | None,
) -> int:
    """Serve the root until SIGTERM or SIGINT; SIGHUP reads sfsd.toml again.

    Messages go to stderr. Each option overrides its setting in sfsd.toml.

    Example: sfsd serve --root /srv/sfs --listen 0.0.0.0:7373
    """
    config = Config.load(root)
    log_format = log_format or config.log.format
    log_output.configure(log_format, log_level or config.log.level)
    try:
        sockets = inherited_sockets(os.environ)
        if sockets and listen:
            raise ConfigError(
                "--listen and sockets that the system passed to this process",
                "remove --listen, or start the service without the .socket unit",
            )
        with contextlib.closing(Notifier(os.environ)) as notifier:
            options = ServeOptions(
                listen,
                ready_file,
                tuple(sockets),
                notifier,
                lambda read: log_output.set_level(log_level or read.log.level),
            )
            serve_root(root, options)
    except SfsdError as exc:
        if log_format != "json":
            raise
        # A program reads these lines, so the last one has the same form.
        details = log_output.event("failed", hint=exc.hint or "", exit_code=exc.exit_code)
        _log.critical("%s", exc.cause, extra=details)
        return exc.exit_code
    return 0
