"""User names, file ids and file names: tables of valid and invalid ones, and arbitrary text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import MessageError
from protocol.codec.names import (
    MAX_FILE_NAME,
    check_file_id,
    check_file_name,
    check_principal,
    check_user_name,
    fits_windows,
    is_device_name,
)


@pytest.mark.parametrize("name", ["a", "0", "alice", "a-b_c", "9" * 32, "con1", "com", "console"])
def test_valid_user_names(name: str) -> None:
    check_user_name(name)
    check_principal(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a" * 33,
        "Alice",
        "-a",
        "_a",
        "a b",
        "a.b",
        "a/b",
        "..",
        "a\n",
        "a\0",
        "é",
        "а",  # Cyrillic
        "１",
        "con",
        "prn",
        "aux",
        "nul",
        "com1",
        "lpt9",
        "com0",
    ],
)
def test_invalid_user_names(name: str) -> None:
    with pytest.raises(MessageError):
        check_user_name(name)
    with pytest.raises(MessageError):
        check_principal(name)


@given(st.text("azAZ09-_. \n\0é", max_size=34) | st.text("a0-_", min_size=30, max_size=34))
def test_user_names_match_the_regular_expression(name: str) -> None:
    expected = re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", name) is not None
    assert accepts(check_principal, name) is expected


def accepts(check: Callable[[str], None], text: str) -> bool:
    try:
        check(text)
    except MessageError:
        return False
    return True


@given(st.text("059afgA\n", min_size=30, max_size=34))
def test_file_ids_match_the_regular_expression(text: str) -> None:
    assert accepts(check_file_id, text) is (re.fullmatch("[0-9a-f]{32}", text) is not None)


@pytest.mark.parametrize("name", ["operator", "server"])
def test_reserved_principals_are_not_user_names(name: str) -> None:
    check_principal(name)
    with pytest.raises(MessageError):
        check_user_name(name)


@pytest.mark.parametrize(
    "file_id", ["", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "g", "0" * 32 + "\n"]
)
def test_invalid_file_ids(file_id: str) -> None:
    check_file_id("0123456789abcdef" * 2)
    with pytest.raises(MessageError):
        check_file_id(file_id)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "docs/report.pdf",
        "a/b/c/d/e",
        ".hidden",
        "...",
        "..a/b..",
        "with space ",
        "-rf",
        "~",
        "C:",
        "CON",
        "naïve/é",
        "日本語/ファイル",
        "🗂️/x",
        "a" * MAX_FILE_NAME,
        "é" * (MAX_FILE_NAME // 2),
    ],
)
def test_valid_file_names(name: str) -> None:
    check_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "a/",
        "a//b",
        ".",
        "..",
        "../a",
        "a/..",
        "a/../b",
        "./a",
        "a/./b",
        "a\\b",
        "\\\\server\\share",
        "a\0b",
        "a\nb",
        "a\x1b[2Jb",
        "a\x7f",
        "a\x85b",
        "a\x9bb",
        "a\u2028b",
        "a\u2029b",
        "e\u0301",  # é, decomposed
        "\u212b",  # the Angstrom sign, whose NFC is another character
        "\ud800",
        "a" * (MAX_FILE_NAME + 1),
        "é" * (MAX_FILE_NAME // 2) + "a",
    ],
)
def test_invalid_file_names(name: str) -> None:
    with pytest.raises(MessageError):
        check_file_name(name)


@given(st.text(max_size=40) | st.text("./\\a\0é", max_size=12))
def test_any_text_is_valid_or_raises_message_error(name: str) -> None:
    try:
        check_file_name(name)
    except MessageError:
        return
    parts = name.split("/")
    assert all(parts)
    assert not {".", ".."} & set(parts)
    assert unicodedata.normalize("NFC", name) == name
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\\]", name)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("con", True),
        ("CON", True),
        ("con.txt", True),
        ("Nul .tar.gz", True),
        ("com1", True),
        ("COM¹", True),
        ("lpt²", True),
        ("CONIN$", True),
        ("conout$.x", True),
        ("con_", False),
        ("com", False),
        ("com10", False),
        ("xcon", False),
        ("a.con", False),
        ("", False),
    ],
)
def test_device_names(part: str, expected: bool) -> None:
    assert is_device_name(part) is expected


@pytest.mark.parametrize(
    ("part", "expected"),
    [("a", True), ("a.b c", True), (" a", True), ("a.", False), ("a ", False), ("a:b", False)]
    + [(f"a{char}b", False) for char in '<>"|?*']
    + [("con.txt", False)],
)
def test_names_that_windows_can_hold(part: str, expected: bool) -> None:
    assert fits_windows(part) is expected


def test_file_names_refuse_exactly_the_unicode_control_characters() -> None:
    def refused(char: str) -> bool:
        try:
            check_file_name(f"a{char}")
        except MessageError as exc:
            return "control character" in str(exc)
        return False

    characters = [chr(code) for code in range(0x3000) if chr(code) != "/"]
    controls = {char for char in characters if unicodedata.category(char) in ("Cc", "Zl", "Zp")}
    assert {char for char in characters if refused(char)} == controls | {"\\"}
