"""`sfsc ls`: what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

import sfsc
from protocol.codec.terminal_text import human_time, printable
from protocol.codec.values import Mutable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.inbox import show as show_shared
from sfsc.cli.commands.stat import as_object

if TYPE_CHECKING:
    from sfsc.trust.file_records import Entry


@click.command(short_help="List your files.")
@click.argument("prefix", default="")
@click.option("-l", "--long", is_flag=True, help="Version, size and time too.")
@click.option("-R", "--recursive", is_flag=True, help="What is in folders too.")
@click.option("--shared", is_flag=True, help="What others share, as OWNER:NAME.")
@click.pass_obj
def command(context: Context, prefix: str, *, long: bool, recursive: bool, shared: bool) -> None:
    """List your files by name, those that begin with PREFIX where it is given.

    A folder is one line, with a slash at its end; `sfsc ls FOLDER/` shows what is in it.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        if shared:
            failures = terminal.Failures()
            for one in store.inbox(skip=failures):
                if f"{one.owner}:{one.entry.name}".startswith(prefix):
                    show_shared(one, context, long=long)
            failures.check()
            return
        found = store.ls(prefix)
        for item in found if recursive else _level(found, prefix):
            _show(item, context, long=long)


class _Folder(Mutable):
    """What stands for all files in a folder; `size` in bytes, `mtime` the newest one's."""

    name: str
    files: int = 0
    size: int = 0
    mtime: int = 0

    def take(self, entry: Entry) -> None:
        self.files += 1
        self.size += entry.size
        self.mtime = max(self.mtime, entry.mtime)

    def as_object(self) -> dict[str, object]:
        return {"name": self.name, "files": self.files, "size": self.size, "mtime": self.mtime}


def _level(entries: Iterable[Entry], prefix: str) -> Iterator[Entry | _Folder]:
    """Files without a slash behind the prefix, and the folders that hold the others, by name."""
    folder: _Folder | None = None
    for entry in entries:
        inside = entry.name.find("/", len(prefix))
        name = entry.name[: inside + 1] if inside >= 0 else None
        if folder is not None and name != folder.name:
            yield folder
            folder = None
        if name is None:
            yield entry
        else:
            folder = folder or _Folder(name)
            folder.take(entry)
    if folder is not None:
        yield folder


def _show(item: Entry | _Folder, context: Context, *, long: bool) -> None:
    name = printable(item.name)
    if context.json:
        terminal.answer_json(item.as_object() if isinstance(item, _Folder) else as_object(item))
    elif long:
        count = "" if isinstance(item, _Folder) else item.version
        size, modified = terminal.human_size(item.size), human_time(item.mtime)
        terminal.answer(f"{count:>4}  {size:>11}  {modified}  {name}")
    else:
        terminal.answer(name)
