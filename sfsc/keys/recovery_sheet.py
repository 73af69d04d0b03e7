"""The text that opens an account: which account it is, and its recovery code.

A person prints it, as text or as a QR code of exactly this text, or types it::

    sfs account
    (rows of groups)
    sfs recovery code
    (rows of groups)

The account is in groups (`sfsc.keys.checked_groups`) of

    u8 number of groups ‖ u16be port ‖ u8 n ‖ host[n] ‖ u8 n ‖ user[n] ‖ pin[32] ‖ first[32] ‖ zeros

with as few zeros as complete the last group. pin (the server's id) and first (the hash of the
account's first statement) are whole: half of a hash could be found again by somebody who tries.
"""

from __future__ import annotations

import base64
from typing import Final

from protocol.codec.errors import MessageError
from protocol.records.invitation import AccountLink, parse_account_link
from sfsc.errors import Mistyped, UsageError
from sfsc.keys.checked_groups import (
    CHECK_SIZE,
    check_groups,
    from_groups,
    split_groups,
    to_groups,
    to_rows,
)
from sfsc.keys.recovery_code import GROUPS as CODE_GROUPS
from sfsc.keys.recovery_code import RecoveryCode

MAX_SHEET: Final = 64 * 1024
"""Longest file that is read, in bytes."""
_ACCOUNT: Final = "sfs account"
_CODE: Final = "sfs recovery code"
_ACCOUNT_ROW, _CODE_ROW = 8, 7
"""Groups in a row."""
_STEP: Final = 5
"""Bytes that fill whole groups."""
_LINK: Final = "sfs://"
_FILL: Final = "AAAA"
"""Characters that complete the four of one group for base32."""


def account_text(link: AccountLink) -> str:
    """Return the rows of an account, with newlines between. Raises `UsageError` for a host of more
    than 255 bytes."""
    host, user = link.host.encode(), link.user.encode()
    if len(host) > 255:
        raise UsageError("the host name of the server is too long to print")
    body = b"".join(
        (
            link.port.to_bytes(2),
            *(len(text).to_bytes(1) + text for text in (host, user)),
            link.pin,
            link.first,
        )
    )
    size = 1 + len(body) + CHECK_SIZE
    zeros = -size % _STEP
    groups = (size + zeros) * 8 // 20
    return "\n".join(to_rows(to_groups(bytes((groups,)) + body + bytes(zeros)), _ACCOUNT_ROW))


def parse_account(text: str) -> AccountLink:
    """Parse what `account_text` returns, or an account link sfs://…. Raises `Mistyped`, or
    `UsageError` for another link."""
    if text.lstrip().startswith(_LINK):
        try:
            return parse_account_link(text)
        except MessageError as exc:
            raise UsageError(str(exc), "it is printed with the recovery code") from exc
    groups = split_groups(text)
    data = from_groups(groups, "the account")
    try:
        return _unpack(data, len(groups))
    except (IndexError, ValueError, MessageError) as exc:
        raise UsageError(
            "this is no account", "type the one that `sfsc key recovery` shows"
        ) from exc


def _unpack(data: bytes, groups: int) -> AccountLink:
    """Raises ValueError, IndexError or `MessageError` unless `data` is one account in `groups`
    groups."""
    port, at = int.from_bytes(data[1:3]), 3
    texts = []
    for _ in range(2):
        size = data[at]
        texts.append(data[at + 1 : at + 1 + size].decode("ascii"))
        at += 1 + size
    pin, first, zeros = data[at : at + 32], data[at + 32 : at + 64], data[at + 64 :]
    if data[0] != groups or len(zeros) >= _STEP or any(zeros):
        raise ValueError("another length")
    return AccountLink(texts[0], port, texts[1], pin, first)


def recovery_sheet(account: str, code: str) -> str:
    """Return the text for paper, a file or a QR code: the account (as `Store.link`, or in groups)
    and its recovery code. Raises `UsageError`."""
    rows = to_rows(split_groups(RecoveryCode.parse(code).text), _CODE_ROW)
    return "\n".join((_ACCOUNT, account_text(parse_account(account)), _CODE, *rows, ""))


def read_recovery_sheet(text: str) -> tuple[str, str]:
    """Return (account, code) of a text that contains what `recovery_sheet` returns; other lines are
    ignored, and each part ends at an empty line. Both are checked. Raises `UsageError`, and
    `Mistyped`."""
    found: dict[str, list[str]] = {}
    section = None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.lower() in (_ACCOUNT, _CODE):
            section = found.setdefault(stripped.lower(), [])
        elif not stripped:
            section = None
        elif section is not None:
            section.append(stripped)
    if not (found.get(_ACCOUNT) and found.get(_CODE)):
        cause = "this file does not have an account and a recovery code"
        raise UsageError(cause, "use what `sfsc key recovery` shows, or its --output FILE")
    account, code = " ".join(found[_ACCOUNT]), " ".join(found[_CODE])
    parse_account(account)
    return account, RecoveryCode.parse(code).text


class TypedRows:
    """Rows of an account or of a recovery code (`is_code`), as a user types them."""

    def __init__(self, *, is_code: bool) -> None:
        self._what = "the recovery code" if is_code else "the account"
        self._is_code = is_code
        self._groups: list[str] = []
        self._link = ""

    @property
    def text(self) -> str:
        return self._link or "-".join(self._groups)

    @property
    def missing(self) -> int:
        """Number of groups that are still to be typed; less than 0 if that is not known yet. The
        first byte of an account says how many it has."""
        if self._link:
            return 0
        if self._is_code:
            return CODE_GROUPS - len(self._groups)
        if not self._groups:
            return -1
        return base64.b32decode(self._groups[0][:4] + _FILL)[0] - len(self._groups)

    def add(self, row: str) -> None:
        """Take a row. Raises `Mistyped`, and then the row is to be typed again."""
        if not self._is_code and not self._groups and row.strip().startswith(_LINK):
            self._link = row.strip()
            return
        groups = split_groups(row)
        check_groups(groups, self._what, len(self._groups))
        before, self._groups = self._groups, [*self._groups, *groups]
        if groups and self.missing < 0:
            self._groups = before
            raise Mistyped(f"{self._what} has fewer groups", "type one row at a time, as printed")
