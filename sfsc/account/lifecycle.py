"""Create an account, open it on another device, or take it back from an attacker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.records.invitation import AccountLink
from protocol.records.signatures import SigningKey
from sfsc.account.enrol import check_server, enrol_account, read_invitation
from sfsc.account.join import AccountCredentials, TakeBackOptions, join_account
from sfsc.account.recover import (
    AccountRecovery,
    StatementSummary,
    open_recovery_session,
    summarize_chain,
    take_back_account,
)
from sfsc.account.rotate import RotationResult
from sfsc.agent.client import lock
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import SfscError, UsageError, WrongPassphrase
from sfsc.keys.account_info import Whoami, account_link, current_keys, describe_account
from sfsc.keys.home import (
    Home,
    Passphrase,
    check_no_keyring,
    find_passphrase,
    home_folder,
    require_passphrase,
    unlock_home,
    unlock_keyring,
)
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.keys.recovery_sheet import parse_account
from sfsc.keys.system_keyring import forget_key
from sfsc.library_log import log_warning
from sfsc.session.handshake import LoginKey
from sfsc.session.pipeline import Skip
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:
    from sfsc.keys.pem import PemKeys


def change_passphrase(
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    new: Passphrase = None,
    no_passphrase: bool = False,
) -> None:
    """Lock the keyring in `home`, which `passphrase` unlocks, with the passphrase `new` (a text, or
    a function that is called once the keyring is unlocked), or with none. The keys stay the same,
    so a copy of the old file still opens the account with the old passphrase. Raises
    `WrongPassphrase`, and `ConflictError` if another process changes the keyring meanwhile.

    `passphrase` is needed also if the agent or the system's store of secrets holds the key. Both
    forget it: it would unlock copies of the old file."""
    where = home_folder(home)
    file = unlock_home(where, passphrase, must_ask=True)
    if not no_passphrase and new is None:
        raise UsageError("the new passphrase is missing", "or use --no-passphrase")
    file.change_passphrase(None if no_passphrase else find_passphrase(new))
    for what, forget in (("agent", lock), ("system's store of secrets", forget_key)):
        try:
            forget(where)
        except SfscError as exc:
            log_warning(f"the {what} may still hold the old key", exc.cause, exc.hint)


def enrol(
    invitation: str,
    *,
    home: Home = None,
    key_type: str = "xwing",
    pem: bytes | None = None,
    pem_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Enrol the user named by `invitation`; see `enrol_account`. `pem` may bring the user's own
    keys: RSA or X25519 for wrapping, Ed25519 for signing, or both. `passphrase` is text, a function
    that asks for it, or None for the environment. With `no_passphrase` only the file mode protects
    the keyring. Raises `SfscError`."""
    invited = read_invitation(invitation)
    if callable(passphrase) and not no_passphrase:
        check_server(invited)  # before the user thinks of a passphrase
    stated = None if no_passphrase else require_passphrase(passphrase)
    imported_keys = None if pem is None else _load_pem(pem, pem_passphrase)
    return describe_account(
        enrol_account(invited, home_folder(home), key_type, stated, imported_keys)
    )


def new_recovery_code() -> str:
    """Generate a recovery code. It counts once `Store.set_recovery` has committed the account to
    it."""
    return RecoveryCode.generate().text


def recover(
    account: str,
    code: str,
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
    take_back: bool = False,
    undo_from: int | None = None,
    on_destroyed: Skip | None = None,
) -> Whoami:
    """Open the account that `account` names on this device, with its recovery code. Both are texts
    of `key recovery`; a link (`Store.link`) names an account too. Raises `Mistyped`, and
    `TakenOver` if an attacker controls the account. With `take_back` it is taken back, as by the
    function of that name."""
    parsed = RecoveryCode.parse(code)
    credentials = AccountCredentials.from_code(parsed)
    options = TakeBackOptions(undo_from, on_destroyed) if take_back else None
    link = parse_account(account)
    return _join(link, credentials, home, passphrase, options, no_passphrase=no_passphrase)


def take_back(
    code: str,
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    undo_from: int | None = None,
    on_destroyed: Skip | None = None,
) -> RotationResult:
    """Take the account of `home` back from an attacker who has its keys, with its recovery code.
    Statements from `undo_from` on are undone (None: from the first not sealed for the code), files
    are repaired and keys replaced. This device is then the account's only one. `on_destroyed` is
    called for each destroyed version; without it one error at the end names them all."""
    parsed, where = RecoveryCode.parse(code), home_folder(home)
    file = unlock_home(where, passphrase)
    with open_client_state(where, file) as state:
        return take_back_account(file, state, parsed, first=undo_from, on_destroyed=on_destroyed)


def take_back_plan(
    code: str, *, home: Home = None, passphrase: Passphrase = None, undo_from: int | None = None
) -> list[StatementSummary]:
    """Return the account's statements, marking those that `take_back` would undo."""
    parsed, where = RecoveryCode.parse(code), home_folder(home)
    file = unlock_home(where, passphrase)
    with (
        open_client_state(where, file) as state,
        open_recovery_session(file, state, parsed) as (session, devices),
    ):
        chain, first, _ = AccountRecovery(session, file, devices, parsed).plan(undo_from)
        return summarize_chain(chain, first)


def restore(
    file: str | os.PathLike[str],
    *,
    home: Home = None,
    file_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Open an account on this device with a file that `Store.backup` wrote. Its passphrase is asked
    for before the new one. Raises `WrongPassphrase`."""
    try:
        kept = unlock_keyring(Path(file), file_passphrase).contents
    except WrongPassphrase as exc:
        raise WrongPassphrase(f"{exc.cause}: {os.fspath(file)}", exc.hint) from exc
    credentials = AccountCredentials.from_backup(kept)
    return _join(account_link(kept), credentials, home, passphrase, no_passphrase=no_passphrase)


def import_pem(
    pem: bytes,
    *,
    account: str | None = None,
    home: Home = None,
    pem_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Open an account on this device with keys from `export_pem`. `account` is the account's link
    if the file does not contain it. Raises `Tampered` if the text in front of the keys was
    changed."""
    keys = _load_pem(pem, pem_passphrase)
    link = keys.link if account is None else parse_account(account)
    if keys.seed is None or keys.wrapping is None or link is None:
        raise UsageError("the signing key, the wrap key or the account link is missing")
    login = LoginKey(None, keys.generation, SigningKey.from_seed(keys.seed))
    credentials = AccountCredentials(login, keys.wrapping)
    return _join(link, credentials, home, passphrase, no_passphrase=no_passphrase)


def export_pem(
    home: Home = None,
    *,
    passphrase: Passphrase = None,
    pem_passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> bytes:
    """Return the present private keys as PEM, encrypted unless `no_passphrase`. Raises
    `UnsupportedKey` for an X-Wing key."""
    from sfsc.keys.pem import export_pem as export

    keyring = unlock_home(home_folder(home), passphrase).contents
    keys = current_keys(keyring)
    wrapping = PrivateKey(keys.wrap_alg, keys.wrap_private)
    lock = None if no_passphrase else require_passphrase(pem_passphrase)
    return export(account_link(keyring), keys.generation, keys.sign_seed, wrapping, lock)


def _load_pem(pem: bytes, passphrase: Passphrase) -> PemKeys:
    from sfsc.keys.pem import is_encrypted, load_pem

    return load_pem(pem, find_passphrase(passphrase) if is_encrypted(pem) else None)


def _join(
    link: AccountLink,
    credentials: AccountCredentials,
    home: Home,
    passphrase: Passphrase,
    options: TakeBackOptions | None = None,
    *,
    no_passphrase: bool,
) -> Whoami:
    where = home_folder(home)
    check_no_keyring(where)
    stated = None if no_passphrase else require_passphrase(passphrase)
    return describe_account(
        join_account(link, credentials, where, stated, options=options).contents
    )
