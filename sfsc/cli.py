"""`sfsc`: the way from arguments to a command and from an error to an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
from pathlib import Path

import click

from protocol import VERSION
from sfsc.commands import Context
from sfsc.errors import SfscError, UsageError
from sfsc.terminal import report, say

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


class Commands(click.Group):
    """Loads ``sfsc.commands.NAME`` when NAME is called; --help reads `COMMANDS` and loads none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sfsc.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    try:
        outcome = group.main(arguments, prog_name="sfsc", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.ClickException as exc:
        exc.show(sys.stderr)
        return UsageError.exit_code
    except SfscError as exc:
        report(exc)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("sfsc: interrupted")
        return 130
    except BrokenPipeError:
        # Who read our answer has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
