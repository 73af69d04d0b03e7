"""Location of a user's keyring and state on this machine, and how the keyring is unlocked."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, cast

from protocol.codec.terminal_text import printable
from protocol.records.records import WRAP_ALGORITHMS
from sfsc import local_files
from sfsc.errors import (
    AgentUnavailable,
    KeyringError,
    LocalError,
    SfscError,
    UsageError,
    WrongPassphrase,
)
from sfsc.keys.keyring import KeyringFile, needs_passphrase, read_lock_id
from sfsc.library_log import log_step, log_warning, milliseconds

PASSPHRASE: Final = "SFSC_PASSPHRASE"  # noqa: S105 - the variable's name
PASSPHRASE_FILE: Final = "SFSC_PASSPHRASE_FILE"  # noqa: S105
PASSPHRASE_COMMAND: Final = "SFSC_PASSPHRASE_COMMAND"  # noqa: S105
PASSPHRASE_VARIABLES: Final = (PASSPHRASE, PASSPHRASE_FILE, PASSPHRASE_COMMAND)
"""Variables that name the passphrase; the first one that is set counts."""
PASSPHRASE_HINT: Final = f"set {PASSPHRASE}, {PASSPHRASE_FILE} or {PASSPHRASE_COMMAND}"
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
    `LocalError` if the passphrase file cannot be read, and `KeyringError` if the passphrase command
    fails."""
    if isinstance(passphrase, str):
        return passphrase
    if passphrase is not None:
        return passphrase()
    if (stated := os.environ.get(PASSPHRASE)) is not None:
        return stated
    if (path := os.environ.get(PASSPHRASE_FILE)) is not None:
        return _read_passphrase_file(path)
    if (command := os.environ.get(PASSPHRASE_COMMAND)) is not None:
        return _run_passphrase_command(command)
    return None


def _read_passphrase_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            _warn_if_exposed(path)
            return _one_line(file.read(MAX_PASSPHRASE))
    except (OSError, UnicodeDecodeError) as exc:
        raise LocalError(f"cannot read the file that {PASSPHRASE_FILE} names") from exc


def _run_passphrase_command(command: str) -> str:
    """Return what `command` writes to its stdout, without the newline at the end. The shell runs
    it; its stdin is empty, since stdin may be what a command stores."""
    import subprocess

    # Without the variable: a command that runs `sfsc` must not run itself.
    variables = {name: text for name, text in os.environ.items() if name != PASSPHRASE_COMMAND}
    try:
        with subprocess.Popen(  # noqa: S602 - the user's own command, like an alias
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=variables,
        ) as process:
            output = cast(BinaryIO, process.stdout)
            written = output.read(MAX_PASSPHRASE)
            output.close()
            code = process.wait()
        text = written.decode()
    except (OSError, ValueError) as exc:  # such as a zero byte in it, or output that is no text
        raise KeyringError("the passphrase command cannot be used", _COMMAND_HINT) from exc
    if code:
        ended = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise KeyringError(f"the passphrase command failed with {ended}", _COMMAND_HINT)
    return _one_line(text)


_COMMAND_HINT: Final = f"run it by itself: it is in --passphrase-command or {PASSPHRASE_COMMAND}"


def _one_line(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def require_passphrase(passphrase: Passphrase) -> str:
    """Return the passphrase of a new file. Raises `UsageError` if none is given."""
    stated = find_passphrase(passphrase)
    if stated is None:
        raise UsageError("a new key file needs a passphrase", "or use --no-passphrase")
    return stated


def unlock_home(home: Path, passphrase: Passphrase, *, must_ask: bool = False) -> KeyringFile:
    """Unlock the keyring in `home`, asking for a passphrase only if it needs one. Raises
    `KeyringError`, and the errors of asking; `WrongPassphrase` also if the keyring has no
    passphrase and one is given, or named by the environment.

    Unless the passphrase is given as text, the key that the agent or the system's store of secrets
    holds is tried first, so that Argon2id is not needed. An agent that runs, or is to start by
    itself, is given the key. With `must_ask` neither is used."""
    path = keyring_path(home)
    lock_id = read_lock_id(path)
    if lock_id is None:
        _check_not_replaced(home)
        return unlock_keyring(path, find_passphrase(None) if passphrase is None else passphrase)
    if must_ask or isinstance(passphrase, str):
        return unlock_keyring(path, passphrase)
    file = None
    try:
        file = _unlock_by_agent(home, path, lock_id)
    except AgentUnavailable as exc:
        log_warning("the agent was not used", exc.cause, exc.hint)
    if file is not None:
        return file
    if passphrase is not None or not any(name in os.environ for name in PASSPHRASE_VARIABLES):
        file = _unlock_by_system(home, path, lock_id)
    if file is None:
        file = unlock_keyring(path, passphrase)
    _give_to_agent(home, file)
    return file


def _check_not_replaced(home: Path) -> None:
    """Raise `WrongPassphrase` if the agent holds the key of a locked keyring, which this one
    without a passphrase has replaced."""
    from sfsc.agent.client import agent_is_used, status

    if agent_is_used():
        with contextlib.suppress(AgentUnavailable):
            if status(home, None).holds_key:
                raise WrongPassphrase(
                    "the keyring has no passphrase, but the agent holds the key of one that has",
                    "if you did not remove it, somebody has replaced the file: restore it from a"
                    " backup; else run `sfsc agent lock`",
                )


def _unlock_by_agent(home: Path, path: Path, lock_id: bytes) -> KeyringFile | None:
    from sfsc.agent.client import agent_is_used, find_key

    key = find_key(home, lock_id) if agent_is_used() else None
    return None if key is None else _unlock_by_key(path, key)


def _unlock_by_key(path: Path, key: bytes) -> KeyringFile | None:
    _warn_if_exposed(path)
    try:
        return KeyringFile.unlock_by_key(path, key)
    except WrongPassphrase:  # it was changed since, or this is no key of this keyring
        return None


def _unlock_by_system(home: Path, path: Path, lock_id: bytes) -> KeyringFile | None:
    from sfsc.keys.system_keyring import find_remembered_key

    try:
        key = find_remembered_key(home, lock_id)
    except SfscError as exc:
        log_warning("the remembered passphrase was not used", exc.cause, exc.hint)
        return None
    return None if key is None else _unlock_by_key(path, key)


def _give_to_agent(home: Path, file: KeyringFile) -> None:
    """Give the key to the agent, if one runs or is to start by itself. What fails is only logged as
    a warning: the command has its key."""
    from sfsc.agent import client

    if not client.agent_is_used():
        return
    try:
        timeout = client.default_timeout()
        if client.keep_key(home, file.lock_id, file.unlock_key, timeout):
            return
        if client.agent_starts_itself():
            client.start(home)
            client.keep_key(home, file.lock_id, file.unlock_key, timeout)
    except LocalError as exc:
        log_warning("the agent does not hold the key", exc.cause, exc.hint)


def unlock_without_asking(home: Path) -> KeyringFile | None:
    """Unlock the keyring in `home` if it has no passphrase, or if an agent that runs holds its key;
    else return None. Raises `KeyringError` and `LocalError`."""
    path = keyring_path(home)
    lock_id = read_lock_id(path)
    return (
        KeyringFile.unlock(path, None) if lock_id is None else _unlock_by_agent(home, path, lock_id)
    )


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
        return _unlock(path, passphrase if isinstance(passphrase, str) else None)
    stated = find_passphrase(passphrase)
    if stated is None:
        raise WrongPassphrase("the keyring is locked with a passphrase", PASSPHRASE_HINT)
    return _unlock(path, stated)


def _unlock(path: Path, passphrase: str | None) -> KeyringFile:
    began = time.monotonic()
    unlocked = KeyringFile.unlock(path, passphrase)
    log_step(f"opened the keyring {path} in {milliseconds(time.monotonic() - began)}")
    return unlocked


def _warn_if_exposed(path: str | Path) -> None:
    """Log a warning if other users of this machine may read a file of secrets. A program without
    logging, such as `sfsc`, prints it on stderr. Windows has no such modes. Raises `LocalError` if
    the file cannot be examined."""
    mode = local_files.mode_of(path)
    if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o044:
        import logging  # takes milliseconds that other commands need not spend

        message = "warning: other users of this machine may read %s; run `chmod 600` on it"
        logging.getLogger("sfsc").warning(message, printable(str(path)))
