"""Location of a user's keyring and state on this machine, and how the keyring is unlocked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.codec.terminal_text import printable
from protocol.records.records import WRAP_ALGORITHMS
from sfsc import local_files
from sfsc.errors import LocalError, UsageError, WrongPassphrase
from sfsc.keys.keyring import KeyringFile, needs_passphrase

PASSPHRASE: Final = "SFSC_PASSPHRASE"  # noqa: S105 - the variable's name
PASSPHRASE_FILE: Final = "SFSC_PASSPHRASE_FILE"  # noqa: S105
HOME: Final = "SFSC_HOME"
AUTO_ROTATE: Final = "SFSC_AUTO_ROTATE"
MIN_WRAP_ALG: Final = "SFSC_MIN_WRAP_ALG"
MAX_PASSPHRASE: Final = 64 * 1024
DEFAULT_MIN_WRAP_ALG: Final = WRAP_ALGORITHMS[0]
"""Default of `min_wrap_alg`: every algorithm is accepted."""
Home = str | os.PathLike[str] | None
"""Folder of the keyring and the state, or None: use the environment."""
Passphrase = str | Callable[[], str] | None
"""A passphrase, a function that asks for one, or None: use the environment."""


def home_folder(home: Home) -> Path:
    """Return `home`, else SFSC_HOME, else the system's folder for user data."""
    stated = home if home is not None else os.environ.get(HOME)
    if stated is not None:
        return Path(stated)
    import platformdirs

    return platformdirs.user_data_path("sfsc", appauthor=False)


def resolve_min_wrap_alg(stated: str | None) -> str:
    """Return the weakest key type to encrypt for: `stated`, else SFSC_MIN_WRAP_ALG, else any.
    Raises `UsageError` for an unknown type."""
    weakest = stated or os.environ.get(MIN_WRAP_ALG) or DEFAULT_MIN_WRAP_ALG
    if weakest not in WRAP_ALGORITHMS:
        raise UsageError(f"unknown algorithm {weakest}", f"use {', '.join(WRAP_ALGORITHMS)}")
    return weakest


def auto_rotate_enabled() -> bool:
    """Return whether due keys are rotated automatically: SFSC_AUTO_ROTATE is not 0."""
    return os.environ.get(AUTO_ROTATE, "1") != "0"


def keyring_path(home: Path) -> Path:
    return home / "keyring"


def find_passphrase(passphrase: Passphrase) -> str | None:
    """Return the passphrase given, asked for, or named by the environment; else None. Raises
    `LocalError` if the passphrase file cannot be read."""
    if isinstance(passphrase, str):
        return passphrase
    if passphrase is not None:
        return passphrase()
    if (stated := os.environ.get(PASSPHRASE)) is not None:
        return stated
    if (path := os.environ.get(PASSPHRASE_FILE)) is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            _warn_if_exposed(path)
            return file.read(MAX_PASSPHRASE).removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as exc:
        raise LocalError(f"cannot read the file that {PASSPHRASE_FILE} names") from exc


def require_passphrase(passphrase: Passphrase) -> str:
    """Return the passphrase of a new file. Raises `UsageError` if none is given."""
    stated = find_passphrase(passphrase)
    if stated is None:
        raise UsageError("a new key file needs a passphrase", "or use --no-passphrase")
    return stated


def unlock_home(home: Path, passphrase: Passphrase) -> KeyringFile:
    """Unlock the keyring in `home`, asking for a passphrase only if it needs one. Raises
    `KeyringError`, and the errors of asking; `WrongPassphrase` also if the keyring has no
    passphrase and one is given, or named by the environment."""
    path = keyring_path(home)
    if passphrase is None and not needs_passphrase(path):
        passphrase = find_passphrase(None)
    return unlock_keyring(path, passphrase)


def unlock_without_asking(home: Path) -> KeyringFile | None:
    """Unlock the keyring in `home` if that takes no passphrase; None if it does. Raises
    `KeyringError` and `LocalError`."""
    path = keyring_path(home)
    return None if needs_passphrase(path) else KeyringFile.unlock(path, None)


def check_no_keyring(home: Path) -> None:
    """Raise `LocalError` if `home` already has an account."""
    if local_files.exists(keyring_path(home)):
        raise LocalError(f"a keyring exists in {home}", "use another --home")


def unlock_keyring(path: Path, passphrase: Passphrase) -> KeyringFile:
    """Unlock the keyring at `path`, which may be a backup. Like `unlock_home`, but the environment
    may name a passphrase that the file does not need: it is that of the keyring to be written."""
    locked = needs_passphrase(path)
    _warn_if_exposed(path)
    if not locked:
        return KeyringFile.unlock(path, passphrase if isinstance(passphrase, str) else None)
    stated = find_passphrase(passphrase)
    if stated is None:
        raise WrongPassphrase(
            "the keyring is locked with a passphrase", f"set {PASSPHRASE} or {PASSPHRASE_FILE}"
        )
    return KeyringFile.unlock(path, stated)


def _warn_if_exposed(path: str | Path) -> None:
    """Log a warning if other users of this machine may read a file of secrets. A program without
    logging, such as `sfsc`, prints it on stderr. Windows has no such modes. Raises `LocalError` if
    the file cannot be examined."""
    mode = local_files.mode_of(path)
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o044:
        import logging  # takes milliseconds that other commands need not spend

        message = "warning: other users of this machine may read %s; run `chmod 600` on it"
        logging.getLogger("sfsc").warning(message, printable(str(path)))
