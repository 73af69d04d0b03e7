"""Where a user's keys and memory lie on this machine, and how the keyring is unlocked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocol.records.records import WRAP_ALGORITHMS
from sfsc.errors import LocalError, UsageError, WrongPassphrase
from sfsc.keys.keyring import KeyringFile, needs_passphrase

PASSPHRASE: Final = "SFSC_PASSPHRASE"  # noqa: S105 - the variable's name
PASSPHRASE_FILE: Final = "SFSC_PASSPHRASE_FILE"  # noqa: S105
HOME: Final = "SFSC_HOME"
AUTO_ROTATE: Final = "SFSC_AUTO_ROTATE"
MIN_WRAP_ALG: Final = "SFSC_MIN_WRAP_ALG"
MAX_PASSPHRASE: Final = 64 * 1024
DEFAULT_MIN_WRAP_ALG: Final = WRAP_ALGORITHMS[0]
"""What `min_wrap_alg` is where nobody sets it: every algorithm will do."""
Home = str | os.PathLike[str] | None
"""The folder of a keyring and of what is remembered, or None: the environment says which."""
Passphrase = str | Callable[[], str] | None
"""A passphrase, what asks for one, or None: the environment names it."""


def home_folder(home: Home) -> Path:
    """The folder meant by `home`, by SFSC_HOME, or the system's place for a user's data."""
    stated = home if home is not None else os.environ.get(HOME)
    if stated is not None:
        return Path(stated)
    import platformdirs

    return platformdirs.user_data_path("sfsc", appauthor=False)


def resolve_min_wrap_alg(stated: str | None) -> str:
    """The weakest kind of key to encrypt for: what was `stated`, else what SFSC_MIN_WRAP_ALG says,
    else any. Raises `UsageError` for none that there is."""
    weakest = stated or os.environ.get(MIN_WRAP_ALG) or DEFAULT_MIN_WRAP_ALG
    if weakest not in WRAP_ALGORITHMS:
        raise UsageError(f"no algorithm {weakest}", f"one of {', '.join(WRAP_ALGORITHMS)}")
    return weakest


def auto_rotate_enabled() -> bool:
    """Whether keys that are due are rotated without being asked: SFSC_AUTO_ROTATE is not 0."""
    return os.environ.get(AUTO_ROTATE, "1") != "0"


def keyring_path(home: Path) -> Path:
    return home / "keyring"


def find_passphrase(passphrase: Passphrase) -> str | None:
    """The passphrase that was given, asked for, or is named by the environment; None for none.

    Raises `LocalError` for a passphrase file that cannot be read.
    """
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
            return file.read(MAX_PASSPHRASE).removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as exc:
        raise LocalError(f"cannot read the file that {PASSPHRASE_FILE} names") from exc


def require_passphrase(passphrase: Passphrase) -> str:
    """The passphrase of a new file. Raises `UsageError` where none is named."""
    stated = find_passphrase(passphrase)
    if stated is None:
        raise UsageError("a new key file needs a passphrase", "or say that there shall be none")
    return stated


def unlock_home(home: Path, passphrase: Passphrase) -> KeyringFile:
    """The keyring of `home`. A passphrase is asked for only where one is needed.

    Raises `KeyringError`, and what asking raises.
    """
    return unlock_keyring(keyring_path(home), passphrase)


def check_no_keyring(home: Path) -> None:
    """Raise `LocalError` where `home` has an account already."""
    if os.path.exists(keyring_path(home)):
        raise LocalError(f"there is a keyring in {home} already", "use another --home")


def unlock_keyring(path: Path, passphrase: Passphrase) -> KeyringFile:
    """The keyring at `path`, which may be a backup. As `unlock_home`."""
    if not needs_passphrase(path):
        return KeyringFile.unlock(path, None)
    stated = find_passphrase(passphrase)
    if stated is None:
        raise WrongPassphrase(
            "the keyring is locked with a passphrase", f"set {PASSPHRASE} or {PASSPHRASE_FILE}"
        )
    return KeyringFile.unlock(path, stated)
