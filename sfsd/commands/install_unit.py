"""`sfsd install-unit`: write the units for systemd."""

from __future__ import annotations

import re
import sys
from importlib import resources
from pathlib import Path
from typing import Final

import click

from sfsd.commands import answer, show_steps
from sfsd.fs.files import Files

_PROGRAM: Final = "/opt/sfs/bin/sfsd"
_ROOT: Final = "/var/lib/sfsd"
_USER: Final = "sfsd"
_FOLDER: Final = "/etc/systemd/system"
_PLAIN: Final = re.compile(r"[A-Za-z0-9/_.+-]+")
"""Text that means itself in a unit: no blanks, quotes, ``%`` or ``$``."""


def _plain(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise click.BadParameter("only letters, digits and /_.+- can be in a unit")
    return text


def _absolute(context: click.Context, option: click.Parameter, text: str) -> str:
    if not text.startswith("/"):
        raise click.BadParameter("not an absolute path")
    return _plain(context, option, text).rstrip("/")


@click.command()
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=_FOLDER,
    show_default=True,
    help="Folder for the units.",
)
@click.option(
    "--root", default=_ROOT, show_default=True, callback=_absolute, help="Root that they serve."
)
@click.option(
    "--user", default=_USER, show_default=True, callback=_plain, help="System user of the root."
)
@click.option(
    "--program",
    default=_PROGRAM,
    show_default=True,
    callback=_absolute,
    help="The installed program.",
)
def command(folder: Path, root: str, user: str, program: str) -> None:
    """Write sfsd.service, sfsd.socket, sfsd-backup.service and sfsd-backup.timer for systemd.

    A unit that is there and differs is kept as NAME.old: put own settings into a drop-in with
    `systemctl edit`. Nothing is enabled or started.

    Example: sfsd install-unit

    Example: sfsd install-unit --to /tmp/units --root /srv/sfs
    """
    files = Files()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units(root=root, user=user, program=program).items():
        path, raw = folder.absolute() / name, text.encode()
        if path.exists():
            if path.read_bytes() == raw:
                answer(f"{path} is up to date")
                continue
            path.replace(path.with_name(f"{name}.old"))
        files.replace_durable(path, raw)
        path.chmod(0o644)
        answer(str(path))
    show_steps("Next, as root:", _next_steps(root, user, program))


def units(*, root: str = _ROOT, user: str = _USER, program: str = _PROGRAM) -> dict[str, str]:
    """Return the text of each unit by its name."""
    found: dict[str, str] = {}
    files = resources.files("sfsd").joinpath("units").iterdir()
    for file in sorted(files, key=lambda one: one.name):
        text = file.read_text("utf-8")
        text = re.sub(rf"{_PROGRAM}\b", program, text)
        text = re.sub(rf"(?<![\w/]){_ROOT}\b", root, text)
        text = re.sub(rf"^(User|Group)={_USER}$", rf"\1={user}", text, flags=re.MULTILINE)
        found[file.name] = text
    return found


def _next_steps(root: str, user: str, program: str) -> list[str]:
    """Return what the operator does after `install-unit`."""
    steps = []
    if not Path(program).exists():
        steps.append(f"Install the program: {program} does not exist ({sys.executable} runs here).")
    if not Path(root).exists():
        steps.append(f"Make the root as {user}: sfsd init --root {root}")
    return [
        *steps,
        "Read the units again: systemctl daemon-reload",
        "Start the daemon now and at each boot: systemctl enable --now sfsd",
        f"Make a folder for backups: install -d -o {user} -g {user} -m 0700 /var/backups/sfsd",
        "Make a backup every day: systemctl enable --now sfsd-backup.timer",
    ]
