"""Examination of an account: this machine's files, the server, its log, and what is due."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocol.codec.terminal_text import counted, human_duration, human_size
from protocol.codec.values import Value
from protocol.records.records import Statement
from sfsc import local_files
from sfsc.errors import LocalError, NetworkError, ProtocolFailure, SfscError
from sfsc.keys.home import Home, Passphrase, home_folder, keyring_path, unlock_home
from sfsc.keys.keyring import KeyringFile, needs_passphrase
from sfsc.session.evidence import conflict_hint
from sfsc.session.handshake import dial, verify_welcome
from sfsc.session.limits import Timeouts
from sfsc.trust.server_log import ServerTrust
from sfsc.trust.state import open_client_state

if TYPE_CHECKING:
    from sfsc.store import Store

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
"""States of a finding."""
_SLOW_CLOCK: Final = 60
_WRONG_CLOCK: Final = 600
"""Seconds between the clocks that are a warning, and an error: the server then refuses changes."""
_SOON: Final = 7 * 86_400
_ROOM: Final = 1 << 20
_SCARCE: Final = 90
"""Per cent of the quota that are a warning."""


class Finding(Value):
    """One thing that was examined: its name (`check`), its `state` (`OK`, `WARNING` or `ERROR`),
    what was found (`message`), and what to do or to run about it (`hint`, "" if nothing)."""

    check: str
    state: str
    message: str
    hint: str = ""


def doctor(
    home: Home = None, *, passphrase: Passphrase = None, timeouts: Timeouts | None = None
) -> Iterator[Finding]:
    """Examine the account in `home`, and yield what is found, in this order: `home` (who may open
    its files), `disk`, `keyring`, `server` (each address), `pin`, `clock`, `log`, `rotation`,
    `space` and `recovery`. What depends on something that failed is left out. Nothing is changed
    but what every login changes. Arguments as in `connect`. Raises no `SfscError`."""
    where = home_folder(home)
    yield from _examine(lambda: _home(where), "home")
    try:
        file = unlock_home(where, passphrase)
    except SfscError as exc:
        yield _failed("keyring", exc)
        return
    locked = "with" if needs_passphrase(file.path) else "without"
    user = file.contents.user
    yield Finding("keyring", OK, f"the keyring of {user} opens, {locked} a passphrase")
    reached = False
    for finding in _examine(lambda: _server(where, file, timeouts), "server"):
        reached = reached or (finding.check == "pin" and finding.state == OK)
        yield finding
    if reached:
        yield from _examine(lambda: _account(where, file, timeouts), "log")


def _examine(check: Callable[[], Iterator[Finding]], name: str) -> Iterator[Finding]:
    """Yield what `check` finds, and the error that ends it."""
    try:
        yield from check()
    except SfscError as exc:
        yield _failed(name, exc)


def _failed(name: str, error: SfscError) -> Finding:
    return Finding(name, ERROR, error.cause, error.hint)


def _home(where: Path) -> Iterator[Finding]:
    if not local_files.is_folder(where):
        yield Finding("home", ERROR, f"there is no folder {where}", "run `sfsc init`")
        return
    if sys.platform != "win32":
        yield _modes(where, os.geteuid())
    free = _free(where)
    if free < _ROOM:
        found = f"{human_size(free)} are free on the disk of {where}"
        yield Finding("disk", WARNING, found, f"make room: run `df -h {where}`")
    else:
        yield Finding("disk", OK, f"{human_size(free)} are free on the disk of {where}")


def _modes(where: Path, user: int) -> Finding:
    """Examine who may open the folder and the files in it, beside the user with this number. A
    closed folder protects its files, except that the keyring must be closed by itself, for a copy
    of it may be elsewhere."""
    try:
        found = [(path, path.lstat()) for path in (where, *sorted(where.rglob("*")))]
    except OSError as exc:
        raise LocalError(f"cannot examine {where}: {exc.strerror}") from exc
    foreign = [path for path, status in found if status.st_uid not in (user, 0)]
    if foreign:
        return _other_owner(foreign)
    wide = [
        path
        for path, status in found
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077
    ]
    exposed = [one for one in wide if where in wide or one == keyring_path(where)]
    hint = f"run `chmod -R go= {where}`"
    if exposed == [where]:
        return Finding("home", WARNING, f"other users of this machine may look into {where}", hint)
    if exposed:
        files = [one for one in exposed if one != where]
        message = f"other users of this machine may open {_first_of(files)}"
        return Finding("home", ERROR, message, hint)
    return Finding("home", OK, f"only you may open the files in {where}")


def _other_owner(foreign: Sequence[Path]) -> Finding:
    message = f"{_first_of(foreign)} belong{'s' if len(foreign) == 1 else ''} to another user"
    hint = "run sfsc as that user, or use another --home"
    return Finding("home", ERROR, message, hint)


def _first_of(paths: Sequence[Path]) -> str:
    return str(paths[0]) + (f" and {counted(len(paths) - 1, 'other')}" if len(paths) > 1 else "")


def _free(where: Path) -> int:
    try:
        return shutil.disk_usage(where).free
    except OSError as exc:
        raise LocalError(f"cannot examine {where}: {exc.strerror}") from exc


def _server(where: Path, file: KeyringFile, timeouts: Timeouts | None) -> Iterator[Finding]:
    """Connect to each address of the server, and compare its key with the pinned one."""
    addresses, pin = file.contents.addresses, file.contents.server_id
    silent: list[tuple[str, SfscError]] = []
    answered: list[str] = []
    wrong: list[Finding] = []
    with open_client_state(where, file, must_be_saved=False) as state:
        stored = state.server_statements()
        for address in addresses:
            trust = ServerTrust.from_stored(pin, stored)
            try:
                transport = dial((address,), timeouts)
                try:
                    verify_welcome(transport, trust, state)
                finally:
                    transport.close()
            except NetworkError as exc:
                silent.append((address, exc))
                continue
            except SfscError as exc:
                wrong.append(Finding("pin", ERROR, f"{address}: {exc.cause}", exc.hint))
            answered.append(address)
    for address, error in silent:
        other = isinstance(error, ProtocolFailure) or not answered
        hint = error.hint if other else f"{error.hint}; another address: run `sfsc server set`"
        cause = error.cause if address in error.cause else f"{address}: {error.cause}"
        yield Finding("server", WARNING if answered else ERROR, cause, hint)
    for address in answered:
        yield Finding("server", OK, f"{address} answers")
    yield from wrong
    if answered and not wrong:
        yield Finding("pin", OK, f"the server is the pinned one, {pin.hex()[:16]}…")


def _account(where: Path, file: KeyringFile, timeouts: Timeouts | None) -> Iterator[Finding]:
    """Log in, which follows the log, and examine the account."""
    from sfsc.store import Store

    before = time.time()
    with Store(file, where, timeouts, auto_rotate=False) as store:
        yield _clock(store.server_time(), before, time.time())
        status = store.status()
        evidence = store.distrust_evidence()
        if evidence is not None:
            found, hint = "this server has shown two different logs", conflict_hint(evidence)
            yield Finding("log", ERROR, found, hint)
        else:
            entries = counted(status.log_size, "entry", "entries")
            found = f"{entries}, verified to continue the log that was seen before"
            yield Finding("log", OK, found)
        yield _rotation(store, file)
        yield _space(status.used, status.quota)
        if status.recovery:
            yield Finding("recovery", OK, "there is a recovery code")
        else:
            yield Finding(
                "recovery", WARNING, "there is no recovery code", "run `sfsc key recovery`"
            )


def _clock(server: int | None, before: float, after: float) -> Finding:
    """Compare this machine's clock with the time that the server logged for the login between
    `before` and `after`, in Unix seconds."""
    if server is None:
        found = "the server can write nothing to its log, so its time is not known"
        return Finding("clock", WARNING, found, "its operator can tell why: `sfsd status`")
    ahead = max(before - server - 1, server - after, 0)  # the server logs whole seconds
    if ahead < _SLOW_CLOCK:
        return Finding("clock", OK, "this machine's clock agrees with the server's")
    side = "ahead of" if before > server else "behind"
    found = f"this machine's clock is {human_duration(ahead)} {side} the server's"
    state = ERROR if ahead >= _WRONG_CLOCK else WARNING
    return Finding("clock", state, found, "set it: run `timedatectl set-ntp true`")


def _rotation(store: Store, file: KeyringFile) -> Finding:
    newest = Statement.parse(file.contents.statements[-1])
    now = time.time()
    if reason := store.rotation_due():
        state = ERROR if now >= newest.expires else WARNING
        return Finding(
            "rotation", state, f"your keys must be rotated: {reason}", "run `sfsc rotate`"
        )
    state = WARNING if newest.due - now < _SOON else OK
    found = f"your keys are to be rotated within {human_duration(newest.due - now)}"
    return Finding("rotation", state, found, "run `sfsc rotate`" if state == WARNING else "")


def _space(used: int, quota: int) -> Finding:
    if not quota:
        return Finding("space", OK, f"{human_size(used)} are used; there is no quota")
    share = used * 100 // quota
    found = f"{human_size(used)} of {human_size(quota)} are used ({share} %)"
    if share < _SCARCE:
        return Finding("space", OK, found)
    return Finding(
        "space",
        WARNING if share < 100 else ERROR,
        found,
        "run `sfsc du`; `sfsc purge --trash` makes room",
    )
