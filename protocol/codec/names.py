"""Names that may exist: of users, and of files.

User names travel in the clear and become folder names on any system. File names travel encrypted;
clients check them when they encrypt and again when they decrypt, since a sharer is not trusted.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from protocol.codec.errors import MessageError

OPERATOR = "operator"
SERVER = "server"
_KNOWN = 1024
"""User names that are not looked at again: every record and message has some."""
_KNOWN_FILES = 8192
"""Names of files, likewise: who fetches a folder has listed it before."""
MAX_FILE_NAME = 1024
"""Bytes of UTF-8 in the longest file name."""

_USER = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FILE_ID = re.compile(r"[0-9a-f]{32}")
_FORBIDDEN = frozenset("\\\u2028\u2029") | set(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
"""A backslash, and all of the Unicode categories Cc, Zl and Zp. As an expression it takes long to
compile, for every start, and matches hardly faster."""
_NO_PARTS = frozenset({"", ".", ".."})
_DEVICES = frozenset({"con", "prn", "aux", "nul", "conin$", "conout$"}) | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


def is_device_name(part: str) -> bool:
    """Whether Windows takes `part` of a path for a device, whatever its extension."""
    return part.split(".", 1)[0].rstrip(" ").lower() in _DEVICES


def check_user_name(name: str) -> None:
    """Raise `MessageError` unless ``[a-z0-9][a-z0-9_-]{0,31}``, not reserved and not a device."""
    check_principal(name)
    if name in (OPERATOR, SERVER):
        raise MessageError(f"the user name {name!r} is reserved")


def check_principal(name: str) -> None:
    """As `check_user_name`, but `operator` and `server` may act too."""
    _check_once(name)


@lru_cache(_KNOWN)
def _check_once(name: str) -> None:
    if not _USER.fullmatch(name) or is_device_name(name):
        raise MessageError(f"not a user name: {name[:40]!r}")


def check_file_id(file_id: str) -> None:
    """Raise `MessageError` unless `file_id` is 32 lower-case hex digits."""
    if not _FILE_ID.fullmatch(file_id):
        raise MessageError("a file id is not 32 hex digits")


@lru_cache(_KNOWN_FILES)
def check_file_name(name: str) -> None:
    """Raise `MessageError` unless `name` is a file name of ours.

    Relative, parts separated by ``/``, NFC, at most 1,024 bytes of UTF-8, no part empty, ``.`` or
    ``..``, no control character (NUL, C0, DEL, C1, line and paragraph separators), no backslash.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError as exc:
        raise MessageError("a file name is not valid Unicode") from exc
    if not 0 < size <= MAX_FILE_NAME:
        raise MessageError(f"a file name of {size} bytes; 1 to {MAX_FILE_NAME} are allowed")
    if not _NO_PARTS.isdisjoint(name.split("/")):
        raise MessageError("a file name has an empty, '.' or '..' part, or is absolute")
    if not _FORBIDDEN.isdisjoint(name):
        raise MessageError("a file name holds a control character or a backslash")
    if not unicodedata.is_normalized("NFC", name):
        raise MessageError("a file name is not in Unicode form NFC")
