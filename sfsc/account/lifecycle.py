"""Having an account: becoming a user, being one on another machine, taking one back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.codec.errors import MessageError
from protocol.records.invitation import AccountLink, parse_account_link
from protocol.records.signatures import SigningKey
from sfsc.account.enrol import enrol_account, invited_by
from sfsc.account.join import Opener, TakingBack, adopt
from sfsc.account.recover import Link, Recovery, links, opened_by_code, take_back_account
from sfsc.account.rotate import Rotated
from sfsc.crypto.primitives import PrivateKey
from sfsc.errors import UsageError
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
from sfsc.session.pipeline import Skip
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:
    from sfsc.keys.pem import PemKeys


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
    """Become the user whom `invitation` names; see `enrol_account`. With `pem` under keys of
    one's own: RSA or X25519 to wrap to, Ed25519 to sign with, either or both.

    The passphrase is given, or asked for by a function, or named by the environment;
    `no_passphrase` locks the keyring with nothing but its file mode. Raises `SfscError`.
    """
    invited = invited_by(invitation)
    stated = None if no_passphrase else require_passphrase(passphrase)
    brought = None if pem is None else _loaded(pem, pem_passphrase)
    return describe_account(enrol_account(invited, home_folder(home), key_type, stated, brought))


def new_recovery_code() -> str:
    """A fresh one; it counts once `Store.set_recovery` has committed the account to it."""
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
    told: Skip | None = None,
) -> Whoami:
    """Open the account that the link `account` names on this machine, with its recovery code.

    Raises `TakenOver` where somebody else has taken it over; with `take_back` it is taken back, as
    the function of that name does."""
    opener = Opener.of_code(RecoveryCode.parse(code))
    link, taking = _link(account), TakingBack(undo_from, told) if take_back else None
    return _adopt(link, opener, home, passphrase, taking, no_passphrase=no_passphrase)


def take_back(
    code: str,
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    undo_from: int | None = None,
    told: Skip | None = None,
) -> Rotated:
    """Take the account of `home` back from somebody who has its keys, with its recovery code.

    Statements from `undo_from` on are undone (None: from the first whose keys were not sealed for
    the code), files put right, and keys renewed: this machine is the account's only one then.
    `told` hears of each version that was destroyed; without it that is one error at the end.
    """
    parsed, where = RecoveryCode.parse(code), home_folder(home)
    file = unlock_home(where, passphrase)
    with open_client_state(where, file.contents) as state:
        return take_back_account(file, state, parsed, first=undo_from, told=told)


def take_back_plan(
    code: str, *, home: Home = None, passphrase: Passphrase = None, undo_from: int | None = None
) -> list[Link]:
    """The account's statements, and which of them `take_back` would undo."""
    parsed, where = RecoveryCode.parse(code), home_folder(home)
    file = unlock_home(where, passphrase)
    with (
        open_client_state(where, file.contents) as state,
        opened_by_code(file, state, parsed) as (session, devices),
    ):
        chain, first, _ = Recovery(session, file, devices, parsed).look(undo_from)
        return links(chain, first)


def restore(
    file: str | os.PathLike[str],
    *,
    home: Home = None,
    file_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Open an account on this machine with a file that `Store.backup` wrote."""
    kept = unlock_keyring(Path(file), file_passphrase).contents
    opener = Opener.of_keyring(kept)
    return _adopt(account_link(kept), opener, home, passphrase, no_passphrase=no_passphrase)


def import_pem(
    pem: bytes,
    *,
    account: str | None = None,
    home: Home = None,
    pem_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Open an account on this machine with keys that `export_pem` gave; the link `account` where
    the file does not name it."""
    keys = _loaded(pem, pem_passphrase)
    link = keys.link if account is None else _link(account)
    if keys.seed is None or keys.wrapping is None or link is None:
        raise UsageError("an account needs its Ed25519 key, its wrap key and its link")
    opener = Opener(keys.generation, SigningKey.from_seed(keys.seed), (keys.wrapping,))
    return _adopt(link, opener, home, passphrase, no_passphrase=no_passphrase)


def export_pem(
    home: Home = None,
    *,
    passphrase: Passphrase = None,
    pem_passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> bytes:
    """The private keys in use as PEM, encrypted unless `no_passphrase`. Raises `UnsupportedKey` for
    an X-Wing key."""
    from sfsc.keys.pem import export_pem as export

    keyring = unlock_home(home_folder(home), passphrase).contents
    keys = current_keys(keyring)
    wrapping = PrivateKey(keys.wrap_alg, keys.wrap_private)
    lock = None if no_passphrase else require_passphrase(pem_passphrase)
    return export(account_link(keyring), keys.generation, keys.sign_seed, wrapping, lock)


def _loaded(pem: bytes, passphrase: Passphrase) -> PemKeys:
    from sfsc.keys.pem import is_encrypted, load_pem

    return load_pem(pem, find_passphrase(passphrase) if is_encrypted(pem) else None)


def _adopt(
    link: AccountLink,
    opener: Opener,
    home: Home,
    passphrase: Passphrase,
    taking: TakingBack | None = None,
    *,
    no_passphrase: bool,
) -> Whoami:
    where = home_folder(home)
    check_no_keyring(where)
    stated = None if no_passphrase else require_passphrase(passphrase)
    return describe_account(adopt(link, opener, where, stated, taking=taking).contents)


def _link(text: str) -> AccountLink:
    try:
        return parse_account_link(text)
    except MessageError as exc:
        raise UsageError(str(exc), "it stands beside the recovery code") from exc
