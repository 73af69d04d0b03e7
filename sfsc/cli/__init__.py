"""`sfsc`: the way from arguments to a command and from an error to an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import os
import signal
import sys
import threading
from pathlib import Path

import click

from protocol import VERSION
from sfsc.cli.commands import Context
from sfsc.cli.terminal import answering, report, say
from sfsc.errors import SfscError, UsageError

COMMANDS = {
    "init": "Enrol on a server with an invitation.",
    "put": "Encrypt and store files.",
    "get": "Fetch and decrypt a file.",
    "cat": "Write files to stdout.",
    "ls": "List your files.",
    "stat": "Show what is known about a file.",
    "rm": "Delete files.",
    "mv": "Rename a file.",
    "share": "Let another user read a file or folder.",
    "unshare": "Take that back.",
    "inbox": "List what others share with you.",
    "history": "Show every version of a file.",
    "restore": "Bring a deleted file or an old version back.",
    "key": "Show, back up and restore your keys.",
    "device": "Show the machines that have your keys.",
    "rotate": "Replace your keys.",
    "verify-rotation": "Check that nothing of an older key is left.",
    "audit": "Read and verify the server's log.",
    "whoami": "Show who you are, and your key's fingerprint.",
    "status": "Show the server, your usage and your keys' age.",
}
"""Name and one line of help of every command, in the order of --help."""


_LOOK_FOR_CYCLES = 20_000
"""Objects more than before at which Python looks for cycles among the youngest, not at 700: hardly
anything of a file is in one."""


class ClientCommands(click.Group):
    """Imports ``sfsc.cli.commands.NAME`` when NAME is called; --help imports no command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sfsc.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        _let_answer_in_json(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _let_answer_in_json(command: click.Command) -> None:
    """Let --json stand behind the command too, where `sfsd` has it. Twice does no harm."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _let_answer_in_json(inner)
    elif all("--json" not in one.opts for one in command.params):
        json = click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_answer_in_json,
            help="Answer in JSON, one object a line.",
        )
        command.params.append(json)


def _answer_in_json(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.obj = Context(ctx.ensure_object(Context).home, True)


@click.group(cls=ClientCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SFSC_HOME",
    help="Folder of the keyring and of what this client remembers (SFSC_HOME).",
)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, one object a line.")
@click.version_option(VERSION, prog_name="sfsc")
@click.pass_context
def group(ctx: click.Context, home: Path | None, as_json: bool) -> None:
    """Store files on an sfs server that cannot read them.

    The passphrase of the keyring is asked for, or taken from SFSC_PASSPHRASE or from the file that
    SFSC_PASSPHRASE_FILE names.

    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 integrity (something was
    tampered with), 6 conflict, 7 network, 8 key or passphrase.
    """
    ctx.obj = Context(home, as_json)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code and lets no expected error through as a traceback."""
    # At its exit Python looks for cycles among all that was loaded, for 50 ms, to free memory that
    # goes with the process. What has to be closed is closed by then: nothing of ours relies on it.
    atexit.register(gc.freeze)
    gc.set_threshold(_LOOK_FOR_CYCLES)
    _open_closed_streams()
    _take_any_text()
    _end_in_order()
    try:
        outcome = group.main(arguments, prog_name="sfsc", standalone_mode=False)
        with answering():
            sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        exc.show(sys.stderr)
        return UsageError.exit_code
    except SfscError as exc:
        report(exc)
        _drop_answer()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt) as exc:
        # click makes an Abort of what interrupts it, and keeps that as its cause.
        terminated = isinstance(exc, _Terminated) or isinstance(exc.__cause__, _Terminated)
        say("sfsc: terminated" if terminated else "sfsc: interrupted")
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    except BrokenPipeError:
        _drop_answer()
        return 1


class _Terminated(KeyboardInterrupt):
    """SIGTERM has come. Like ^C it leaves no upload half open and no file half written."""


def _end_in_order() -> None:
    """Let SIGTERM (``timeout``, systemd, a shutdown) end a command as ^C does, not where it stands:
    the server would hold room for what was being stored for an hour more. Only where nobody else
    has decided about it."""
    of_main = threading.current_thread() is threading.main_thread()
    if of_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:

        def terminate(_signal: int, _frame: object) -> None:
            raise _Terminated

        signal.signal(signal.SIGTERM, terminate)


def _open_closed_streams() -> None:
    """Who starts us with a stream closed (``>&-``) wants nothing of it. Its number is taken, so
    that no file or socket of ours gets that, and with it what others write there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _take_any_text() -> None:
    """A name that the encoding of stdout has no letters for, as a pipe's on Windows, is shown with
    escapes, and bytes on stdin that are no text are no answer: neither ends in a traceback."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # a program that calls us may have put another
            stream.reconfigure(errors=errors)


def _drop_answer() -> None:
    """Where nobody takes the rest of the answer, Python would complain once more when it flushes at
    exit, with an exit code of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
