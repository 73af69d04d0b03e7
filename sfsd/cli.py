"""Entry point of `sfsd`: finds the command, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys

import click

from protocol import VERSION
from protocol.codec.terminal_text import printable
from sfsd.errors import SfsdError

COMMANDS = {
    "init": "Make a new root: keys, settings and empty folders.",
    "serve": "Serve the root until SIGTERM or SIGINT.",
    "user": "Invite, list, disable and enable users, and set quotas.",
    "rotate": "Require users to rotate their keys.",
    "rotate-keys": "Replace the server's TLS key or log key.",
    "status": "Show the state of the daemon.",
    "fsck": "Check that log, sidecars and ciphertext agree.",
    "audit": "Read and verify the log.",
}
"""Each command and its line of help, in the order of --help."""
USAGE = 2
INTERRUPTED = 130


class DaemonCommands(click.Group):
    """Group that imports ``sfsd.commands.NAME`` when NAME is called; --help imports no command."""

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
    """Store users' encrypted files without being able to read them.

    Example: sfsd init --root /srv/sfs && sfsd serve --root /srv/sfs

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 integrity (something was
    tampered with), 6 conflict, 7 network.
    """


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code. No expected error ends in a traceback."""
    try:
        outcome = group.main(arguments, prog_name="sfsd", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        exc.show(sys.stderr)
        return USAGE
    except SfsdError as exc:
        _print_error(exc.cause, exc.hint)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        _print_error("interrupted", None)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout is gone. Without this, Python's flush at exit prints an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as exc:
        # Disk or permissions: the error names a path, which is no secret.
        where = f": {exc.filename}" if exc.filename else ""
        _print_error(
            f"{exc.strerror or type(exc).__name__}{where}",
            "check the disk and the permissions",
        )
        return SfsdError.exit_code


def _print_error(cause: str, hint: str | None) -> None:
    click.echo(f"sfsd: {printable(cause)}", err=True)
    if hint:
        click.echo(f"hint: {printable(hint)}", err=True)


if __name__ == "__main__":
    sys.exit(main())
