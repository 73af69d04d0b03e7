"""`sfsd`: the way from arguments to a command and from an error to an exit code."""

from __future__ import annotations

import importlib
import os
import sys

import click

from protocol import VERSION
from protocol.codec.terminal_text import printable
from sfsd.errors import SfsdError

COMMANDS = {
    "init": "Make a new root: keys, settings, empty folders.",
    "serve": "Serve the root until SIGTERM or SIGINT.",
    "user": "Invite users, look at them, disable and enable them.",
    "rotate": "Let users rotate their keys before they write again.",
    "rotate-keys": "Replace the server's TLS key or its log's key.",
    "status": "Show how the daemon is.",
    "fsck": "Check that log, sidecars and ciphertext agree.",
    "audit": "Read the log, and verify it.",
}
"""Name and one line of help of every command, in the order of --help."""
USAGE = 2
INTERRUPTED = 130


class DaemonCommands(click.Group):
    """Loads ``sfsd.commands.NAME`` when NAME is called; --help reads `COMMANDS` and loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sfsd.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=DaemonCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="sfsd")
def group() -> None:
    """Keep other people's files without being able to read them.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 integrity (something was
    tampered with), 6 conflict, 7 network.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code and lets no expected error through as a traceback."""
    try:
        outcome = group.main(arguments, prog_name="sfsd", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        exc.show(sys.stderr)
        return USAGE
    except SfsdError as exc:
        _blame(exc.cause, exc.hint)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        _blame("interrupted", None)
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our answer has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        # Disk and permissions: what they concern is in the error, and none of it is secret.
        where = f": {exc.filename}" if exc.filename else ""
        _blame(f"{exc.strerror or type(exc).__name__}{where}", "look at the disk and its rights")
        return SfsdError.exit_code


def _blame(cause: str, hint: str | None) -> None:
    click.echo(f"sfsd: {printable(cause)}", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


if __name__ == "__main__":
    sys.exit(main())
