"""`sfsc share`, `unshare` and `inbox`, and the trust in a key that nobody has compared yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeVar

import click

import sfsc
from protocol.codec.terminal_text import human_size, printable
from sfsc.cli import terminal
from sfsc.cli.commands import Context, check_is_no_folder
from sfsc.cli.owners import own_name, split_owner
from sfsc.cli.suggestions import own_names, shared_names, users
from sfsc.cli.times import parse_age
from sfsc.errors import Untrusted, UsageError

if TYPE_CHECKING:
    from sfsc.files.sharing import Grant
    from sfsc.store import Store

_Command = TypeVar("_Command", bound=Callable[..., None])
_Result = TypeVar("_Result")
_WORDS_PER_LINE: Final = 4


@click.command()
@click.argument("name", required=False, shell_complete=own_names)
@click.argument("user", required=False, shell_complete=users)
@click.option("-r", "--recursive", is_flag=True, help="Share the folder NAME (`/`: everything).")
@click.option(
    "--expires",
    metavar="WHEN",
    help="End of the access: 12h, 30d, 4w, a day (2027-01-31), or never.",
)
@click.option("--history", is_flag=True, help="Share the older versions too.")
@click.option(
    "--trust-first-use", is_flag=True, help="Trust the key that the server shows for USER, once."
)
@click.option("--list", "listing", is_flag=True, help="List the shared folders.")
@click.option("--yes", is_flag=True, help="Do not ask before everything is shared.")
@click.pass_obj
def share(
    context: Context,
    name: str | None,
    user: str | None,
    *,
    recursive: bool,
    expires: str | None,
    history: bool,
    trust_first_use: bool,
    listing: bool,
    yes: bool,
) -> None:
    """Let USER read the current version of NAME and every later one.

    USER finds it with `sfsc inbox` and fetches it with `sfsc get YOU:NAME`. With -r, share every
    file in the folder NAME, and every file that you put there later, from any of your machines.

    `sfsc share -r / USER` shares all you have and will ever store. It asks first; without a
    terminal it needs --yes.

    If USER reads NAME already, the end of the access stays unless --expires is given.

    The first time you share with USER, the command shows a fingerprint. Compare it with USER, by
    telephone or in person but not through this server, and confirm it. `sfsc key verify USER
    FINGERPRINT` does the same beforehand.

    Example: sfsc share report.pdf bob --expires 30d
    """
    if recursive and name is not None and user is not None and not name.strip("/"):
        question = f"Share every file, and every later one, with {printable(user)}?"
        terminal.require_yes(question, yes=yes)
    if name is not None and not recursive:
        check_is_no_folder([name])
    with context.connect() as store:
        if listing:
            with context.table("user", "until", "folder") as rows:
                for one in store.shared_folders():
                    shown = {"folder": one.prefix, "user": one.user, "expires": one.expires}
                    rows.add(shown, one.user, _ending(one.expires, context), f"{one.prefix}/")
            return
        if name is None or user is None:
            raise UsageError("NAME and USER are needed", "or use --list; see `sfsc share --help`")
        name = own_name(store, name)
        until = None if expires is None else parse_expiry(expires, time.time())

        def grant(first_use: bool) -> list[Grant]:
            if recursive:
                tree = store.share_tree(
                    name, user, expires=until, history=history, trust_first_use=first_use
                )
                return list(tree)
            one = store.share(name, user, expires=until, history=history, trust_first_use=first_use)
            return [one]

        grants = confirm_trust(grant, first_use=trust_first_use)
        _show_grants(grants, "shared", context)
        if recursive:
            folder = printable(name)
            if not grants:
                terminal.note(f"no file is in {folder} yet")
            terminal.note(f"files that you add to {folder} later are shared with {user} too")


@click.command()
@click.argument("name", shell_complete=own_names)
@click.argument("user", shell_complete=users)
@click.option("-r", "--recursive", is_flag=True, help="NAME is a folder that was shared with -r.")
@click.option("--reencrypt", is_flag=True, help="Encrypt the current version again.")
@click.pass_obj
def unshare(context: Context, name: str, user: str, *, recursive: bool, reencrypt: bool) -> None:
    """Stop sharing NAME with USER. The server refuses USER as soon as it has acknowledged this.

    Copies that USER has fetched remain with USER. With --reencrypt the current version is stored
    again under a key that USER never had, so a key that USER kept opens nothing on the server.

    Example: sfsc unshare report.pdf bob
    """
    if not recursive:
        check_is_no_folder([name])
    with context.connect() as store:
        name = own_name(store, name)
        if recursive:
            _show_grants(store.unshare_tree(name, user, reencrypt=reencrypt), "unshared", context)
        else:
            _show_grants([store.unshare(name, user, reencrypt=reencrypt)], "unshared", context)


def _show_grants(grants: Iterable[Grant], done: str, context: Context) -> None:
    """Report files that were ``shared``, or ``unshared``: `done` is the JSON key."""
    text = "shared" if done == "shared" else "stopped sharing"
    for one in grants:
        shown = {"name": one.name, "user": one.user, "expires": one.expires, done: True}
        until = context.until(one.expires)
        context.confirm(shown, f"{text} {printable(one.name)} with {one.user}{until}")


@click.command()
@click.pass_obj
def shares(context: Context) -> None:
    """List everything that you share: first the folders, then the files, each with a user and the
    end of the access.

    A folder also shares what is put there later. Its files are listed too, because a file may be
    shared longer or with others.

    Example: sfsc shares
    """
    failures = terminal.Failures()
    with context.connect() as store, context.table("user", "until", "name") as rows:

        def show(name: str, kind: str, user: str, expires: int) -> None:
            shown = {"name": name, "kind": kind, "user": user, "expires": expires}
            rows.add(shown, user, _ending(expires, context), name)

        for folder in store.shared_folders():
            show(f"{folder.prefix}/", "folder", folder.user, folder.expires)
        for one in store.shares(skip=failures):
            show(one.name, "file", one.user, one.expires)
    failures.check()


def _ending(expires: int, context: Context) -> str:
    return context.time(expires) if expires else "-"


@click.command()
@click.pass_obj
def people(context: Context) -> None:
    """List the users whose fingerprints you have verified, or accepted at first use, with them.

    Example: sfsc people
    """
    from sfsc.keys.pgp_words import pgp_words

    found = sfsc.people(context.home, passphrase=terminal.passphrase_source())
    with context.table("user", "fingerprint") as rows:
        for user, fingerprint in found:
            shown = {"user": user, "fingerprint": fingerprint.hex()}
            shown["words"] = " ".join(pgp_words(fingerprint))
            rows.add(shown, user, fingerprint.hex())


@click.group(invoke_without_command=True)
@click.pass_context
def inbox(ctx: click.Context) -> None:
    """List the files that others share with you, as OWNER:NAME. `sfsc get OWNER:NAME` fetches one.

    `unverified` marks an owner whose fingerprint you have not compared: only the server says who
    that is. Compare it, then run `sfsc key verify OWNER FINGERPRINT`. The commands below shorten
    the list.

    Example: sfsc inbox
    """
    if ctx.invoked_subcommand is None:
        show_inbox(ctx.ensure_object(Context), "", long=True)


@inbox.command("leave")
@click.argument("file", metavar="OWNER:NAME", shell_complete=shared_names)
@click.option("--id", "file_id", metavar="ID", help="Choose among shared files of the same name.")
@click.pass_obj
def inbox_leave(context: Context, file: str, file_id: str | None) -> None:
    """Leave a file that somebody shares with you. It is not shown to you any more.

    OWNER's client drops you as a reader the next time that OWNER changes the file. OWNER can share
    it with you again; `sfsc inbox block OWNER` prevents that. For a file that cannot be shown, give
    the OWNER:ID that `sfsc inbox` names.

    Example: sfsc inbox leave bob:report.pdf
    """
    with context.connect() as store:
        owner, name = split_owner(store, file)
        if owner is None:
            raise UsageError(f"not a file of another user: {file}", "write it as OWNER:NAME")
        left = store.leave(owner, name, file_id=file_id)
    shown = f"{owner}:{printable(name)}"
    context.confirm({"owner": owner, "name": name, "file_id": left, "left": True}, f"left {shown}")


@inbox.command("block")
@click.argument("owner", shell_complete=users)
@click.pass_obj
def inbox_block(context: Context, owner: str) -> None:
    """Show nothing that OWNER shares, and let the server refuse what OWNER shares with you later.

    What you share with OWNER stays. OWNER is told when they share a file with you.

    Example: sfsc inbox block mallory
    """
    with context.connect() as store:
        store.block(owner)
    context.confirm({"owner": owner, "blocked": True}, f"blocked {owner}")


@inbox.command("unblock")
@click.argument("owner", shell_complete=users)
@click.pass_obj
def inbox_unblock(context: Context, owner: str) -> None:
    """Show what OWNER shares with you again.

    Example: sfsc inbox unblock mallory
    """
    with context.connect() as store:
        store.unblock(owner)
    context.confirm({"owner": owner, "blocked": False}, f"unblocked {owner}")


@inbox.command("blocked")
@click.pass_obj
def inbox_blocked(context: Context) -> None:
    """List the users whom you block.

    Example: sfsc inbox blocked
    """
    with context.connect() as store:
        for owner in store.blocked():
            context.answer({"owner": owner, "blocked": True}, owner)


def show_inbox(context: Context, prefix: str, *, long: bool) -> None:
    """List the shared files whose OWNER:NAME starts with `prefix`."""
    with context.connect() as store:
        list_inbox(store, context, prefix, long=long)


def list_inbox(store: Store, context: Context, prefix: str, *, long: bool) -> None:
    """Like `show_inbox`, in an open store."""
    failures = terminal.Failures()
    headers = ("version", "size", "modified", "owner", "name", "until") if long else ("",)
    with context.table(*headers, right=("version", "size")) as rows:
        for item in store.inbox(skip=failures):
            entry, name = item.entry, f"{item.owner}:{item.entry.name}"
            if not name.startswith(prefix):
                continue
            about = {"owner": item.owner, "expires": item.expires, "verified": item.verified}
            shown = {**about, **terminal.fields_of(entry)}
            if not long:
                rows.add(shown, name)
                continue
            size, modified = human_size(entry.size), context.time(entry.mtime)
            verified = "verified" if item.verified else "unverified"
            until = _ending(item.expires, context)
            rows.add(shown, entry.version, size, modified, verified, name, until)
    failures.check()


def trust_options(command: _Command) -> _Command:
    """Add the options of commands that fetch other users' files."""
    which = click.option(
        "--id", "file_id", metavar="ID", help="Choose among shared files of the same name."
    )
    trust = click.option(
        "--trust-first-use",
        is_flag=True,
        help="Trust the key that the server shows for OWNER, once.",
    )
    return which(trust(command))


def confirm_trust(action: Callable[[bool], _Result], *, first_use: bool) -> _Result:
    """Run `action`. If it needs a key that nobody has compared yet, ask the user at the terminal,
    and run it again with True. Raises `Untrusted` if the user does not confirm."""
    try:
        return action(first_use)
    except Untrusted as exc:
        if not terminal.is_interactive():
            raise
        terminal.say(f"sfsc: {printable(exc.cause)}")
        for line in word_lines(bytes.fromhex(exc.fingerprint)):
            terminal.say(line)
        said = terminal.ask_user("Have you compared this fingerprint with the user? [y/N] ")
        if said.strip().lower() not in ("y", "yes"):
            raise
        return action(True)


def word_lines(fingerprint: bytes) -> Iterator[str]:
    """Yield lines with the words of a fingerprint, which are easier to read aloud than hex."""
    from sfsc.keys.pgp_words import pgp_words

    words = pgp_words(fingerprint)
    for start in range(0, len(words), _WORDS_PER_LINE):
        label = "in words" if start == 0 else ""
        yield f"{label:<12} {' '.join(words[start : start + _WORDS_PER_LINE])}"


def parse_expiry(text: str, now: float) -> int:
    """Return the Unix time of ``30d`` after `now`, or of the end of a day (UTC) such as
    ``2027-01-31``; 0 for ``never``. Raises `UsageError`."""
    if text == "never":
        return 0
    if (age := parse_age(text)) is not None:
        return int(now) + age
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as exc:
        raise UsageError(f"not a time: {text}", "use 12h, 30d, 4w, 2027-01-31 or never") from exc
    until = int(day.timestamp()) + 86_400
    if until <= now:
        raise UsageError(f"{text} is in the past", "use a later day")
    return until
