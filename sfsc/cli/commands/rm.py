"""`sfsc rm`: delete."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sfsc.store import Store


@click.command(short_help="Delete files.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-r", "--recursive", is_flag=True, help="NAME is a folder: all files in it.")
@click.option("--purge", is_flag=True, help="Remove every version's content for good.")
@click.pass_obj
def command(context: Context, names: tuple[str, ...], *, recursive: bool, purge: bool) -> None:
    """Delete each NAME. A signed record of the deletion stays, and so do the versions, as trash.

    With --purge the content of all versions goes too, also of a NAME that was deleted before; what
    is left is the record that it was there.
    """
    if recursive and purge:
        raise UsageError("-r and --purge do not go together", "purge the files one by one")
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        for name in names:
            if recursive:
                for entry in store.rm_tree(name):
                    _show(context, entry.name, None)
            else:
                _show(context, name, _remove(store, name, purge=purge))


def _remove(store: Store, name: str, *, purge: bool) -> list[int] | None:
    """The versions whose content was removed, None where that was not asked for."""
    if not purge:
        store.rm(name)
        return None
    with contextlib.suppress(NotFound):  # deleted before, or never there: purging says so
        store.rm(name)
    return store.purge(name)


def _show(context: Context, name: str, purged: list[int] | None) -> None:
    if context.json:
        about = {} if purged is None else {"purged": purged}
        terminal.answer_json({"name": name, "deleted": True, **about})
        return
    what = "deleted" if purged is None else f"deleted, with the content of {len(purged)} versions,"
    terminal.say(f"{what} {printable(name)}")
