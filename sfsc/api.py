"""The library's face: how a `Store` is opened, what needs none, and the names of all of it.

What every program needs that opens a store is loaded with this. A name of what few programs need
is there too, and loads it when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from sfsc.entrance import connect, whoami
from sfsc.keys.account_info import Whoami
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home
from sfsc.session.session import Session
from sfsc.store import Status, Store
from sfsc.transfer.attempts import Put
from sfsc.transfer.download import Got
from sfsc.trust.file_records import Entry
from sfsc.trust.state import open_client_state, state_path

if TYPE_CHECKING:
    from sfsc.account.lifecycle import (
        enrol,
        export_pem,
        import_pem,
        new_recovery_code,
        recover,
        restore,
        take_back,
        take_back_plan,
    )
    from sfsc.account.recover import Link
    from sfsc.account.rotate import Plan, Rotated
    from sfsc.files.contacts import Person, parse_fingerprint
    from sfsc.files.history import ExportedKey, Revision
    from sfsc.files.inbox import Shared
    from sfsc.files.shared_folders import Folder
    from sfsc.files.sharing import Grant
    from sfsc.keys.pgp_words import pgp_words
    from sfsc.log.audit import Event
    from sfsc.log.receipts import Proven

__all__ = [
    "Entry",
    "Event",
    "ExportedKey",
    "Folder",
    "Got",
    "Grant",
    "Link",
    "Person",
    "Plan",
    "Proven",
    "Put",
    "Revision",
    "Rotated",
    "Shared",
    "Status",
    "Store",
    "Whoami",
    "accept",
    "check_proof",
    "connect",
    "enrol",
    "export_pem",
    "import_pem",
    "new_recovery_code",
    "parse_fingerprint",
    "pgp_words",
    "recover",
    "restore",
    "take_back",
    "take_back_plan",
    "whoami",
]

_LATER: Final = {
    "Event": "log.audit",
    "ExportedKey": "files.history",
    "Folder": "files.shared_folders",
    "Grant": "files.sharing",
    "Link": "account.recover",
    "Person": "files.contacts",
    "Plan": "account.rotate",
    "Proven": "log.receipts",
    "Revision": "files.history",
    "Rotated": "account.rotate",
    "Shared": "files.inbox",
    "enrol": "account.lifecycle",
    "export_pem": "account.lifecycle",
    "import_pem": "account.lifecycle",
    "new_recovery_code": "account.lifecycle",
    "parse_fingerprint": "files.contacts",
    "recover": "account.lifecycle",
    "restore": "account.lifecycle",
    "take_back": "account.lifecycle",
    "take_back_plan": "account.lifecycle",
    "pgp_words": "keys.pgp_words",
}
"""Where each name is that the type checker is told of above."""


if not TYPE_CHECKING:  # to type checkers it would say that there is every name

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"sfsc.{_LATER[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def check_proof(data: bytes, *, home: Home = None, vkey: str | None = None) -> Proven:
    """Verify a file of `Store.proof_of` without the server, and without a key of the account: by
    the log keys that `home` has seen, or by `vkey` (C2SP). Raises `BadReceipt`."""
    from sfsc.log import receipts

    if vkey is not None:
        return receipts.check(data, [receipts.verifier_of(vkey)])
    return receipts.check(data, receipts.known_verifiers(state_path(home_folder(home))))


def accept(home: Home = None, *, passphrase: Passphrase = None) -> tuple[int, str | None]:
    """Take the server's log as it is now for the truth; (its size, the evidence that was kept)."""
    where = home_folder(home)
    keyring = unlock_home(where, passphrase).contents
    with open_client_state(where, keyring) as state:
        kept = state.distrusted()
        session = Session(keyring, state, anew=True)
        try:
            session.connect()
            newest = session.trust.newest
            state.begin_anew(newest.size, newest.root, newest.note)
        finally:
            session.close()
    return newest.size, kept
