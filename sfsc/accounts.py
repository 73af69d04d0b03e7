"""Having an account: becoming a user, being one on another machine, saying who one is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.errors import MessageError
from protocol.invitation import AccountLink, parse_account_link
from protocol.signatures import SigningKey
from sfsc import enrolment
from sfsc.adoption import Opener, adopt, link_of
from sfsc.codes import RecoveryCode
from sfsc.errors import KeyringMissing, UsageError
from sfsc.home import Passphrase, check_no_keyring, folder, stated_passphrase, unlock, unlock_file
from sfsc.keyring import Keyring
from sfsc.primitives import PrivateKey
from sfsc.words import words

if TYPE_CHECKING:
    from sfsc.pem import PemKeys

Home = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class Whoami:
    """Who a keyring is. `server_id` and `fingerprint` (the first statement's hash): 32 bytes."""

    user: str
    address: str
    server_id: bytes
    fingerprint: bytes
    generation: int
    key_type: str

    @property
    def words(self) -> list[str]:
        """The fingerprint, a word for each byte."""
        return words(self.fingerprint)


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
    """Become the user whom `invitation` names; see `enrolment.enrol`. With `pem` under keys of
    one's own: RSA or X25519 to wrap to, Ed25519 to sign with, either or both.

    The passphrase is given, or asked for by a function, or named by the environment;
    `no_passphrase` locks the keyring with nothing but its file mode. Raises `SfscError`.
    """
    invited = enrolment.invited(invitation)
    stated = None if no_passphrase else new_passphrase(passphrase)
    brought = None if pem is None else _loaded(pem, pem_passphrase)
    return whoami_of(enrolment.enrol(invited, folder(home), key_type, stated, brought))


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
) -> Whoami:
    """Open the account that the link `account` names on this machine, with its recovery code."""
    opener = Opener.of_code(RecoveryCode.parse(code))
    return _adopt(_link(account), opener, home, passphrase, no_passphrase=no_passphrase)


def restore(
    file: str | os.PathLike[str],
    *,
    home: Home = None,
    file_passphrase: Passphrase = None,
    passphrase: Passphrase = None,
    no_passphrase: bool = False,
) -> Whoami:
    """Open an account on this machine with a file that `Store.backup` wrote."""
    kept = unlock_file(Path(file), file_passphrase).contents
    opener = Opener.of_keyring(kept)
    return _adopt(link_of(kept), opener, home, passphrase, no_passphrase=no_passphrase)


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
    from sfsc.pem import export_pem as export

    keyring = unlock(folder(home), passphrase).contents
    keys = keyring.current
    if keys is None:
        raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
    wrapping = PrivateKey(keys.wrap_alg, keys.wrap_private)
    lock = None if no_passphrase else new_passphrase(pem_passphrase)
    return export(link_of(keyring), keys.generation, keys.sign_seed, wrapping, lock)


def _loaded(pem: bytes, passphrase: Passphrase) -> PemKeys:
    from sfsc.pem import is_encrypted, load_pem

    return load_pem(pem, stated_passphrase(passphrase) if is_encrypted(pem) else None)


def _adopt(
    link: AccountLink, opener: Opener, home: Home, passphrase: Passphrase, *, no_passphrase: bool
) -> Whoami:
    where = folder(home)
    check_no_keyring(where)
    stated = None if no_passphrase else new_passphrase(passphrase)
    return whoami_of(adopt(link, opener, where, stated).contents)


def _link(text: str) -> AccountLink:
    try:
        return parse_account_link(text)
    except MessageError as exc:
        raise UsageError(str(exc), "it stands beside the recovery code") from exc


def new_passphrase(passphrase: Passphrase) -> str:
    """The passphrase of a new file. Raises `UsageError` where none is named."""
    stated = stated_passphrase(passphrase)
    if stated is None:
        raise UsageError("a new key file needs a passphrase", "or say that there shall be none")
    return stated


def whoami(home: Home = None, *, passphrase: Passphrase = None) -> Whoami:
    """Who the keyring of `home` is, without asking the server. Raises `KeyringError`."""
    return whoami_of(unlock(folder(home), passphrase).contents)


def whoami_of(keyring: Keyring) -> Whoami:
    """Who a keyring is. Raises `KeyringMissing` before the enrolment."""
    current = keyring.current
    if current is None:
        raise KeyringMissing("this keyring is not enrolled yet", "run `sfsc init` again")
    return Whoami(
        user=keyring.user,
        address=keyring.addresses[0],
        server_id=keyring.server_id,
        fingerprint=keyring.first,
        generation=current.generation,
        key_type=current.wrap_alg,
    )
