"""Creates roots and accounts without a process for each command.

Uses the code of `sfsd init`, `sfsd user add` and `sfsc init`, which have their own tests.
"""

from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner

from sfsc.account.enrol import enrol_account, read_invitation
from sfsd.commands import init, user
from tests.harness import Client, Daemon


def new_root(root: Path) -> Daemon:
    """Create a root that is not served yet."""
    root.mkdir(parents=True, exist_ok=True)
    _called(init.command, root)
    return Daemon(root)


def enrolled(
    daemon: Daemon, name: str, home: Path, key_type: str = "xwing", passphrase: str | None = None
) -> Client:
    """Enrol a new user of a served root. The default is no passphrase, because stretching one takes
    longer than everything else in a command."""
    invitation = read_invitation(_called(user.command, daemon.root, "add", name).strip())
    enrol_account(invitation, home, key_type, passphrase)
    return Client(home)


def _called(command: click.Command, root: Path, *arguments: str) -> str:
    done = CliRunner().invoke(
        command, [*arguments, "--root", str(root)], catch_exceptions=False, standalone_mode=False
    )
    return done.stdout
