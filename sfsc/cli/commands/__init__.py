"""The commands of `sfsc`: one module per subject, imported when one of its commands is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import sfsc
from protocol.codec.values import Mutable, Value
from sfsc.cli import terminal
from sfsc.errors import NotFound, SfscError, UsageError

if TYPE_CHECKING:
    from sfsc.session.session import Progress
    from sfsc.store import Store


class Context(Value):
    """Options of every command: the folder of the keyring (None: the usual one), and whether to
    answer in JSON."""

    home: Path | None
    json: bool

    def connect(
        self,
        progress: Progress | None = None,
        *,
        auto_rotate: bool | None = None,
        passphrase: Callable[[], str] | None = None,
        limit_rate: int | None = None,
    ) -> Store:
        """Log in and return the open store. Asks for the passphrase if the keyring needs one, by
        `passphrase` if that is given."""
        return sfsc.connect(
            self.home,
            passphrase=passphrase or terminal.passphrase_source(),
            progress=progress,
            auto_rotate=auto_rotate,
            limit_rate=limit_rate,
        )

    def answer(self, value: Value | Mutable | Mapping[str, object], *lines: str) -> None:
        """Write the result to stdout: `value` with --json, else `lines`."""
        if self.json:
            terminal.answer_json(value)
        else:
            terminal.answer("\n".join(lines))

    def confirm(self, value: Value | Mapping[str, object], line: str) -> None:
        """Report a change: `value` to stdout with --json, else `line` to stderr."""
        if self.json:
            terminal.answer_json(value)
        else:
            terminal.say(line)


def check_is_no_folder(names: Iterable[str]) -> None:
    """Raise `UsageError` for a name with a slash at its end: only a folder has one."""
    for name in names:
        if name.endswith("/"):
            hint = "use -r, or write it without the slash if it is a file"
            raise UsageError(f"{name} is a folder", hint)


@contextlib.contextmanager
def folder_hint(store: Store, name: str) -> Iterator[None]:
    """If there is no file `name`, but a folder, say so in the hint of the `NotFound`."""
    try:
        yield
    except NotFound as exc:
        folder = f"{name.rstrip('/')}/"
        found = False
        with contextlib.suppress(SfscError):  # the error of the command matters more
            found = bool(list(store.ls(folder, skip=lambda _name, _error: None)))
        if not found:
            raise
        hint = f"{folder} is a folder: `get` and `rm` take it with -r; `sfsc ls {folder}` lists it"
        raise NotFound(exc.cause, hint) from exc
