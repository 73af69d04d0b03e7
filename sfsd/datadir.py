"""Opening a root: its lock, crash recovery, and the log entry of the server's statement."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from protocol.buffers.file_status import is_folder
from protocol.codec.names import SERVER
from protocol.log.auditlog import EntryDraft
from sfsd import server_keys
from sfsd.errors import (
    DamagedError,
    JournalBusyError,
    JournalFullError,
    JournalRefusedError,
    RecoveryError,
    RootBusyError,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
    StoreWaitsError,
)
from sfsd.fs.files import Files
from sfsd.log.cut import check_no_cut
from sfsd.log.journal import Journal
from sfsd.rules.context import ServerContext, ServerIdentity
from sfsd.server_keys import ServerKeys
from sfsd.settings.config import Config
from sfsd.storage.change import Change
from sfsd.storage.committer import Committer
from sfsd.storage.crash_recovery import recover
from sfsd.storage.derive import ExpectedFile
from sfsd.storage.paths import account_path
from sfsd.storage.set_aside import lost_changes
from sfsd.storage.store import DirectoryStore

_log = logging.getLogger(__name__)
USERS = "store/users"
"""Folder below the root; exists since `init`."""
_DAEMON, _COMMAND = "daemon", "command"
_NO_ROOM = (
    JournalBusyError,
    JournalFullError,
    StoreBusyError,
    StoreFullError,
    StoreWaitsError,
)
NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""`OSError.errno` values that mean this process cannot write there."""
STATEMENT_OP = "server-statement"
"""Op of the log entry that holds a statement of this server."""


@contextmanager
def lock_root(root: Path, *, to_serve: bool = False) -> Iterator[None]:
    """Hold the lock of `root`: one process owns a root. `to_serve` says that it is the daemon.

    Raises `RootBusyError` if another process holds it, `ConfigError` if there is no root.
    """
    Config.load(root)  # fails before a folder is made outside a root
    folder = root / "run"
    files = Files.below(root)
    files.make_folder(folder)
    files.close(files.open_append(folder / "lock"))  # so that it gets the owner of `root`
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise _busy(root) from exc
    try:
        with suppress(OSError):  # a full disk must not keep anything from opening the root
            kind = _DAEMON if to_serve else _COMMAND
            files.replace_soon(folder / "pid", f"{os.getpid()} {kind}\n".encode())
        yield
    finally:
        with suppress(OSError):
            files.remove(folder / "pid")
        lock.release()


@contextmanager
def lock_root_to_read(root: Path) -> Iterator[None]:
    """Hold the lock of `root` as `lock_root` does. If this process cannot write there, as on a
    read-only disk or in a copy of another account, only check that no other process holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(lock_root(root))
        except OSError as exc:
            if exc.errno not in NOT_WRITABLE:
                raise
            held.enter_context(_lock_read_only(root))
        yield


@contextmanager
def _lock_read_only(root: Path) -> Iterator[None]:
    """Share the lock of a root whose lock file this process can only read, if there is one."""
    try:
        file = (root / "run" / "lock").open("rb")
    except OSError:
        yield  # a copy has none
        return
    with file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise _busy(root) from exc
        yield


def _busy(root: Path) -> RootBusyError:
    """Return the error that names the process which holds the lock of `root`."""
    shown = root.absolute()
    try:
        stated = (root / "run" / "pid").read_text("ascii")
    except (OSError, UnicodeDecodeError):
        stated = ""
    match stated.split():
        case [pid, kind] if pid.isdecimal() and kind == _DAEMON:
            hint = f"stop it first: `systemctl stop sfsd`, or `kill {pid}`"
            return RootBusyError(f"another daemon (pid {pid}) serves {shown}", hint)
        case [pid, kind] if pid.isdecimal() and kind == _COMMAND:
            hint = "try again when it has ended"
            return RootBusyError(f"another command (pid {pid}) uses {shown}", hint)
    # It has no room for the file, or just got the lock.
    return RootBusyError(f"another process uses {shown}", "stop it first")


@contextmanager
def open_server_context(
    root: Path,
    *,
    clock: Callable[[], float] = time.time,
    files: Files | None = None,
    after_cut: bool = False,
) -> Iterator[ServerContext]:
    """Open `root` and recover it from the last crash; the caller holds the root's lock.

    What is lost is set aside (`sfsd.storage.set_aside`). `after_cut` continues a cut of the log
    (`sfsd.log.cut`), which is refused otherwise. Raises `ConfigError`,
    `JournalDamagedError` or `RecoveryError` if the root must not be used.
    """
    files = files or Files.below(root)
    config = Config.load(root)
    keys = server_keys.update_statement(root / "keys", int(clock()), files)
    if not after_cut:
        check_no_cut(root / "logs")
    journal = Journal(root / "logs", keys.log_key, keys.origin, files=files)
    try:
        _check_mounted(root, journal)
        store = DirectoryStore(root, files)
        recovered = recover(store, journal)
        committer = Committer(store, journal, keep_spares=True)
        try:
            _set_aside(store, journal, committer, recovered.lost, after_cut=after_cut)
            identity = ServerIdentity.parse(
                keys.statement, keys.signature, keys.spki_sha256, keys.operator_public
            )
            context = ServerContext(root, config, identity, store, journal, committer, clock)
            context.recovered = recovered
            log_statement(context, keys)
            if store.installer.applied < 0:
                # A full disk takes a new number in staging/applied, but not the file itself.
                committer.settle()
            yield context
        finally:
            committer.close()
    finally:
        journal.close()


def _set_aside(
    store: DirectoryStore,
    journal: Journal,
    committer: Committer,
    lost: Sequence[ExpectedFile],
    *,
    after_cut: bool = False,
) -> None:
    if not after_cut:
        for file in lost:
            _log.error("entry %d: the bytes of %s are on no disk any more", file.seq, file.path)
    try:
        for change in lost_changes(store, journal, lost, after_cut=after_cut):
            committer.submit(change).result()
    except (StoreRefusedError, StoreFailedError, JournalRefusedError) as exc:
        # The mark stays where it is, so that the next start finds the same files missing.
        store.syncs.record(
            f"setting lost files aside: {exc}", awaits_room=isinstance(exc, _NO_ROOM)
        )


def repair_settings(context: ServerContext) -> None:
    """Make the settings of every account whose account.json is damaged or missing again."""
    damaged = []
    for user in context.journal.latest.users():
        try:
            context.documents.account(user)
        except DamagedError:
            damaged.append(ExpectedFile(context.journal.size - 1, account_path(user), None, None))
    _set_aside(context.store, context.journal, context.committer, damaged)


def _check_mounted(root: Path, journal: Journal) -> None:
    """Raise `RecoveryError` if there is a log but no store, as when its disk is not mounted.

    An empty store must not be served: a newly invited user could take any user's name.
    """
    if journal.size and not is_folder(root / USERS):
        raise RecoveryError(
            f"not there, and the log has {journal.size} entries",
            path=USERS,
            hint="mount its disk, or restore it from a backup of the root",
        )


def log_statement(context: ServerContext, keys: ServerKeys) -> None:
    """Log the server's statement unless it is logged already, so that clients can look it up.
    Waits for the disk. Raises `SfsdError`."""
    if context.failed is None and not _is_logged(context.journal, keys.statement):
        draft = EntryDraft(
            op=STATEMENT_OP, actor=SERVER, rec=keys.statement, sigs={"server": keys.signature}
        )
        context.committer.submit(Change(draft)).result()


def _is_logged(journal: Journal, statement: bytes) -> bool:
    # The log begins with the first statement, which for most servers is the only one.
    if journal.size and journal.entry(0).rec == statement:
        return True
    marker = f'"op":"{STATEMENT_OP}"'.encode()
    return any(
        marker in line and journal.entry(seq).rec == statement
        for seq, line in enumerate(journal.lines())
    )
