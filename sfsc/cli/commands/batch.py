"""`sfsc batch`: several changes that become visible together or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from protocol.codec.errors import MessageError
from protocol.codec.names import check_file_name
from protocol.codec.terminal_text import human_size, printable
from protocol.codec.values import Value
from sfsc import local_files
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.transfer import no_file
from sfsc.cli.owners import own_name
from sfsc.cli.suggestions import paths
from sfsc.errors import LocalError, UsageError

if TYPE_CHECKING:
    from sfsc.files.transaction import Changed, Transaction
    from sfsc.store import Store

_KEYS: Final = {"put": "source", "rm": None, "mv": "to"}
"""The ops, and the key that each needs beside `op` and `name`."""
_OPS: Final = {"put": "put", "delete": "rm", "move": "mv"}
_HINT: Final = (
    'a line is {"op":"put","name":NAME,"source":PATH}, {"op":"rm","name":NAME}'
    ' or {"op":"mv","name":NAME,"to":NAME}'
)
_LIMITS: Final = "at most 256 names, and 1 MiB of files that have at most 256 KiB: split it"
_MAX_NAMES: Final = 256
_MAX_INLINE: Final = 1 << 20
_SMALL: Final = 256 * 1024 - 64
"""Bytes of a file whose ciphertext certainly fits into 256 KiB."""
_MAX_BYTES: Final = 4 << 20


@click.command()
@click.argument("file", metavar="FILE", shell_complete=paths)
@click.pass_obj
def batch(context: Context, file: str) -> None:
    """Make the changes that FILE lists, all of them or none. `-` reads them from stdin.

    Each line of FILE is a JSON object: {"op":"put","name":NAME,"source":PATH} stores the file PATH,
    {"op":"rm","name":NAME} deletes, and {"op":"mv","name":NAME,"to":NAME} renames. A PATH is taken
    from the current folder. Files of more than 256 KiB are uploaded first; nobody sees any change
    before all are made.

    If one change is refused, none is made: exit code 3 if a NAME is missing, 6 if the new name of
    a rename exists. A NAME occurs once, and FILE has at most 256 of them, with 1 MiB of files that
    have at most 256 KiB; otherwise the exit code is 2.

    Example: sfsc batch changes.jsonl
    """
    asked = list(_read(file))
    with context.connect() as store:
        asked = [_of_own_files(store, one) for one in asked]
        with store.transaction() as change:
            for one in asked:
                one.ask(change)
        for done in change.results:
            _show(done, context)


def _of_own_files(store: Store, one: _Asked) -> _Asked:
    other = own_name(store, one.other) if one.op == "mv" else one.other
    return _Asked(one.op, own_name(store, one.name), other)


class _Asked(Value):
    """One line; `other` is the path of a put, the new name of a move, or empty."""

    op: str
    name: str
    other: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are changed."""
        return (self.name, self.other) if self.op == "mv" else (self.name,)

    def ask(self, change: Transaction) -> None:
        """Add the change to a transaction."""
        if self.op == "put":
            change.put(self.name, self.other)
        elif self.op == "rm":
            change.delete(self.name)
        else:
            change.move(self.name, self.other)


def _read(file: str) -> Iterator[_Asked]:
    """Yield the changes that FILE lists. Raises `UsageError` for what is wrong with them, and
    `LocalError` if FILE or the source of a put cannot be read."""
    lines: dict[str, int] = {}
    small = 0
    for number, text in enumerate(_lines(file), 1):
        if not text.strip():
            continue
        try:
            asked = _parse(text)
            for name in asked.names:
                check_file_name(name)
                if name in lines:
                    raise ValueError(f"{name} occurs in line {lines[name]} already")
                lines[name] = number
        except (ValueError, RecursionError, MessageError) as exc:
            raise UsageError(f"line {number} of {file}: {exc}", _HINT) from exc
        if asked.op == "put":
            if not local_files.is_file(asked.other):
                raise no_file(asked.other)
            small += _small_size(asked.other)
        if len(lines) > _MAX_NAMES or small > _MAX_INLINE:
            raise UsageError(f"{file} does not fit into one changeset", _LIMITS)
        yield asked


def _small_size(path: str) -> int:
    """Return the size of a file that is sent with the changes, 0 for one that is uploaded."""
    try:
        size = Path(path).stat().st_size
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
    return size if size <= _SMALL else 0


def _lines(file: str) -> list[str]:
    """Return the lines of FILE, at most 4 MiB. Raises `LocalError` and `UsageError`."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as source:
                data = source.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise LocalError(f"cannot read {file}: {exc.strerror}") from exc
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{file} has more than {_MAX_BYTES:,} bytes", "split it")
    try:
        return data.decode().split("\n")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} is not UTF-8", _HINT) from exc


def _parse(text: str) -> _Asked:
    """Parse a line. Raises ValueError and RecursionError."""
    import json

    value = json.loads(text, object_pairs_hook=_without_repeated)
    op = value.get("op") if isinstance(value, dict) else None
    if not isinstance(op, str) or op not in _KEYS:
        raise ValueError("no object with the op put, rm or mv")
    key = _KEYS[op]
    keys = {"op", "name"} if key is None else {"op", "name", key}
    if value.keys() != keys or not all(isinstance(one, str) for one in value.values()):
        raise ValueError(f"{op} has the keys {', '.join(sorted(keys))}, each with a text")
    return _Asked(op, value["name"], "" if key is None else value[key])


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _show(done: Changed, context: Context) -> None:
    shown: dict[str, object] = {"op": _OPS[done.op], "name": done.name, "file_id": done.file_id}
    name = printable(done.name)
    if done.op == "delete":
        context.confirm({**shown, "deleted": True}, f"deleted {name}")
        return
    shown |= {"version": done.version, "size": done.size}
    if done.to is not None:
        context.confirm({**shown, "to": done.to}, f"renamed {name} to {printable(done.to)}")
        return
    context.confirm(shown, f"{name}  version {done.version}, {human_size(done.size or 0)}")
    if done.unstable:
        terminal.warn_unstable(done.name)
