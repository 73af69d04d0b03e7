"""Entry point of `sfsd`: finds the command, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys

import click
from click.exceptions import NoArgsIsHelpError

from protocol import VERSION
from protocol.buffers.core_dumps import disable_core_dumps
from protocol.codec.standard_streams import (
    accept_any_text,
    finish_stdout,
    open_closed_streams,
    print_error,
    was_raised_by,
)
from protocol.codec.tables import asks_for_json, error_json
from protocol.codec.terminal_text import human_size, printable
from sfsd.errors import OWNER_HINT, SfsdError

COMMANDS = {
    "init": "Make a new root: keys, settings and empty folders.",
    "check-config": "Report all mistakes in sfsd.toml.",
    "serve": "Serve the root until SIGTERM or SIGINT.",
    "install-unit": "Write the units for systemd.",
    "user": "Invite, list, disable and remove users, and set quotas.",
    "rotate": "Require users to rotate their keys.",
    "rotate-keys": "Replace the server's TLS key or log key, or the operator's.",
    "status": "Show the state of the daemon.",
    "scrub": "Show damaged files, and compare all files with the log now.",
    "fsck": "Check that log, sidecars and ciphertext agree.",
    "audit": "Read, export and verify the log.",
    "report": "Write a page that shows the log and the store.",
    "backup": "Copy the root, also while it is served.",
    "restore": "Make a root of a backup.",
}
"""Each command and its line of help, in the order of --help."""
_OUTPUT_HINT = "the command was carried out; only its output is incomplete"
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
    disable_core_dumps()
    open_closed_streams()
    accept_any_text()
    as_json = asks_for_json(sys.argv[1:] if arguments is None else arguments)

    def fail(code: int, cause: str, hint: str | None = None) -> int:
        if as_json:
            print_error(error_json(code, cause, hint or ""))
            return code
        print_error(f"sfsd: {printable(cause)}")
        if hint:
            print_error(f"hint: {printable(hint)}")
        return code

    try:
        outcome = group.main(arguments, prog_name="sfsd", standalone_mode=False)
        click.echo(nl=False)  # flushes stdout
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        if as_json:
            where = (
                exc.ctx.command_path if isinstance(exc, click.UsageError) and exc.ctx else "sfsd"
            )
            missing = isinstance(exc, NoArgsIsHelpError)
            cause = "no command is given" if missing else exc.format_message()
            return fail(USAGE, cause, f"run `{where} --help`")
        shown = io.StringIO()
        exc.show(shown)
        print_error(shown.getvalue().removesuffix("\n"))
        return USAGE
    except SfsdError as exc:
        fail(exc.exit_code, exc.cause, exc.hint)
        finish_stdout()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return fail(INTERRUPTED, "interrupted")
    except OSError as exc:
        if was_raised_by(exc, click.echo):
            if not isinstance(exc, BrokenPipeError):  # as in `sfsd audit log | head`
                fail(SfsdError.exit_code, f"cannot write to stdout: {exc.strerror}", _OUTPUT_HINT)
            finish_stdout()
            return SfsdError.exit_code
        # Disk or permissions: the error names a path, which is no secret.
        where = f": {exc.filename}" if exc.filename else ""
        return fail(
            SfsdError.exit_code, f"{exc.strerror or type(exc).__name__}{where}", _hint_for(exc)
        )


def _hint_for(exc: OSError) -> str:
    if isinstance(exc, PermissionError):
        return OWNER_HINT
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        import shutil  # takes milliseconds, and hardly any command needs it

        folder = os.path.dirname(exc.filename or "")
        with contextlib.suppress(OSError):
            free = human_size(shutil.disk_usage(folder).free)
            return f"{free} are free on the disk of {folder}; `df -h -i` shows files too"
        return "`df -h` and `df -h -i` show which disk has no room"
    return "check the disk"


if __name__ == "__main__":
    sys.exit(main())
