"""Where the agent's socket is, and who is at the other end of a connection to it."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final

from sfsc.errors import AgentUnavailable

SUPPORTED: Final = sys.platform != "win32" and hasattr(socket, "AF_UNIX")
MAX_PATH: Final = 103
"""Longest path in bytes: macOS has 104 bytes for it, Linux 108, both with a zero byte at the
end."""
_SECRET_MODE: Final = 0o077
_CREDENTIALS: Final = struct.Struct("iII")
"""struct ucred of Linux: process, user, group."""


def require_support() -> None:
    """Raise `AgentUnavailable` on a system without Unix sockets."""
    if not SUPPORTED:
        raise AgentUnavailable(
            "this system has no Unix sockets, which the agent needs",
            "use --passphrase-command, or `sfsc key remember`",
        )


def new_socket() -> socket.socket:
    """Return a new Unix socket. Raises as `require_support`."""
    require_support()
    return socket.socket(getattr(socket, "AF_UNIX"), socket.SOCK_STREAM)  # noqa: B009


def socket_path(home: Path) -> Path:
    """Return the place of the socket of the agent for the keyring in `home`.

    It is in the folder ``sfsc`` of the user's runtime folder, which the system removes when the
    user has logged out, or in ``HOME/agent`` if there is none.
    """
    whole = os.path.realpath(home)
    name = hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]
    runtime = _runtime_folder()
    return (
        Path(whole, "agent", "socket") if runtime is None else runtime / "sfsc" / f"{name}.socket"
    )


def _runtime_folder() -> Path | None:
    """Return XDG_RUNTIME_DIR, else the folder that systemd makes for a user, if it is a private
    folder of this user. After `su`, the variable may name that of somebody else."""
    stated = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(stated or f"/run/user/{own_uid()}")
    return folder if folder.is_absolute() and _is_private(folder) else None


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == own_uid()
    return is_own and not found.st_mode & _SECRET_MODE


def is_in_runtime_folder(path: Path) -> bool:
    """Return whether the folder of a socket goes when the user logs out."""
    return path.parent.parent == _runtime_folder()


def check_folder(path: Path) -> None:
    """Raise `AgentUnavailable` unless the folder of the socket is one of this user (0700)."""
    if not _is_private(path.parent):
        cause = f"the agent's folder is not a private folder of this user: {path.parent}"
        raise AgentUnavailable(
            cause, f"look at it, and run `chmod 700 {path.parent}` if it is yours"
        )


def check_length(path: Path) -> None:
    """Raise `AgentUnavailable` if the system takes no socket at `path`."""
    if len(os.fsencode(path)) > MAX_PATH:
        cause = f"the path of the agent's socket has more than {MAX_PATH} bytes: {path}"
        raise AgentUnavailable(cause, "set XDG_RUNTIME_DIR to a private folder with a short name")


def peer_is_this_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end runs as this user. Where the system cannot tell,
    the answer is no."""
    return _peer_uid(connection) == own_uid()


if sys.platform == "win32":

    def own_uid() -> int:
        return -1

else:

    def own_uid() -> int:
        """Return the effective user id of this process; -1 on Windows."""
        return os.geteuid()


if sys.platform == "linux":

    def _peer_uid(connection: socket.socket) -> int | None:
        """Return the effective user id of the peer when it connected or listened."""
        size = _CREDENTIALS.size
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        uid: int = _CREDENTIALS.unpack(found)[1]
        return uid

else:

    def _peer_uid(connection: socket.socket) -> int | None:
        """Return the effective user id of the peer by getpeereid(3) of macOS and the BSDs; None if
        the system has no such function."""
        import ctypes

        library = ctypes.CDLL(None)
        if not hasattr(library, "getpeereid"):
            return None
        user, group = ctypes.c_uint32(), ctypes.c_uint32()
        failed = library.getpeereid(connection.fileno(), ctypes.byref(user), ctypes.byref(group))
        return None if failed else user.value
