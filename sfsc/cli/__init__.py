"""Command line of `sfsc`: runs a command, and turns errors into messages and exit codes."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import NoArgsIsHelpError

from protocol import VERSION
from protocol.buffers.core_dumps import disable_core_dumps
from protocol.codec.standard_streams import (
    accept_any_text,
    finish_stdout,
    open_closed_streams,
    was_raised_by,
)
from protocol.codec.tables import asks_for_json
from sfsc.cli import terminal
from sfsc.cli.context import Context
from sfsc.cli.terminal import output_error, stdout_errors
from sfsc.errors import SfscError, UsageError
from sfsc.interrupts import deferred

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS = {
    "init": ("account", "Enrol on a server with an invitation."),
    "put": ("transfer", "Encrypt and store files."),
    "get": ("transfer", "Fetch and decrypt files."),
    "cat": ("transfer", "Write files to stdout."),
    "sync": ("sync", "Make a folder here and one in the store the same."),
    "watch": ("sync", "Store what changes in a folder, as it changes."),
    "ls": ("files", "List your files."),
    "stat": ("files", "Show what is known about a file."),
    "rm": ("files", "Delete files."),
    "mv": ("files", "Rename files and folders."),
    "batch": ("batch", "Make several changes, all or none."),
    "share": ("sharing", "Let another user read a file or folder."),
    "unshare": ("sharing", "Stop sharing a file or folder."),
    "shares": ("sharing", "List what you share, with whom and until when."),
    "people": ("sharing", "List the users whose fingerprints you have verified."),
    "inbox": ("sharing", "List what others share with you; leave a file, block a user."),
    "history": ("files", "Show every version of a file."),
    "restore": ("trash", "Bring back deleted files, old versions, or a folder as it was."),
    "prune": ("trash", "Remove the content of old versions."),
    "purge": ("trash", "Remove the content of deleted files."),
    "du": ("trash", "Show the space that files, old versions and trash take."),
    "key": ("keys", "Show, back up and restore your keys."),
    "agent": ("agent", "Keep the keyring unlocked for a while."),
    "device": ("keys", "List and remove the machines that have your keys."),
    "rotate": ("keys", "Replace your keys."),
    "verify-rotation": ("keys", "Check that nothing uses an older key."),
    "audit": ("audit", "Read and verify the server's log."),
    "settings": ("settings", "Show and change the settings of your account."),
    "server": ("server", "Change the address of your server."),
    "doctor": ("doctor", "Check this machine, the server and your account; say what to do."),
    "completion": ("completion", "Print the script that lets a shell complete commands."),
    "whoami": ("account", "Show your account and your key's fingerprint."),
    "status": ("account", "Show the server, your usage and your keys' age."),
}
"""Name of each command -> its module in `sfsc.cli.commands`, and its line in --help, in order."""


_GC_THRESHOLD = 20_000
"""New objects after which Python looks for reference cycles, instead of 700: file transfers create
many objects and hardly any cycles."""


_EPILOG = "`sfsc --help` lists the options of every command, such as --json."


class ClientCommands(click.Group):
    """Group that imports the module of a command when the command runs; --help imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sfsc.cli.commands.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        _add_common_options(command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Complete the name of a command, or an option, without importing any command."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


class _CommonOption(click.Option):
    """Option of every command. After a command's name it overrides what stands before, and only the
    --help of `sfsc` itself lists it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return super().get_help_record(ctx) if ctx.parent is None else None


def _common_options(*, first: bool) -> list[click.Parameter]:
    """Return new options that every command takes. Only those before its name (`first`) read the
    environment."""
    home = click.Path(path_type=Path, file_okay=False)
    options: list[tuple[list[str], str, dict[str, Any]]] = [
        (["--home"], "Folder of the keyring and of this client's state (SFSC_HOME).",
         {"type": home, "envvar": "SFSC_HOME" if first else None}),
        (["--json"], "Answer in JSON, an object a line; errors too, on stderr.", {"is_flag": True}),
        (["-q", "--quiet"], "Show only results, warnings and errors.", {"is_flag": True}),
        (["-v", "--verbose"], "Show what is done: addresses, attempts, times.", {"is_flag": True}),
        (["--utc"], "Show times in UTC, not in local time.", {"is_flag": True}),
        (["--retry-for"],
         "Go on trying so long after the connection was lost: 90s, 5m (SFSC_RETRY_FOR).",
         {"metavar": "TIME"}),
        (["--passphrase-command"],
         "Take the passphrase from the output of COMMAND (SFSC_PASSPHRASE_COMMAND).",
         {"metavar": "COMMAND"}),
    ]  # fmt: skip
    return [
        _CommonOption(names, help=text, expose_value=False, callback=_set, **settings)
        for names, text, settings in options
    ]


def _set(ctx: click.Context, option: click.Parameter, value: Any) -> None:  # noqa: ANN401
    context, console = ctx.ensure_object(Context), terminal.console
    if not value:
        return
    match option.name:
        case "home":
            context.home = value
        case "utc":
            context.utc = True
        case "retry_for":
            os.environ["SFSC_RETRY_FOR"] = value
        case "passphrase_command":
            # As the variable, for the rest of this process; what the user types counts more.
            for name in ("SFSC_PASSPHRASE", "SFSC_PASSPHRASE_FILE"):
                os.environ.pop(name, None)
            os.environ["SFSC_PASSPHRASE_COMMAND"] = value
        case "json":
            console.json = True
        case "quiet":
            console.quiet = True
        case "verbose":
            console.verbose = True
    if console.quiet and console.verbose:
        raise click.UsageError("--quiet and --verbose exclude each other.")
    if console.json or console.verbose:
        terminal.show_library_log()


def _add_common_options(command: click.Command) -> None:
    """Accept the options of every command after its name too. Idempotent."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_common_options(inner)
    if not any(isinstance(one, _CommonOption) for one in command.params):
        command.params += _common_options(first=False)
        command.epilog = _EPILOG


@click.group(cls=ClientCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="sfsc")
def group() -> None:
    """Store files on an sfs server that cannot read them.

    The passphrase of the keyring is taken from SFSC_PASSPHRASE, from the file that
    SFSC_PASSPHRASE_FILE names, or from the output of the command in SFSC_PASSPHRASE_COMMAND. If
    none is set, sfsc asks for it. `sfsc agent start` lets it ask once.

    The options below may also follow the command and its arguments.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 integrity (data was tampered
    with), 6 conflict, 7 network, 8 key or passphrase.

    Example: sfsc put report.pdf
    """


group.params[:0] = _common_options(first=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code. Expected errors are reported, not raised."""
    # At exit Python searches all objects for cycles, which takes 50 ms, to free memory that ends
    # with the process. Everything that must be closed is closed by then without it.
    atexit.register(gc.freeze)
    gc.set_threshold(_GC_THRESHOLD)
    disable_core_dumps()
    open_closed_streams()
    accept_any_text()
    _handle_signals()
    terminal.reset_console()
    if "_SFSC_COMPLETE" in os.environ:
        from sfsc.cli.completion import register

        register()
    try:
        outcome = group.main(arguments, prog_name="sfsc", standalone_mode=False)
        with stdout_errors():
            sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        terminal.console.json |= asks_for_json(sys.argv[1:] if arguments is None else arguments)
        _report_usage(exc)
        return UsageError.exit_code
    except SfscError as exc:
        terminal.report(exc)
        finish_stdout()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt) as exc:
        # click raises Abort from the exception that interrupted it.
        cause = exc if isinstance(exc, _Interrupted) else exc.__cause__
        number = cause.number if isinstance(cause, _Interrupted) else signal.SIGINT
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            done = "interrupted" if number == signal.SIGINT else "terminated"
            terminal.report_failure(128 + number, done)
        return 128 + number
    except OSError as exc:
        finish_stdout()
        if isinstance(exc, BrokenPipeError):
            return 1
        if not was_raised_by(exc, click.echo):
            raise
        terminal.report(output_error(exc))  # click prints --help and --version itself
        return SfscError.exit_code
    finally:
        terminal.hide_progress()


def _report_usage(error: click.ClickException) -> None:
    if terminal.console.json:
        ctx = error.ctx if isinstance(error, click.UsageError) else None
        where = "sfsc" if ctx is None else ctx.command_path
        missing = isinstance(error, NoArgsIsHelpError)
        cause = "no command is given" if missing else error.format_message()
        terminal.report_failure(UsageError.exit_code, cause, f"run `{where} --help`")
        return
    shown = io.StringIO()
    error.show(shown)
    terminal.say(shown.getvalue().removesuffix("\n"))


class _Interrupted(KeyboardInterrupt):
    """Signal `number` was received: no upload stays open, and no half-written file."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)


def _handle_signals() -> None:
    """Make ^C, SIGTERM (``timeout``, systemd, a shutdown) and SIGHUP (a closed terminal) end a
    command cleanly: otherwise the server would reserve space for an unfinished upload. Does nothing
    for a signal that is ignored (``nohup``) or already has a handler."""

    def interrupt(number: int, _frame: object) -> None:
        deferred.interrupt(_Interrupted(number))

    if threading.current_thread() is not threading.main_thread():
        return
    for name in _SIGNALS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) in _UNHANDLED:
            signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
