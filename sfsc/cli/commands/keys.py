"""`sfsc key`, `device`, `rotate` and `verify-rotation`: the account's keys and who has them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

import sfsc
from protocol.codec.terminal_text import counted, human_size, printable
from protocol.records.records import WRAP_ALGORITHMS
from sfsc.cli import terminal
from sfsc.cli.commands import Context
from sfsc.cli.commands.account import confirm_identity, no_passphrase_option, show_identity
from sfsc.cli.commands.sharing import confirm_trust, trust_options, word_lines
from sfsc.cli.owners import own_name, split_owner
from sfsc.cli.recovery_options import RecoveryInput, recovery_options
from sfsc.cli.suggestions import any_names, own_names, users
from sfsc.errors import NotFound, SfscError, UsageError

if TYPE_CHECKING:
    from sfsc.account.rotate import RotationPlan, RotationResult
    from sfsc.store import Store

_VERSIONS_PER_SECOND: Final = 2000
"""Approximate speed of wrapping; `make bench` measures it."""


@click.group()
def key() -> None:
    """Compare your keys with others, back them up, and use them on another machine.

    Example: sfsc key show
    """


@key.command("show")
@click.pass_obj
def key_show(context: Context) -> None:
    """Show your fingerprint in hex and in words. Others compare it.

    Example: sfsc key show
    """
    me = sfsc.whoami(context.home, passphrase=terminal.passphrase_source())
    if context.json:
        words = " ".join(me.words)
        shown = {"user": me.user, "fingerprint": me.fingerprint.hex(), "words": words}
        terminal.answer_json(shown)
    else:
        show_identity(me, context, *word_lines(me.fingerprint))


@key.command("verify")
@click.argument("user", shell_complete=users)
@click.argument("fingerprint", nargs=-1)
@click.pass_obj
def key_verify(context: Context, user: str, fingerprint: tuple[str, ...]) -> None:
    """Remember USER by a compared FINGERPRINT. USER shows it with `sfsc key show`.

    FINGERPRINT is the 64 hex digits or the 32 words.

    Compare it with USER by telephone or on paper, not through this server. Without FINGERPRINT,
    show the one that the server gives, to compare.

    Example: sfsc key verify bob
    """
    from sfsc.files.contacts import parse_fingerprint
    from sfsc.keys.pgp_words import pgp_words

    compared = parse_fingerprint(" ".join(fingerprint)) if fingerprint else None
    with context.connect() as store:
        if compared is None:
            person = store.person(user)
        else:
            person = store.verify_person(user, compared)
    shown, words = person.fingerprint.hex(), pgp_words(person.fingerprint)
    about = {"user": user, "fingerprint": shown, "words": " ".join(words)}
    context.answer(
        {**about, "verified": person.pinned},
        f"user         {user}, {'verified' if person.pinned else 'unverified'}",
        f"fingerprint  {shown}",
        *word_lines(person.fingerprint),
    )


@key.command("passphrase")
@no_passphrase_option
@click.pass_obj
def key_passphrase(context: Context, *, no_passphrase: bool) -> None:
    """Change the passphrase of the keyring on this machine.

    The present one is asked for, or taken from the environment (SFSC_PASSPHRASE), also if an agent
    runs, which then forgets its key; the new one is asked for twice. The keys stay the same, so
    somebody who has copied the keyring and knows the old passphrase still has your account: run
    `sfsc rotate --compromised` then. Backups keep their own passphrases.

    Example: sfsc key passphrase
    """
    sfsc.change_passphrase(
        home=context.home,
        passphrase=terminal.passphrase_source("Present passphrase: "),
        new=terminal.ask_new_passphrase,
        no_passphrase=no_passphrase,
    )
    done = "the keyring has no passphrase" if no_passphrase else "the passphrase was changed"
    context.confirm({"passphrase": not no_passphrase}, done)


@key.command("remember")
@click.pass_obj
def key_remember(context: Context) -> None:
    """Let the system's store of secrets unlock the keyring, so that nothing asks for the
    passphrase.

    That is Keychain, the Credential Manager, GNOME Keyring or KWallet. It gets a key that unlocks
    this keyring's file, not the passphrase. Every program that the store lets read it can then use
    your account. A new passphrase ends it. Needs `pip install 'sealed-file-store[keyring]'`.

    Example: sfsc key remember
    """
    sfsc.remember_passphrase(home=context.home, passphrase=terminal.passphrase_source())
    context.confirm({"remembered": True}, "the system's store of secrets unlocks the keyring now")


@key.command("forget")
@click.pass_obj
def key_forget(context: Context) -> None:
    """Undo `key remember`: commands ask for the passphrase again.

    Example: sfsc key forget
    """
    forgotten = sfsc.forget_passphrase(home=context.home)
    context.confirm({"forgotten": forgotten}, "forgotten" if forgotten else "nothing was stored")


@key.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--no-passphrase",
    is_flag=True,
    help="Do not lock FILE: anyone who can read it has your account.",
)
@click.pass_obj
def key_backup(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Write a copy of your keys to FILE. It is locked with a passphrase of its
    own, unless the environment names one (SFSC_PASSPHRASE): then it is locked with that.

    It stays valid when your keys are rotated. `sfsc key restore FILE` opens the account with it on
    another machine, any number of times. It counts as one of your devices.

    Example: sfsc key backup sfs-keys
    """
    passphrase = None if no_passphrase else terminal.new_passphrase(" for the backup")
    with context.connect(passphrase=terminal.passphrase_source_beside_file()) as store:
        store.backup(file, passphrase=passphrase, no_passphrase=no_passphrase)
    context.confirm(
        {"file": str(file)},
        f"your keys are in {printable(str(file))}; keep it away from this machine",
    )


@key.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@no_passphrase_option
@click.pass_obj
def key_restore(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Open your account with FILE, a `key backup`. This machine becomes one of its devices.

    Example: sfsc key restore sfs-keys
    """
    me = sfsc.restore(
        file,
        home=context.home,
        file_passphrase=terminal.passphrase_source("Passphrase of the backup: "),
        passphrase=None if no_passphrase else terminal.new_passphrase_source(),
        no_passphrase=no_passphrase,
    )
    confirm_identity(me, context)


@key.command("recovery")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write them to FILE instead: text, or a QR code if its name ends with .png or .svg.",
)
@recovery_options
@click.pass_obj
def key_recovery(
    context: Context, *, output: Path | None, sheet: BinaryIO | None, show_code: bool
) -> None:
    """Make a recovery code to print. It opens your account if every machine is lost.

    The account and the code are shown in groups of five characters, and both again as a QR code of
    the same text. The last character of each group checks it, so that `sfsc init --recovery` tells
    which group is mistyped; it also reads the text from a file (--from FILE).

    If the account has a code, the command asks for it, and the new code replaces it.

    Example: sfsc key recovery
    """
    typed = RecoveryInput.open(sheet, show_code=show_code)
    with context.connect() as store:
        old = None
        if store.has_recovery():
            old = typed.ask_code("Current recovery code")
            store.check_recovery(old)  # before a new code is shown that would not be accepted
        # Shown before it is valid: the account must never have a code that nobody has seen.
        code, link = sfsc.new_recovery_code(), store.link
        text = sfsc.recovery_sheet(link, code)
        if output is not None:
            image = terminal.qr_image(text, output.suffix.lower())
            terminal.write_private(output, text.encode() if image is None else image)
        elif context.json:
            terminal.answer_json({"account": link, "code": code, "text": text})
        else:
            terminal.answer(text)
            terminal.answer(terminal.qr(text))
        with terminal.stdout_errors():
            sys.stdout.flush()
        store.set_recovery(code, old)
    where = "it" if output is None else printable(str(output))
    hint = "and keep it where nobody else looks; `sfsc init --recovery` uses it"
    terminal.note(f"print {where}, {hint}")


@key.command("export")
@click.option(
    "--pem",
    "file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="File to create; `-`: stdout.",
)
@click.option("--no-passphrase", is_flag=True, help="Do not encrypt the keys in FILE.")
@click.pass_obj
def key_export(context: Context, file: Path, *, no_passphrase: bool) -> None:
    """Write your private keys to FILE as PEM.

    PKCS#8: Ed25519, and RSA or X25519. The file has the current keys: export them again after a
    rotation.

    Example: sfsc key export --pem keys.pem
    """
    pem = sfsc.export_pem(
        context.home,
        passphrase=terminal.passphrase_source_beside_file(),
        pem_passphrase=None if no_passphrase else terminal.new_passphrase(" for the key file"),
        no_passphrase=no_passphrase,
    )
    terminal.write_private(file, pem)
    if str(file) != "-":
        context.confirm({"file": str(file)}, f"your private keys are in {printable(str(file))}")


@key.command("export-dek")
@click.argument("name", shell_complete=any_names)
@click.option("--version", type=click.IntRange(min=1), help="Show the key of an older version.")
@trust_options
@click.pass_obj
def key_export_dek(
    context: Context,
    name: str,
    *,
    version: int | None,
    file_id: str | None,
    trust_first_use: bool,
) -> None:
    """Show the key of one file's content. OWNER:NAME is a file that OWNER shares with you.

    With it, any implementation of Tink's AES256_GCM_HKDF_1MB can decrypt the ciphertext of this
    version and no other.

    Example: sfsc key export-dek report.pdf
    """
    with context.connect() as store:
        owner, own = split_owner(store, name)
        found = confirm_trust(
            lambda trust: store.export_dek(
                own, version=version, owner=owner, file_id=file_id, trust_first_use=trust
            ),
            first_use=trust_first_use,
        )
    data = found.associated_data.hex()
    shown = {"dek": found.dek.hex(), "associated_data": data, "ciphertext": found.ciphertext}
    context.answer(shown, *(f"{label:<16} {value}" for label, value in shown.items()))


@click.group()
def device() -> None:
    """List the machines and backups that have your account's keys, and remove them.

    Example: sfsc device list
    """


@device.command("drop")
@click.argument("device_id", metavar="DEVICE")
@click.pass_obj
def device_drop(context: Context, device_id: str) -> None:
    """Replace your keys without DEVICE.

    DEVICE is a label of `device list`, an id, or the start of an id. It may have kept what it could
    read until now, and its copy of the old keys opens old wraps that were taken from the server.
    This does not revoke a recovery code or a backup that the same person may have: drop the backup
    too, and replace the code.

    Example: sfsc device drop old-laptop
    """
    failures = terminal.Failures()
    with context.connect(auto_rotate=False) as store:
        done = store.rotate(drop_device=_find_device(store, device_id), skip=failures)
    _show_rotation(done, context)
    failures.check()


@device.command("list")
@click.pass_obj
def device_list(context: Context) -> None:
    """List what has your keys: machines, backups, and the recovery code.

    Each has the start of its id, its label (at first the host name), since when it has your keys,
    and when it logged in last, by the server's log. A backup that has logged in was used.

    Example: sfsc device list
    """
    with context.connect() as store:
        devices = store.devices()
    with context.table("device", "kind", "since", "last login", "label") as rows:
        for one in devices:
            shown = {
                "device": one.device_id.hex(),
                "label": one.label,
                "kind": one.kind,
                "since": one.since,
                "last_login": one.last_login or None,
                "here": one.here,
            }
            kind = "this machine" if one.here else one.kind
            since, login = context.time(one.since)[:10], "-"
            if one.last_login:
                login = context.time(one.last_login)
            rows.add(shown, one.device_id.hex()[:8], kind, since, login, one.label)


@device.command("label")
@click.argument("device_id", metavar="DEVICE")
@click.argument("label")
@click.pass_obj
def device_label(context: Context, device_id: str, label: str) -> None:
    """Name DEVICE in `device list`, on all your machines. The server does not see LABEL.

    DEVICE is its present label, an id, or the start of an id.

    Example: sfsc device label 3fa9 old-laptop
    """
    with context.connect() as store:
        found = _find_device(store, device_id)
        store.label_device(found, label)
    shown = {"device": found.hex(), "label": label}
    context.confirm(shown, f"{found.hex()[:8]} is now {printable(label)}")


@click.command()
@click.option("--plan", is_flag=True, help="Only show what would be done.")
@click.option("--if-due", is_flag=True, help="Rotate only keys that are due, or finish a rotation.")
@click.option(
    "--key-type",
    type=click.Choice(list(reversed(WRAP_ALGORITHMS))),
    help="Type of the new key that file keys are wrapped for.",
)
@click.option(
    "--compromised", is_flag=True, help="A key was stolen: encrypt every content again too."
)
@click.option("--drop-device", metavar="ID", help="With --compromised: remove this device.")
@click.option(
    "--recovery", is_flag=True, help="Stolen keys were used: undo that with the recovery code."
)
@click.option(
    "--undo-from",
    type=click.IntRange(min=2),
    metavar="N",
    help="With --recovery: undo statement N and all later ones.",
)
@recovery_options
@click.option("--yes", is_flag=True, help="With --recovery: do not ask for confirmation.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=own_names)
@click.pass_obj
def rotate(
    context: Context,
    *,
    plan: bool,
    if_due: bool,
    key_type: str | None,
    compromised: bool,
    drop_device: str | None,
    recovery: bool,
    undo_from: int | None,
    sheet: BinaryIO | None,
    show_code: bool,
    yes: bool,
    names: tuple[str, ...],
) -> None:
    """Make new keys, wrap the key of every file for them, and destroy the old ones.

    No content is sent or encrypted again. This limits what a key stolen tomorrow opens; it does not
    help against an attacker who has the old key and the data that the server had until now. An
    interrupted rotation continues when the command is run again, on this or another machine of
    yours.

    With --compromised, every content is fetched and stored again under a new key, including old
    versions and trash. Then neither an old private key nor an old file key opens what is on the
    server. What was taken before stays taken. With NAMEs, only these files get new contents, in all
    their versions; the keys of all others are wrapped again. This machine gets a new key of its
    own. Name another machine whose keyring may have been copied with --drop-device; it can join
    again with the recovery code.

    With --recovery, the recovery code (asked for, from stdin, or from the FILE of --from) undoes
    the statements that an attacker signed with stolen keys, and the attacker's changes to files.
    All other machines then lose access to the account. --plan shows what would be undone.

    Example: sfsc rotate --plan
    """
    if (undo_from is not None or yes or sheet is not None or show_code) and not recovery:
        raise UsageError("--undo-from, --from, --show-code and --yes need --recovery")
    if recovery:
        if if_due or compromised or key_type is not None or names:
            allowed = "--plan, --undo-from, --from, --show-code and --yes"
            raise UsageError(f"--recovery allows only {allowed}")
        typed = RecoveryInput.open(sheet, show_code=show_code)
        _take_back(context, typed, undo_from, plan=plan, yes=yes)
        return
    if names and not compromised:
        raise UsageError("NAMEs need --compromised")
    if drop_device is not None and not compromised:
        raise UsageError("--drop-device needs --compromised", "or use `sfsc device drop`")
    # No automatic rotation at login: the rotation is done here, and its result is shown.
    with context.connect(auto_rotate=False) as store:
        names = tuple(own_name(store, name) for name in names)
        if plan:
            again = "that of the NAMEs" if names else "all of it" if compromised else ""
            _show_plan(store.rotation_plan(), context, again)
        elif if_due and not store.rotation_is_due():
            context.confirm({"due": False}, "the keys are not due")
        else:
            dropped = None if drop_device is None else _find_device(store, drop_device)
            failures = terminal.Failures()
            done = store.rotate(
                key_type=key_type,
                compromised=compromised,
                names=names,
                drop_device=dropped,
                skip=failures,
            )
            _show_rotation(done, context)
            failures.check()


def _list_unreadable(store: Store, failures: terminal.Failures) -> None:
    """Name the files that the server does not show, or has damaged. Call this before other steps
    name them, of which some know only the file id."""
    for _ in store.ls(skip=failures):
        pass


def _take_back(
    context: Context, typed: RecoveryInput, undo_from: int | None, *, plan: bool, yes: bool
) -> None:
    code = typed.ask_code()
    source = terminal.passphrase_source()
    passphrase = None if source is None else functools.cache(source)
    links = sfsc.take_back_plan(code, home=context.home, passphrase=passphrase, undo_from=undo_from)
    if plan:
        headers = ("statement", "time", "reason", "generation", "devices", "about")
        with context.table(*headers, right=("statement", "generation", "devices")) as rows:
            for one in links:
                undone = "undone" if one.undone else None
                when = context.time(one.created)
                rows.add(one, one.n, when, one.reason, one.generation, one.devices, undone)
        return
    for one in links:
        if one.undone:
            terminal.say(f"statement {one.n} of {context.time(one.created)} will be undone")
    if not yes and not terminal.confirmed("Take the account back now?"):
        raise UsageError("nothing was done", "use --yes to confirm in advance")
    failures = terminal.Failures()
    done = sfsc.take_back(
        code, home=context.home, passphrase=passphrase, undo_from=undo_from, on_destroyed=failures
    )
    _show_rotation(done, context)
    failures.check()


def _find_device(store: Store, start: str) -> bytes:
    """Return the id of the device with the label `start`, or whose id in hex starts with it. Raises
    `NotFound` unless there is exactly one, and `UsageError` for a recovery code."""
    found = [
        one
        for one in store.devices()
        if one.label == start or one.device_id.hex().startswith(start.lower())
    ]
    if len(found) != 1:
        ids = ", ".join(one.device_id.hex()[:8] for one in found)
        cause = f"{start} may be {ids}" if found else f"no device has the label or id {start}"
        raise NotFound(cause, "run `sfsc device list` to see them")
    if found[0].kind == "recovery":
        raise UsageError("this is the recovery code", "`sfsc key recovery` replaces it")
    return found[0].device_id


def _show_rotation(done: RotationResult, context: Context) -> None:
    context.confirm(
        done,
        f"generation  {done.generation}, {done.key_type}",
        f"wrapped     {counted(done.wrapped, 'version')} here; all {done.files} use these keys",
        *_left_out(done),
        f"rotate by   {context.time(done.due)}",
    )


def _left_out(done: RotationResult) -> list[str]:
    return [f"left out    {counted(done.left_out, 'damaged version')}"] if done.left_out else []


def _show_plan(plan: RotationPlan, context: Context, again: str) -> None:
    """Show a plan; `again` says what content is encrypted again, "" for none."""
    size, seconds = human_size(plan.size), plan.versions / _VERSIONS_PER_SECOND
    transfer = ", and the transfer of the content" if again else ""
    content = f"{again} is encrypted and stored again" if again else "it stays unchanged"
    context.answer(
        plan,
        f"to wrap     {counted(plan.versions, 'version')}",
        f"content     {size}; {content}",
        *([f"damaged     {counted(plan.damaged, 'version')}"] if plan.damaged else []),
        f"generation  {plan.generation}{', begun and not finished' * plan.begun}",
        f"due         {context.time(plan.due)}",
        f"time        about {max(1, round(seconds))} s{transfer}",
    )


@click.command()
@click.pass_obj
def verify_rotation(context: Context) -> None:
    """Check that every version of every file is wrapped for the current key, and that its records
    are signed or endorsed with it. The exit code is 5 if one is not, and if files are damaged on
    the server or missing there, which are named.

    Example: sfsc verify-rotation
    """
    failures = terminal.Failures()
    with context.connect(auto_rotate=False) as store:
        left_out = list[tuple[str, SfscError]]()
        done = store.verify_rotation(skip=lambda what, error: left_out.append((what, error)))
        context.answer(
            done,
            f"generation  {done.generation}, {done.key_type}",
            f"verified    {counted(done.files, 'version')} wrapped for these keys",
            *_left_out(done),
            f"rotate by   {context.time(done.due)}",
        )
        _list_unreadable(store, failures)
    for what, error in left_out:
        failures(what, error)
    failures.check()
