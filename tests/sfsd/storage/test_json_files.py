"""The JSON files: each has one canonical form, and everything else is damaged."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.values import changed
from protocol.records.records import DELETE, PURGE, PUT, FileRecord, Statement, record_hash
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from sfsd.errors import DamagedError
from sfsd.storage.json_files import (
    Sidecar,
    StoredAccount,
    StoredStatement,
    cached_record,
    encode_statements,
    parse_account,
    parse_sidecar,
    parse_sidecar_lenient,
    parse_statements,
)
from tests.sfsd.builders import SERVER_ID, file_id

F = file_id(0xAB << 120)
HASH = bytes(range(32))


def record(op: str, **changes: object) -> FileRecord:
    fields: dict[str, object] = {
        "server": SERVER_ID,
        "owner": "ada",
        "actor": "ada",
        "generation": 1,
        "file_id": F,
        "rev": 1,
        "op": op,
        "prev": b"",
        "seen": (0, bytes(32)),
        "created": 1,
        "readers": (),
        "current": 1,
        "content": b"" if op in (PUT, DELETE) else HASH,
    }
    return FileRecord(**(fields | changes))  # type: ignore[arg-type]


CONTENT = record(
    PUT,
    content_id=bytes(16),
    version=1,
    ciphertext_size=56,
    segments_root=HASH,
    dek_commit=HASH,
    metadata_sha256=HASH,
)
TOMBSTONE = record(DELETE, rev=2, prev=record_hash(CONTENT.encode()), current=0)


def signed(item: FileRecord, *generations: int) -> SignedRecord:
    signatures = tuple(GenerationSignature(n, bytes([n]) * 64) for n in generations or (1,))
    return SignedRecord(item.encode(), signatures)


SIDECAR = Sidecar(
    seq=7,
    content=signed(CONTENT),
    head=None,
    metadata=b"sealed",
    wraps=(Wrap("ada", HASH, "x25519", b"w" * 156), Wrap("bob", HASH[::-1], "xwing", b"v" * 1244)),
    leaves=HASH,
)

wraps = st.builds(
    Wrap,
    st.sampled_from(["ada", "bob", "eve"]),
    st.binary(min_size=32, max_size=32),
    st.sampled_from(["xwing", "x25519", "rsa4096"]),
    st.binary(max_size=64),
)
sidecars = st.builds(
    changed,
    st.sampled_from([SIDECAR, changed(SIDECAR, head=signed(TOMBSTONE, 1, 2))]),
    seq=st.integers(0, 2**53),
    metadata=st.none() | st.binary(max_size=64),
    wraps=st.lists(wraps, max_size=4, unique_by=lambda wrap: wrap.key_id).map(tuple),
    leaves=st.none() | st.binary(max_size=64),
)


@given(sidecars)
def test_a_sidecar_round_trips(sidecar: Sidecar) -> None:
    assert parse_sidecar("p", sidecar.encode(sidecar.seq)) == sidecar


@given(sidecars)
def test_the_lenient_parser_agrees_on_valid_sidecars(sidecar: Sidecar) -> None:
    raw = sidecar.encode(sidecar.seq)
    found = parse_sidecar_lenient("p", raw)
    assert found == parse_sidecar("p", raw)
    assert found.content_record == CONTENT
    assert found.head_record == (CONTENT if found.head is None else TOMBSTONE)


@pytest.mark.parametrize("body", [b"", b"no record", TOMBSTONE.encode() + b"x"])
def test_a_sidecar_with_malformed_records_is_damaged(body: bytes) -> None:
    bad = SignedRecord(body, SIDECAR.content.signatures)
    for sidecar in (changed(SIDECAR, content=bad), changed(SIDECAR, head=bad)):
        with pytest.raises(DamagedError):
            parse_sidecar("p", sidecar.encode(7))


def test_a_sidecar_that_no_reply_can_show_is_damaged() -> None:
    for wrong in (changed(SIDECAR, seq=2**53 + 1), changed(SIDECAR, metadata=bytes(4097))):
        with pytest.raises(DamagedError):
            parse_sidecar("p", wrong.encode(wrong.seq))


@given(sidecars)
def test_a_sidecar_equals_the_json_encoders_output(sidecar: Sidecar) -> None:
    raw = sidecar.encode(sidecar.seq)
    assert json.dumps(json.loads(raw), separators=(",", ":")).encode() == raw


@given(sidecars, st.data())
def test_only_the_canonical_bytes_are_accepted(sidecar: Sidecar, data: st.DataObject) -> None:
    raw = sidecar.encode(sidecar.seq)
    position = data.draw(st.integers(0, len(raw) - 1))
    changes = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[position]))
    try:
        found = parse_sidecar("p", raw[:position] + bytes([changes]) + raw[position + 1 :])
    except DamagedError:
        return
    assert found != sidecar


def test_a_sidecar_has_the_documented_keys_in_order() -> None:
    value = json.loads(SIDECAR.encode(8))
    assert list(value) == ["seq", "record", "signatures", "head", "metadata", "wraps", "segments"]
    assert value["seq"] == 8
    assert list(value["signatures"]) == ["1"]
    assert list(value["wraps"]) == [HASH.hex(), HASH[::-1].hex()]
    assert list(value["wraps"][HASH.hex()]) == ["user", "alg", "wrap"]


ACCOUNT = StoredAccount(3, HASH, 1_800_000_000, None, disabled=False, quota=0, forced=None)
STATEMENT = Statement(
    server=SERVER_ID,
    user="ada",
    kind="user",
    n=1,
    generation=1,
    oldest=1,
    sign_pub=HASH,
    wrap_alg="x25519",
    wrap_pub=HASH,
    devices=(),
    recovery=None,
    custodians=(),
    writers=(),
    voids=(),
    bundle_sha256=HASH,
    created=1,
    due=2,
    expires=3,
    prev=b"",
    reason="enrol",
    tag_commit=bytes(32),
)
LINK = StoredStatement(STATEMENT.encode(), (bytes(64),), 5, STATEMENT)


@pytest.mark.parametrize(
    "account",
    [
        ACCOUNT,
        changed(ACCOUNT, used_by=HASH, tag_key=bytes(32), disabled=True, quota=2**40),
        changed(ACCOUNT, token_sha256=None, forced="key stolen"),
        changed(ACCOUNT, blocked=("bob", "carol")),
    ],
)
def test_an_account_round_trips(account: StoredAccount) -> None:
    assert parse_account("p", account.encode(account.seq)) == account


@pytest.mark.parametrize(("used_by", "tag_key"), [(HASH, None), (None, HASH), (HASH, HASH[1:])])
def test_an_account_has_a_tag_key_from_its_enrolment_on(
    used_by: bytes | None, tag_key: bytes | None
) -> None:
    with pytest.raises(DamagedError):
        parse_account("p", changed(ACCOUNT, used_by=used_by, tag_key=tag_key).encode(3))


def test_a_tag_key_is_not_shown() -> None:
    key = bytes(reversed(HASH))
    shown = repr(changed(ACCOUNT, tag_key=key))
    assert key.hex() not in shown
    assert repr(key) not in shown


def test_a_chain_round_trips() -> None:
    second = changed(STATEMENT, n=2, prev=record_hash(LINK.body), reason="device")
    links = (LINK, StoredStatement(second.encode(), (bytes(64), bytes(64)), 9, second))
    assert parse_statements("p", encode_statements(links)) == links


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        ACCOUNT.encode(3) + b"\n",
        ACCOUNT.encode(3).replace(b'"seq":3', b'"seq":-3'),
        ACCOUNT.encode(3).replace(b'"seq":3', b'"seq":3.0'),
        ACCOUNT.encode(3).replace(b'"seq":3', b'"seq":true'),
        ACCOUNT.encode(3).replace(b"false", b"0"),
        ACCOUNT.encode(3).replace(b"null}", b"7}"),
        ACCOUNT.encode(3).replace(b"null}", b'null,"more":1}'),
        ACCOUNT.encode(3).replace(b"null}", b'null,"blocked":[]}'),
        ACCOUNT.encode(3).replace(b"null}", b'null,"blocked":"bob"}'),
        ACCOUNT.encode(3).replace(b"null}", b'null,"blocked":["a/b"]}'),
        ACCOUNT.encode(3).replace(b"null}", b'null,"blocked":["bob","ada"]}'),
        ACCOUNT.encode(3).replace(b"null}", b'null,"blocked":["bob","bob"]}'),
        SIDECAR.encode(7),
    ],
)
def test_a_malformed_account_is_damaged(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_account("ada/account.json", raw)


def test_a_chain_counts_from_one_without_a_gap() -> None:
    third = changed(STATEMENT, n=3, prev=HASH)
    for links in ((), (StoredStatement(third.encode(), (), 1, third),), (LINK, LINK)):
        with pytest.raises(DamagedError):
            parse_statements("p", encode_statements(links))


def test_a_view_has_only_the_requesters_wraps() -> None:
    view = SIDECAR.view("bob", SIDECAR.last, 9)
    assert (view.wraps, view.head, view.metadata) == (SIDECAR.wraps[1:], None, b"sealed")
    assert SIDECAR.view("eve", SIDECAR.last, 9).wraps == ()
    head = signed(TOMBSTONE)
    assert SIDECAR.view("ada", head, 9).head == head
    purged = changed(SIDECAR, metadata=None, wraps=())
    assert purged.view("ada", head, 9).metadata == b""


def test_few_long_records_are_cached() -> None:
    """16,000 records of unauthenticated clients must not be kept at 32 KiB each, and three times
    that parsed."""
    short = record(PURGE, purged=(1,)).encode()
    assert cached_record(short) is cached_record(short)
    readers = tuple((f"user{number:03}", HASH, 0) for number in range(256))
    first = record(PURGE, purged=(1,), readers=readers).encode()
    kept = cached_record(first)
    for number in range(2, 1000):
        cached_record(record(PURGE, purged=(number,), readers=readers).encode())
    assert cached_record(short) is cached_record(short)
    assert cached_record(first) is not kept
