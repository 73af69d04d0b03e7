"""What begins with unlocking a keyring: opening a `Store`, and asking who one is.

Argon2id takes one core for longer than Python takes to load the rest of this package, and leaves
the interpreter to other threads. So a command that is given its passphrase loads its code beside
that, and one that asks for it while somebody types. Only what unlocks is imported above; all that
a store needs is loaded meanwhile.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Final

from sfsc.keys.account_info import Whoami, describe_account
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home

if TYPE_CHECKING:
    from sfsc.session.limits import Timeouts
    from sfsc.session.session import Progress
    from sfsc.store import Store


_NEEDED: Final = ("sfsc.store", "sfsc.session.transport")


def connect(
    home: Home = None,
    *,
    passphrase: Passphrase = None,
    timeouts: Timeouts | None = None,
    progress: Progress | None = None,
    auto_rotate: bool | None = None,
    min_wrap_alg: str | None = None,
) -> Store:
    """Unlock the keyring of `home` and log in. Close the store, or use it as a context.

    `home` is else SFSC_HOME or the system's place for user data, the passphrase SFSC_PASSPHRASE or
    in the file that SFSC_PASSPHRASE_FILE names. `progress` is told how far a long step is.
    Where the keys are due they are rotated first, unless `auto_rotate` is False or SFSC_AUTO_ROTATE
    is 0. `min_wrap_alg`, else SFSC_MIN_WRAP_ALG, is the weakest kind of key that anything is
    encrypted for (one of rsa2048, rsa3072, rsa4096, x25519, xwing). Raises `SfscError`.
    """
    where = home_folder(home)
    # Nothing is handed over: who imports next finds it loaded, or sees why it is not.
    loading = threading.Thread(target=_load)
    loading.start()
    try:
        file = unlock_home(where, passphrase)
    finally:
        loading.join()  # also after a mistake: an interpreter that ends cannot load any more
    from sfsc.store import Store

    return Store(
        file,
        where,
        timeouts,
        progress,
        auto_rotate=auto_rotate,
        min_wrap_alg=min_wrap_alg,
    )


def whoami(home: Home = None, *, passphrase: Passphrase = None) -> Whoami:
    """Who the keyring of `home` is, without asking the server. Raises `KeyringError`."""
    return describe_account(unlock_home(home_folder(home), passphrase).contents)


def _load() -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    # The first key has `cryptography` load its backend, for 4 ms.
    from protocol.records.signatures import SigningKey

    SigningKey.from_seed(bytes(32))
