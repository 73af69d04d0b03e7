"""The commands of `sfsc`: one module per subject, imported when one of its commands is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sfsc.cli.context import Context, name_table
from sfsc.errors import NotFound, SfscError, UsageError

if TYPE_CHECKING:
    from sfsc.store import Store

__all__ = ["Context", "check_is_no_folder", "folder_hint", "name_table"]


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
