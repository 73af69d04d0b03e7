"""`sfsc share`: let another user read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click

import sfsc
from protocol.codec.terminal_text import printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.errors import Untrusted, UsageError

if TYPE_CHECKING:
    from sfsc.files.sharing import Grant
    from sfsc.store import Store

_Done = TypeVar("_Done")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@click.command(short_help="Let another user read a file or folder.")
@click.argument("name", required=False)
@click.argument("user", required=False)
@click.option("-r", "--recursive", is_flag=True, help="NAME is a folder (`/`: everything).")
@click.option("--expires", metavar="WHEN", help="How long: 12h, 30d, 4w, or a day: 2027-01-31.")
@click.option("--history", is_flag=True, help="Older versions too.")
@click.option(
    "--trust-first-use", is_flag=True, help="Take USER's key as the server shows it, once."
)
@click.option("--list", "listing", is_flag=True, help="Show which folders are shared.")
@click.pass_obj
def command(
    context: Context,
    name: str | None,
    user: str | None,
    *,
    recursive: bool,
    expires: str | None,
    history: bool,
    trust_first_use: bool,
    listing: bool,
) -> None:
    """Let USER read NAME, in its present and later versions.

    He finds it with `sfsc inbox` and fetches it with `sfsc get YOU:NAME`. With -r every file in the
    folder NAME, and every one that you put there later, from any of your machines.

    A user whom you never shared with is shown with his fingerprint first: compare it with him, by
    another way than this server, and say so, or `sfsc key verify USER FINGERPRINT`.
    """
    with sfsc.connect(context.home, passphrase=terminal.passphrase_source()) as store:
        if listing:
            _show_folders(store, as_json=context.json)
            return
        if name is None or user is None:
            raise UsageError("NAME and USER are needed", "or --list; see `sfsc share --help`")
        until = 0 if expires is None else parse_expiry(expires, time.time())

        def share(first_use: bool) -> list[Grant]:
            if recursive:
                tree = store.share_tree(
                    name, user, expires=until, history=history, trust_first_use=first_use
                )
                return list(tree)
            one = store.share(name, user, expires=until, history=history, trust_first_use=first_use)
            return [one]

        for grant in trusting(share, first_use=trust_first_use):
            show(grant, "shared", as_json=context.json)
        if recursive and not context.json:
            folder = printable(name)
            terminal.say(f"what is put into {folder} from now on is shared with {user} too")


_Command = TypeVar("_Command", bound=Callable[..., None])


def shared_options(command: _Command) -> _Command:
    """What commands have that fetch files of others."""
    which = click.option("--id", "file_id", metavar="ID", help="Which of several of one name.")
    trust = click.option(
        "--trust-first-use", is_flag=True, help="Take OWNER's key as the server shows it, once."
    )
    return which(trust(command))


def trusting(action: Callable[[bool], _Done], *, first_use: bool) -> _Done:
    """Do `action`; where it needs a key that nobody has compared yet, ask on a terminal whether
    this is the one."""
    try:
        return action(first_use)
    except Untrusted as exc:
        if not terminal.is_interactive():
            raise
        terminal.say(f"sfsc: {printable(exc.cause)}")
        said = terminal.ask("Have you compared this fingerprint with him? [y/N] ")
        if said.strip().lower() not in ("y", "yes"):
            raise
        return action(True)


def parse_expiry(text: str, now: float) -> int:
    """Unix seconds of ``30d`` from `now`, or of the end of a day (UTC). Raises `UsageError`."""
    if matched := re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text):
        return int(now) + int(matched[1]) * _SECONDS[matched[2]]
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as exc:
        raise UsageError(f"no time: {text}", "say 12h, 30d, 4w or 2027-01-31") from exc
    until = int(day.timestamp()) + 86_400
    if until <= now:
        raise UsageError("that day is past", "name a later one")
    return until


def show(grant: Grant, done: str, *, as_json: bool) -> None:
    """Answer with one file that is shared, or no more."""
    if as_json:
        about = {"name": grant.name, "user": grant.user, "expires": grant.expires}
        terminal.answer_json({**about, done: True})
        return
    until = terminal.until(grant.expires)
    terminal.say(f"{done} {printable(grant.name)} with {grant.user}{until}")


def _show_folders(store: Store, *, as_json: bool) -> None:
    for one in store.shared_folders():
        if as_json:
            about = {"folder": one.prefix, "user": one.user, "expires": one.expires}
            terminal.answer_json(about)
        else:
            until = terminal.until(one.expires)
            terminal.answer(f"{printable(one.prefix)}/  {one.user}{until}")
