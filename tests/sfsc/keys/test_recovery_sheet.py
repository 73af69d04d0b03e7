"""Account and recovery code as one text, and typed row by row."""

from __future__ import annotations

import io

import pytest
import segno
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.records.invitation import AccountLink
from sfsc.cli.terminal import qr
from sfsc.errors import Mistyped, UsageError
from sfsc.keys.recovery_code import RecoveryCode
from sfsc.keys.recovery_sheet import (
    TypedRows,
    account_text,
    parse_account,
    read_recovery_sheet,
    recovery_sheet,
)

LINK = AccountLink("files.example.lan", 7373, "alice", b"p" * 32, bytes(range(32)))
CODE = RecoveryCode(bytes(range(100, 132))).text
SHEET = recovery_sheet(LINK.to_text(), CODE)
hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,60}", fullmatch=True) | st.just("fe80::1%eth0")
users = st.from_regex(r"[a-z][a-z0-9]{0,31}", fullmatch=True)
hashes = st.binary(min_size=32, max_size=32)


@given(hosts, st.integers(1, 65535), users, hashes, hashes)
@example("h" * 255, 65535, "u" * 32, bytes(32), bytes(32))
def test_an_account_survives_paper(
    host: str, port: int, user: str, pin: bytes, first: bytes
) -> None:
    link = AccountLink(host, port, user, pin, first)
    text = account_text(link)
    assert parse_account(text) == link
    assert parse_account(text.lower().replace("\n", " ")) == link
    assert parse_account(link.to_text()) == link
    rows = TypedRows(is_code=False)
    for row in text.split("\n"):
        assert rows.missing
        rows.add(row)
    assert not rows.missing
    assert parse_account(rows.text) == link


def test_an_account_that_was_made_otherwise_is_refused() -> None:
    """Right groups of other bytes: a wrong length, a number, an address, bytes that are no text."""
    from sfsc.keys.checked_groups import to_groups

    good = b"\x26\x1c\xcd\x11files.example.lan\x05alice" + LINK.pin + LINK.first
    zeros = bytes(-(len(good) + 3) % 5)
    assert parse_account("-".join(to_groups(good + zeros))) == LINK
    for wrong in (
        good + zeros + bytes(5),
        good + b"\1",
        b"\x27" + good[1:] + zeros,
        good.replace(b"\x1c\xcd", b"\0\0") + zeros,
        good.replace(b"alice", b"AL CE") + zeros,
        good.replace(b"alice", b"al\xffce") + zeros,
        good.replace(b"\x05alice", b"\xffalice") + zeros,
        bytes(2),
    ):
        with pytest.raises(UsageError) as caught:
            parse_account("-".join(to_groups(wrong)))
        assert not isinstance(caught.value, Mistyped), wrong


def test_a_sheet_is_read_back_with_what_surrounds_it() -> None:
    account, code = read_recovery_sheet(SHEET)
    assert parse_account(account) == LINK
    assert code == CODE
    lines = SHEET.splitlines()
    assert [lines[0], lines[-3]] == ["sfs account", "sfs recovery code"]
    assert max(map(len, lines)) == 8 * 6 - 1
    changed = (
        "Kept in the safe.\n\n" + SHEET.upper().replace("\n", "\r\n   ") + "\n\nPrinted 2026\n"
    )
    assert read_recovery_sheet(changed) == (account, code)
    assert recovery_sheet(account, code) == SHEET  # from either form of an account


def test_mistakes_in_a_sheet_are_told_apart() -> None:
    account, code = SHEET.split("sfs recovery code")
    for text in ("", account, "sfs recovery code" + code, "sfs account\n\n" + SHEET[12:]):
        with pytest.raises(UsageError) as caught:
            read_recovery_sheet(text)
        assert not isinstance(caught.value, Mistyped)
    place = SHEET.index("-") + 1  # group 2 of the account
    wrong = "B" if SHEET[place] == "A" else "A"
    with pytest.raises(Mistyped, match=r"the account is mistyped in group 2$") as mistyped:
        read_recovery_sheet(SHEET[:place] + wrong + SHEET[place + 1 :])
    assert mistyped.value.groups == (2,)
    with pytest.raises(Mistyped, match=r"the recovery code is mistyped in group 14$"):
        read_recovery_sheet(SHEET[:-2] + ("B" if SHEET[-2] == "A" else "A"))


def test_rows_are_checked_one_by_one() -> None:
    first, second = SHEET.splitlines()[-2:]
    rows = TypedRows(is_code=True)
    assert rows.missing == 14
    rows.add(first)
    assert rows.missing == 7
    with pytest.raises(Mistyped) as caught:
        rows.add(second[:-1] + ("B" if second[-1] == "A" else "A"))
    assert caught.value.groups == (14,)
    with pytest.raises(Mistyped):
        rows.add(f"{second} {first}")  # more than there are
    assert rows.missing == 7
    rows.add(second)
    assert (rows.missing, rows.text) == (0, CODE)


def test_the_qr_code_is_of_exactly_the_text_and_fits_a_terminal() -> None:
    shown = qr(SHEET)
    drawn = io.StringIO()
    segno.make(SHEET, error="l", micro=False).terminal(drawn, compact=True)
    assert shown == drawn.getvalue()
    assert len(shown.splitlines()[1].replace("\x1b[7m", "").replace("\x1b[0m", "")) < 80
