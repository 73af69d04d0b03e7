"""Invitations: round trips, and refusal of any other text."""

from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import MessageError
from protocol.records.invitation import (
    Invitation,
    format_address,
    parse_address,
    parse_invitation,
)

PIN = bytes(range(32))
TOKEN = b"\xff" * 32
GOOD = f"sfs://files.example:7373/alice?pin={PIN.hex()}&token={'_' * 42}8"
LABEL = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=20)
HOSTS = st.lists(LABEL, min_size=1, max_size=4).map(".".join) | st.ip_addresses().map(str)


@given(
    HOSTS,
    st.integers(1, 65535),
    st.from_regex(r"u[a-z0-9_-]{0,30}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_round_trip(host: str, port: int, user: str, pin: bytes, token: bytes) -> None:
    invitation = Invitation(host, port, user, pin, token)
    assert parse_invitation(f" {invitation.to_text()}\n") == invitation
    assert parse_address(invitation.address) == (host, port)


def test_known_text() -> None:
    invitation = Invitation("files.example", 7373, "alice", PIN, TOKEN)
    assert invitation.to_text() == GOOD
    assert invitation.token_sha256 == hashlib.sha256(TOKEN).digest()
    assert Invitation("::1", 1, "bob", PIN, TOKEN).to_text().startswith("sfs://[::1]:1/bob?pin=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https" + GOOD[3:],
        GOOD[:-1],
        GOOD[:-1] + "9",
        GOOD + "&more=1",
        GOOD + "=",
        GOOD + "#x",
        GOOD.replace("alice", "Alice"),
        GOOD.replace("alice", "operator"),
        GOOD.replace("alice", "a/b"),
        GOOD.replace(":7373", ""),
        GOOD.replace(":7373", ":0"),
        GOOD.replace(":7373", ":65536"),
        GOOD.replace(":7373", ":٧"),
        GOOD.replace("files", "root@files"),
        GOOD.replace("files.example", "::1"),
        GOOD.replace("pin=00", "pin="),
        GOOD.replace("pin=", "pin=AA"),
        GOOD.replace("0a0b", "0A0B"),
        GOOD.replace("files", "f" * 1000),
        GOOD.replace("alice", "al\nice"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(MessageError) as caught:
        parse_invitation(text)
    assert "_" * 40 not in str(caught.value)


@given(st.text())
def test_any_text_parses_or_raises_message_error(text: str) -> None:
    try:
        invitation = parse_invitation(text)
    except MessageError:
        return
    assert invitation.to_text() == text.strip()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 20])
def test_a_token_that_was_cut_is_found_before_anything_is_asked(cut: int) -> None:
    with pytest.raises(MessageError):
        parse_invitation(GOOD[:-cut])


def test_repr_omits_the_token() -> None:
    assert "ff" not in repr(Invitation("h", 1, "alice", b"\0" * 32, TOKEN)).lower()


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a:0", ("a", 0)), ("[::]:80", ("::", 80)), ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5))],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert parse_address(text) == parts
    assert format_address(*parts) == text


@pytest.mark.parametrize("text", ["", ":1", "a", "a:", "a:-1", "::1:5", "[a:5", "a b:1", "é:1"])
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(MessageError):
        parse_address(text)
