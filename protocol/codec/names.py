"""Rules for user names, file ids and file names.

User names are sent in the clear and become folder names on any system. File names are sent
encrypted. Clients check them before encryption, and again after decryption, because the owner of a
shared file is not trusted.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from protocol.codec.errors import MessageError

OPERATOR = "operator"
SERVER = "server"
_KNOWN = 1024
"""User names whose check is cached: every record and message holds some."""
_KNOWN_FILES = 8192
"""File names whose check is cached: a folder is listed before it is fetched."""
MAX_FILE_NAME = 1024
"""Longest file name in bytes of UTF-8."""

_USER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FILE_ID = re.compile(r"[0-9a-f]{32}")
_FORBIDDEN = frozenset("\\\u2028\u2029") | set(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
"""Backslash, and the Unicode categories Cc, Zl and Zp. A set, because a regular expression takes
long to compile at every start and matches hardly faster."""
_NO_PARTS = frozenset({"", ".", ".."})
_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}
_NOT_ON_WINDOWS = frozenset('<>:"|?*')


def is_device_name(part: str) -> bool:
    """Return whether Windows takes the path component `part` for a device, with any extension."""
    return part.split(".", 1)[0].rstrip(" ").lower() in _DEVICES


def fits_windows(part: str) -> bool:
    """Return whether Windows can store a file under the path component `part`: no device name, no
    ``<>:"|?*`` (a colon names another stream of a file), and no dot or space at the end."""
    return not (is_device_name(part) or part[-1] in ". " or not _NOT_ON_WINDOWS.isdisjoint(part))


@lru_cache(_KNOWN)
def check_user_name(name: str) -> None:
    """Raise `MessageError` unless `name` matches ``[a-z0-9][a-z0-9_-]{0,31}`` and is neither
    reserved nor a Windows device name."""
    check_principal(name)
    if name in (OPERATOR, SERVER):
        raise MessageError(f"the user name {name!r} is reserved")


@lru_cache(_KNOWN)
def check_principal(name: str) -> None:
    """Like `check_user_name`, but also accept the reserved actors `operator` and `server`."""
    if not _USER.fullmatch(name) or is_device_name(name):
        raise MessageError(f"not a user name: {name[:40]!r}")


def check_file_id(file_id: str) -> None:
    """Raise `MessageError` unless `file_id` is 32 lower-case hex digits."""
    if not _FILE_ID.fullmatch(file_id):
        raise MessageError("file id is not 32 hex digits")


def check_file_name(name: str) -> None:
    """Raise `MessageError` unless `name` is a valid name of a file or a symbolic link.

    A valid name is relative, in Unicode form NFC, 1 to 1,024 bytes of UTF-8. Its parts, separated
    by ``/``, are not empty, ``.`` or ``..``. It has no backslash and no control character (NUL, C0,
    DEL, C1, line and paragraph separators).
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise MessageError("file name is not valid Unicode") from exc
    if not 0 < size <= MAX_FILE_NAME:
        raise MessageError(f"file name has {size} bytes, allowed are 1 to {MAX_FILE_NAME}")
    if not _NO_PARTS.isdisjoint(name.split("/")):
        raise MessageError("file name is absolute or has an empty, '.' or '..' part")
    if not _FORBIDDEN.isdisjoint(name):
        raise MessageError("file name holds a control character or a backslash")
    if not unicodedata.is_normalized("NFC", name):
        raise MessageError("file name is not in Unicode form NFC")


@lru_cache(_KNOWN_FILES)
def check_entry_name(name: str) -> None:
    """Raise `MessageError` unless `name` is a valid name of a file, a link or a folder.

    The name of a folder is that of a file with a slash at its end; both together have at most 1,024
    bytes.
    """
    check_file_name(name.removesuffix("/"))
    if len(name.encode()) > MAX_FILE_NAME:
        raise MessageError(f"the name of a folder has more than {MAX_FILE_NAME} bytes")
