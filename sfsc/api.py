"""`connect`, the functions that need no store, and the table of the public names of `sfsc`.

Argon2id takes one core for longer than Python takes to import the rest of this package, and
releases the interpreter lock. So the rest is imported in a thread while Argon2id runs, or while the
user types the passphrase. This module imports only what unlocking a keyring needs.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Final

from sfsc.keys.account_info import Whoami, describe_account
from sfsc.keys.home import Home, Passphrase, home_folder, unlock_home

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from sfsc.account.restored import RestoredAccount
    from sfsc.files.sync import Synced
    from sfsc.files.watch import Trouble
    from sfsc.log.receipts import VerifiedProof
    from sfsc.session.limits import Timeouts
    from sfsc.session.pipeline import Skip
    from sfsc.session.progress import Progress
    from sfsc.store import Store

PUBLIC: Final = {
    "Changed": "files.transaction",
    "DeletedFile": "files.versions",
    "DeviceInfo": "account.devices",
    "Entry": "trust.file_records",
    "ExportedKey": "files.history",
    "Finding": "diagnosis",
    "Folder": "files.settings",
    "Got": "transfer.download",
    "Grant": "files.sharing",
    "KnownNames": "files.known_names",
    "LogEvent": "log.audit",
    "Person": "files.contacts",
    "Progress": "session.progress",
    "Purged": "files.purge",
    "Put": "transfer.upload",
    "Renamed": "files.rename",
    "Restored": "files.restore",
    "RestoredAccount": "account.restored",
    "Revision": "files.history",
    "RotationPlan": "account.rotate",
    "RotationResult": "account.rotate",
    "Shared": "files.inbox",
    "Skip": "session.pipeline",
    "Source": "transfer.source",
    "Space": "files.versions",
    "Status": "store",
    "Store": "store",
    "Synced": "files.sync",
    "Target": "transfer.download",
    "Time": "times",
    "Timeouts": "session.limits",
    "Transaction": "files.transaction",
    "VerifiedHistory": "log.audit",
    "VerifiedProof": "log.receipts",
    "Whoami": "keys.account_info",
    "accept": "api",
    "agent_status": "keys.unlocked",
    "change_passphrase": "account.lifecycle",
    "check_proof": "api",
    "connect": "api",
    "doctor": "diagnosis",
    "enrol": "account.lifecycle",
    "export_pem": "account.lifecycle",
    "forget_passphrase": "keys.unlocked",
    "import_pem": "account.lifecycle",
    "known_names": "files.known_names",
    "lock_agent": "keys.unlocked",
    "new_recovery_code": "account.lifecycle",
    "people": "api",
    "read_recovery_sheet": "keys.recovery_sheet",
    "recover": "account.lifecycle",
    "recovery_sheet": "keys.recovery_sheet",
    "remember_passphrase": "keys.unlocked",
    "restore": "account.lifecycle",
    "set_addresses": "account.addresses",
    "start_agent": "keys.unlocked",
    "stop_agent": "keys.unlocked",
    "take_back": "account.lifecycle",
    "take_back_plan": "account.lifecycle",
    "watch": "api",
    "whoami": "api",
}
"""Public name -> its module in `sfsc`, which is imported when the name is first used."""

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
    limit_rate: int | None = None,
) -> Store:
    """Unlock the keyring in `home`, log in, and return the open store. The caller closes it, or
    uses it as a context manager.

    `home` defaults to SFSC_HOME, then to the system's folder for user data. `passphrase` is a text
    or a function that asks for one; it defaults to SFSC_PASSPHRASE, then to the content of the file
    that SFSC_PASSPHRASE_FILE names, then to the output of SFSC_PASSPHRASE_COMMAND. Unless it is a
    text, the key that the agent or the system's store of secrets holds is tried first. `timeouts`
    are in seconds. `progress` receives the progress of long steps. Keys that are due are rotated
    first, unless `auto_rotate` is False or, if it is None, SFSC_AUTO_ROTATE is 0. `min_wrap_alg`,
    by default SFSC_MIN_WRAP_ALG, is the weakest type of key that anything is encrypted for
    (rsa2048, rsa3072, rsa4096, x25519 or xwing). `limit_rate`, at least 16,384, limits the bytes
    that are sent and received in a second.

    Raises `KeyringError` if the keyring cannot be unlocked, `NetworkError`, and other `SfscError`s.
    """
    where = home_folder(home)
    # The thread's errors are ignored: the import below raises them again.
    loading = threading.Thread(target=_import_needed)
    loading.start()
    try:
        file = unlock_home(where, passphrase)
    finally:
        loading.join()  # even after an error: an import must not run while Python shuts down
    from sfsc.store import Store

    return Store(
        file,
        where,
        timeouts,
        progress,
        auto_rotate=auto_rotate,
        min_wrap_alg=min_wrap_alg,
        limit_rate=limit_rate,
    )


def watch(
    folder: Path,
    prefix: str | None = None,
    *,
    home: Home = None,
    passphrase: Passphrase = None,
    delete: bool = False,
    checksum: bool = False,
    exclude: Sequence[str] = (),
    limit_rate: int | None = None,
    skip: Skip | None = None,
    trouble: Trouble | None = None,
) -> Generator[Synced]:
    """Copy what changes in `folder` to the folder `prefix` of the store, until the caller closes
    this iterator; yield what `Store.sync` does, without what is unchanged. Other arguments are as
    in `Store.sync` and `connect`.

    A lost connection does not end it, nor does a server that restarts: it tries again, after 1 to
    60 seconds. So it does if the quota is full, or another process synchronises the folder.
    `trouble` is called with each such error and the seconds until then. Other errors are raised."""
    from sfsc.files.watch import watch_folder

    return watch_folder(
        lambda: connect(home, passphrase=passphrase, limit_rate=limit_rate),
        folder,
        lambda store: store.sync(
            folder, prefix, delete=delete, checksum=checksum, exclude=exclude, skip=skip
        ),
        trouble or (lambda _error, _seconds: None),
    )


def whoami(home: Home = None, *, passphrase: Passphrase = None) -> Whoami:
    """Return the account of the keyring in `home`, without asking the server. Arguments as in
    `connect`. Raises `KeyringError`."""
    return describe_account(unlock_home(home_folder(home), passphrase).contents)


def people(home: Home = None, *, passphrase: Passphrase = None) -> list[tuple[str, bytes]]:
    """Return the users who are trusted here, as (name, fingerprint of 32 bytes), by name: their
    fingerprints were compared, or accepted at first use. The server is not asked. Arguments as in
    `connect`. Raises `KeyringError`."""
    return list(unlock_home(home_folder(home), passphrase).contents.pins)


def check_proof(data: bytes, *, home: Home = None, vkey: str | None = None) -> VerifiedProof:
    """Verify `data`, made by `Store.proof_of`, without the server and without the account's keys.

    The log's key is `vkey` (a C2SP verification key), by default those that `home` has seen. Raises
    `BadReceipt`."""
    from sfsc.log import receipts
    from sfsc.trust.state import state_path

    if vkey is not None:
        return receipts.verify_proof(data, [receipts.parse_vkey(vkey)])
    return receipts.verify_proof(data, receipts.load_verifiers(state_path(home_folder(home))))


def accept(
    home: Home = None, *, passphrase: Passphrase = None, skip: Skip | None = None
) -> tuple[int, str | None, RestoredAccount | None]:
    """Trust the server's log as it is now, after it has shown two histories, and forget its past.

    If the server was restored from a backup that is older than the account's keys, continue with
    the keys that it knows, and replace them. `skip` is called for each version that is damaged and
    therefore left out. Return the log's number of entries, the path of the evidence kept against
    the server (None if there is none), and what the server had forgotten of the account (None for
    nothing). The next `sync` of each folder deletes nothing. Other arguments and errors as in
    `connect`."""
    from sfsc.account.restored import connect_accepting, continue_restored
    from sfsc.files.sync_memory import forget_synchronised
    from sfsc.session.session import Session
    from sfsc.trust.state import open_client_state

    where = home_folder(home)
    file = unlock_home(where, passphrase)
    with open_client_state(where, file) as state:
        kept = state.distrust_evidence()
        session = Session(file.contents, state, anew=True)
        try:
            with session.thread_guard:
                connect_accepting(session)
                forget_synchronised(where)
                session.accept_log()
                newest = session.trust.newest
                report = None if skip is None else session.thread_guard.reporting(skip)
                restored = continue_restored(session, file, report)
        finally:
            session.close()
    return newest.size, None if kept is None else str(kept), restored


def _import_needed() -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    # The first key makes `cryptography` load its backend, which takes 4 ms.
    from protocol.records.signatures import SigningKey

    SigningKey.from_seed(bytes(32))
