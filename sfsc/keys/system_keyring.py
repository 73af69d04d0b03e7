"""The unlock key of the keyring's file in the system's own store of secrets.

That is Keychain on macOS, the Credential Manager on Windows, and the Secret Service (GNOME Keyring,
KWallet) on Linux, through the Python package `keyring`, which is imported only here and only once
the user has asked for it. The file ``HOME/remembered`` says so: it holds the digest in the header
of the keyring's file, under which the key is stored.
"""

from __future__ import annotations

import binascii
import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from sfsc.atomicfile import replace_file
from sfsc.errors import LocalError, UsageError

SERVICE: Final = "sfsc"
_ID_LETTERS: Final = 64
_RECOMMENDED: Final = 1
"""Least priority of the stores that `keyring` recommends; a plain file has less."""


def remember_key(home: Path, lock_id: bytes, key: bytes) -> None:
    """Store the unlock key `key` of the keyring's file `lock_id` (32 bytes each), instead of that
    of an earlier file. Raises `UsageError` without the package `keyring`, and `LocalError` if there
    is no store that protects it."""
    if _remembered_id(home) not in (None, lock_id):
        forget_key(home)
    with _library() as keyring:
        if keyring.get_keyring().priority < _RECOMMENDED:
            cause = "this system has no store of secrets that sfsc could use"
            raise LocalError(cause, "use `sfsc agent start`, or --passphrase-command")
        keyring.set_password(SERVICE, lock_id.hex(), key.hex())
        if keyring.get_password(SERVICE, lock_id.hex()) != key.hex():
            raise LocalError("the system's store of secrets does not return what was stored")
    try:
        replace_file(_path(home), lock_id.hex().encode())
    except OSError as exc:
        raise LocalError(f"cannot write {_path(home)}: {exc.strerror}") from exc


def find_remembered_key(home: Path, lock_id: bytes) -> bytes | None:
    """Return the unlock key of the keyring's file `lock_id`; None if it is not remembered. Raises
    as `remember_key`."""
    if _remembered_id(home) != lock_id:
        return None
    with _library() as keyring:
        found = keyring.get_password(SERVICE, lock_id.hex())
    if found is None:
        return None
    try:
        key = binascii.unhexlify(found)
    except ValueError:
        return None
    return key if len(key) == len(lock_id) else None


def forget_key(home: Path) -> bool:
    """Remove the key from the system's store; return whether one was remembered. Raises as
    `remember_key`."""
    lock_id = _remembered_id(home)
    if lock_id is None:
        return False
    with _library() as keyring:
        if keyring.get_password(SERVICE, lock_id.hex()) is not None:
            keyring.delete_password(SERVICE, lock_id.hex())
    try:
        _path(home).unlink(missing_ok=True)
    except OSError as exc:
        raise LocalError(f"cannot remove {_path(home)}: {exc.strerror}") from exc
    return True


def _path(home: Path) -> Path:
    return home / "remembered"


def _remembered_id(home: Path) -> bytes | None:
    try:
        with _path(home).open("rb") as file:
            text = file.read(_ID_LETTERS + 1)
    except OSError:
        return None
    with contextlib.suppress(ValueError):
        if len(text) == _ID_LETTERS:
            return binascii.unhexlify(text)
    return None


@contextlib.contextmanager
def _library() -> Iterator[ModuleType]:
    """Import `keyring`, and turn its errors into `LocalError`."""
    try:
        import keyring
        import keyring.errors
    except ImportError as exc:
        hint = "run `pip install 'sealed-file-store[keyring]'`"
        raise UsageError("the Python package keyring is not installed", hint) from exc
    try:
        yield keyring
    except keyring.errors.KeyringError as exc:
        cause = f"the system's store of secrets failed: {str(exc) or type(exc).__name__}"
        raise LocalError(cause, "unlock it, or run `sfsc key forget`") from exc
