"""Values of arguments and options that the shell completes: names in the store, users and paths.

Names come from the state of this machine, folder by folder. The server is not asked. A keyring that
is locked gives no names, and no error is shown: a completion has no place for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sfsc.cli.context import Context
from sfsc.cli.owners import OWNER_AND_NAME
from sfsc.errors import SfscError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sfsc.files.known_names import KnownNames

    Suggest = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

FOLDER: Final = "folder"
"""Type of a completion that is not a whole name: the shell adds no space after it."""


def own_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Suggest names of the user's own files and folders."""
    return _names(ctx, incomplete, lambda known: _own(known, known.own))


def any_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Suggest names of the user's own files, and OWNER:NAME of files of others."""
    return _names(ctx, incomplete, lambda known: [*_own(known, known.own), *known.shared])


def past_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Suggest names of the user's own files, those of deleted ones too."""

    def choose(known: KnownNames) -> Iterable[str]:
        return _own(known, (*known.own, *known.deleted))

    return _names(ctx, incomplete, choose, deleted=True)


def shared_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Suggest OWNER:NAME of files of others."""
    return _names(ctx, incomplete, lambda known: known.shared)


def users(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Suggest the users whose fingerprints were verified."""
    from click.shell_completion import CompletionItem

    from sfsc.files.known_names import known_people

    found: tuple[str, ...] = ()
    with contextlib.suppress(SfscError):
        found = known_people(_home(ctx))
    return [CompletionItem(one) for one in sorted(found) if one.startswith(incomplete)]


def paths(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Let the shell suggest files of this machine."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def by_direction(*, down: Suggest, up: Suggest) -> Suggest:
    """Return a function that suggests what `down` does if --down was given, else what `up` does."""

    def suggest(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        return (down if ctx.params.get("down") else up)(ctx, param, incomplete)

    return suggest


def _names(
    ctx: click.Context,
    incomplete: str,
    choose: Callable[[KnownNames], Iterable[str]],
    *,
    deleted: bool = False,
) -> list[CompletionItem[str]]:
    """Return the chosen names that start with `incomplete`, each up to its next slash. A name that
    is not printable is left out: a terminal would show another one."""
    from click.shell_completion import CompletionItem

    known = _known(ctx, incomplete, deleted=deleted)
    found = set[str]()
    for name in () if known is None else choose(known):
        if name.startswith(incomplete) and name.isprintable():
            slash = name.find("/", len(incomplete))
            found.add(name if slash < 0 else name[: slash + 1])
    kinds = {True: FOLDER, False: "plain"}
    return [CompletionItem(name, type=kinds[name.endswith("/")]) for name in sorted(found)]


def _own(known: KnownNames, names: Iterable[str]) -> Iterable[str]:
    """Return the names as a command takes them: one that reads as OWNER:NAME gets its owner."""
    return [f"{known.user}:{one}" if OWNER_AND_NAME.fullmatch(one) else one for one in names]


def _known(ctx: click.Context, incomplete: str, *, deleted: bool) -> KnownNames | None:
    import sfsc

    home = _home(ctx)
    try:
        return sfsc.known_names(_stored_prefix(incomplete), home=home, deleted=deleted)
    except SfscError:
        return None


def _stored_prefix(incomplete: str) -> str:
    """Return with what the names may start: with `incomplete`, or after an OWNER with anything."""
    return "" if ":" in incomplete else incomplete


def _home(ctx: click.Context) -> Path | None:
    """Return the folder that --home names, in any position, or SFSC_HOME."""
    return ctx.ensure_object(Context).home
