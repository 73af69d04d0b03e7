"""Roots and accounts for tests that are about something else: the code of `sfsd init`, `sfsd user
add` and `sfsc init`, without a process for each. Those commands have tests of their own."""

from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner

from sfsc.account.enrol import enrol_account, invited_by
from sfsd.commands import init, user
from tests.harness import Client, Daemon


def new_root(root: Path) -> Daemon:
    """A root that is not served yet."""
    root.mkdir(parents=True, exist_ok=True)
    _called(init.command, root)
    return Daemon(root)


def enrolled(
    daemon: Daemon, name: str, home: Path, key_type: str = "xwing", passphrase: str | None = None
) -> Client:
    """A new user of a served root. Without a passphrase: stretching one takes longer than all else
    that a command does."""
    invitation = invited_by(_called(user.command, daemon.root, "add", name).strip())
    enrol_account(invitation, home, key_type, passphrase)
    return Client(home)


def _called(command: click.Command, root: Path, *arguments: str) -> str:
    done = CliRunner().invoke(
        command, [*arguments, "--root", str(root)], catch_exceptions=False, standalone_mode=False
    )
    return done.stdout
