from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.log.auditlog import TAG_SIZE
from protocol.log.tags import account_tag, check_tag_key, identity_tag, tag_commit

KEY = bytes(range(32))
SERVER = bytes(range(32, 64))
FIRST = bytes(range(64, 96))


def test_known_answers() -> None:
    """Written out as another program would compute them."""
    assert tag_commit(KEY) == hashlib.sha256(b"sfs/v2/tag-commit\0" + KEY).digest()
    for user, count in (("ada", 0), ("ada", 1), ("b" * 32, 2**64 - 1)):
        body = b"sfs/v2/tag\0" + SERVER + bytes([len(user)]) + user.encode()
        body += struct.pack(">Q", count)
        expected = hmac.new(KEY, body, hashlib.sha256).digest()[:16]
        assert account_tag(KEY, SERVER, user, count) == expected
    body = b"sfs/v2/identity-tag\0" + SERVER + FIRST + struct.pack(">I", 7)
    assert identity_tag(SERVER, FIRST, 7) == hashlib.sha256(body).digest()[:16]


def test_fixed_answers() -> None:
    commit = "fa154becb6973ed35174752b87ec50fe33a1141d223559984b9858d7807d5488"
    assert tag_commit(KEY).hex() == commit
    assert account_tag(KEY, SERVER, "ada", 0).hex() == "3e4bd9b82f0cb2935f9bb428193e136e"
    assert account_tag(KEY, SERVER, "ada", 258).hex() == "fd43499c6707ad8735a76c13fd6ca038"
    assert identity_tag(SERVER, FIRST, 1).hex() == "9ca43c00d0d05cc9010d6609dc413810"


users = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True)
hashes = st.binary(min_size=32, max_size=32)
entries = st.tuples(hashes, hashes, users, st.integers(0, 2**64 - 1))
statements = st.tuples(hashes, hashes, st.integers(1, 2**31))


@given(st.lists(entries, unique=True, max_size=20), st.lists(statements, unique=True, max_size=20))
def test_no_two_entries_have_the_same_tag(
    owned: list[tuple[bytes, bytes, str, int]], identities: list[tuple[bytes, bytes, int]]
) -> None:
    tags = [account_tag(*one) for one in owned] + [identity_tag(*one) for one in identities]
    assert len(set(tags)) == len(tags)
    assert {len(tag) for tag in tags} <= {TAG_SIZE}


@given(hashes, hashes)
def test_only_the_committed_key_matches(key: bytes, other: bytes) -> None:
    assert check_tag_key(key, tag_commit(key))
    assert check_tag_key(other, tag_commit(key)) == (other == key)


@pytest.mark.parametrize("key", [b"", KEY[:31], KEY + b"\0"])
def test_a_key_of_another_length_never_matches(key: bytes) -> None:
    assert not check_tag_key(key, tag_commit(key))


@pytest.mark.parametrize("count", [-1, 2**64])
def test_a_count_out_of_range_has_no_tag(count: int) -> None:
    with pytest.raises(OverflowError):
        account_tag(KEY, SERVER, "ada", count)
