"""How a store is opened, what needs no store, and where each public name of `sfsc` is defined.

Argon2id takes one core for longer than Python takes to import the rest of this package, and leaves
the interpreter to other threads. So a command that is given its passphrase imports its code while
Argon2id runs, and one that asks for the passphrase imports it while the user types. This module
imports only what unlocking a keyring needs.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Final

from sfsc.keys.account_info import Whoami, describe_account
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home

if TYPE_CHECKING:
    from sfsc.log.receipts import VerifiedProof
    from sfsc.session.limits import Timeouts
    from sfsc.session.session import Progress
    from sfsc.store import Store

PUBLIC: Final = {
    "Entry": "trust.file_records",
    "Got": "transfer.download",
    "Grant": "files.sharing",
    "Person": "files.contacts",
    "Put": "transfer.upload",
    "Shared": "files.inbox",
    "Status": "store",
    "Store": "store",
    "Whoami": "keys.account_info",
    "accept": "api",
    "check_proof": "api",
    "connect": "api",
    "enrol": "account.lifecycle",
    "export_pem": "account.lifecycle",
    "import_pem": "account.lifecycle",
    "new_recovery_code": "account.lifecycle",
    "recover": "account.lifecycle",
    "restore": "account.lifecycle",
    "take_back": "account.lifecycle",
    "take_back_plan": "account.lifecycle",
    "whoami": "api",
}
"""Public name -> the module of `sfsc` that defines it, imported when the name is first used."""

_NEEDED: Final = ("sfsc.store", "sfsc.session.transport")


def public(name: str) -> object:
    """Return the public name `name` of `sfsc`. Raises `KeyError` for any other name."""
    return getattr(importlib.import_module(f"sfsc.{PUBLIC[name]}"), name)


def connect(
    home: Home = None,
    *,
    passphrase: Passphrase = None,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    auto_rotate: bool | None = None,
    min_wrap_alg: str | None = None,
) -> Store:
    """Unlock the keyring in `home`, log in, and return the open store. Close it, or use it as a
    context manager.

    `home` defaults to SFSC_HOME or the system's folder for user data, the passphrase to
    SFSC_PASSPHRASE or the content of the file that SFSC_PASSPHRASE_FILE names. `progress` receives
    the progress of long steps. Keys that are due are rotated first, unless `auto_rotate` is False
    or SFSC_AUTO_ROTATE is 0. `min_wrap_alg`, by default SFSC_MIN_WRAP_ALG, is the weakest kind of
    key that anything is encrypted for (rsa2048, rsa3072, rsa4096, x25519 or xwing).
    Raises `SfscError`.
    """
    where = home_folder(home)
    # The thread hands nothing over: the import below finds the modules, or raises the same error.
    loading = threading.Thread(target=_import_needed)
    loading.start()
    try:
        file = unlock_home(where, passphrase)
    finally:
        loading.join()  # also after an error: an interpreter that shuts down cannot import
    from sfsc.store import Store

    return Store(
        file, where, timeouts, progress, auto_rotate=auto_rotate, min_wrap_alg=min_wrap_alg
    )


def whoami(home: Home = None, *, passphrase: Passphrase = None) -> Whoami:
    """Return the account of the keyring in `home`, without the server. Raises `KeyringError`."""
    return describe_account(unlock_home(home_folder(home), passphrase).contents)


def check_proof(data: bytes, *, home: Home = None, vkey: str | None = None) -> VerifiedProof:
    """Verify a file that `Store.proof_of` made, without the server and without an account's keys:
    against the log keys that `home` has seen, or against `vkey` (C2SP). Raises `BadReceipt`."""
    from sfsc.log import receipts
    from sfsc.trust.state import state_path

    if vkey is not None:
        return receipts.verify_proof(data, [receipts.parse_vkey(vkey)])
    return receipts.verify_proof(data, receipts.load_verifiers(state_path(home_folder(home))))


def accept(home: Home = None, *, passphrase: Passphrase = None) -> tuple[int, str | None]:
    """Accept the server's log as it is now. Return its size, and the path of the evidence that was
    kept against the server, if any."""
    from sfsc.session.session import Session
    from sfsc.trust.state import open_client_state

    where = home_folder(home)
    keyring = unlock_home(where, passphrase).contents
    with open_client_state(where, keyring) as state:
        kept = state.distrust_evidence()
        session = Session(keyring, state, anew=True)
        try:
            session.connect()
            newest = session.trust.newest
            state.reset_log(newest.size, newest.root, newest.note)
        finally:
            session.close()
    return newest.size, kept


def _import_needed() -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    # The first key makes `cryptography` load its backend, which takes 4 ms.
    from protocol.records.signatures import SigningKey

    SigningKey.from_seed(bytes(32))
