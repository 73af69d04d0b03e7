from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import LogError
from protocol.log import auditlog
from protocol.log.auditlog import GENESIS, KEYS, MAX_LINE, EntryDraft

TIME = "2024-02-29T23:59:59.999Z"
SALT = bytes(range(16))
DRAFT = EntryDraft(
    op="upload",
    actor="alice",
    owner="alice",
    file="0f" * 16,
    version=3,
    session=7,
    stage="5d",
    rec=b"\x81record\xff",
    sigs={"2": b"s" * 64},
    detail={"paths": {"alice/files/0f/x.json": "ab" * 32, "alice/inbox/y": None}, "note": "ü"},
    accounts=("alice",),
)


def encode(draft: EntryDraft = DRAFT, seq: int = 0, prev: bytes = GENESIS) -> tuple[bytes, bytes]:
    accounts = {user: [seq, prev.hex()] for user in draft.accounts}
    detail = {**draft.detail, "accounts": accounts}
    return auditlog.encode(draft, seq=seq, time=TIME, salt=SALT, detail=detail, prev=prev)


def sealed(body: bytes) -> bytes:
    """Return a line with a valid hash; `body` is everything before ``,"hash"``."""
    return body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'


def resealed(change: Callable[[dict[str, Any]], object], line: bytes | None = None) -> bytes:
    value = json.loads(line or encode()[0])
    change(value)
    value.pop("hash", None)
    return sealed(json.dumps(value, separators=(",", ":")).encode()[:-1])


def test_a_known_line() -> None:
    line, digest = encode()
    assert line == (
        b'{"seq":0,"time":"2024-02-29T23:59:59.999Z","op":"upload","actor":"alice",'
        b'"owner":"alice","file":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","version":3,"session":7,'
        b'"stage":"5d","rec":"gXJlY29yZP8=","sigs":{"2":"' + b"c3Nz" * 21 + b'cw=="},'
        b'"salt":"AAECAwQFBgcICQoLDA0ODw==","detail":{"paths":{"alice/files/0f/x.json":"'
        + b"ab" * 32
        + b'","alice/inbox/y":null},"note":"\\u00fc","accounts":{"alice":[0,"'
        + hashlib.sha256(b"sfs/v2/genesis").hexdigest().encode()
        + b'"]}},"prev":"'
        + hashlib.sha256(b"sfs/v2/genesis").hexdigest().encode()
        + b'","hash":"'
        + digest.hex().encode()
        + b'"}'
    )
    # The check as another program would do it.
    body, _, tail = line.rpartition(b',"hash":"')
    assert hashlib.sha256(body).hexdigest() + '"}' == tail.decode()
    assert tuple(json.loads(line)) == KEYS


def test_a_line_parses_to_its_draft() -> None:
    line, digest = encode(seq=4, prev=bytes(32))
    entry = auditlog.parse(line, seq=4)
    for name in ("op", "actor", "owner", "file", "version", "session", "stage", "rec", "sigs"):
        assert getattr(entry, name) == getattr(DRAFT, name)
    assert (entry.seq, entry.time, entry.salt) == (4, TIME, SALT)
    assert (entry.prev, entry.hash) == (bytes(32), digest)
    assert entry.paths == {"alice/files/0f/x.json": bytes.fromhex("ab" * 32), "alice/inbox/y": None}
    assert entry.accounts == {"alice": (4, bytes(32))}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
details = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(
    draft=st.builds(
        EntryDraft,
        op=texts,
        actor=texts,
        owner=st.none() | texts,
        file=st.none() | texts,
        version=st.none() | st.integers(0, 2**40),
        session=st.none() | st.integers(0, 2**40),
        stage=st.none() | texts,
        rec=st.none() | st.binary(max_size=100),
        sigs=st.dictionaries(texts, st.binary(max_size=64), max_size=3),
    ),
    detail=st.fixed_dictionaries(
        {},
        optional={
            "paths": st.dictionaries(texts, st.none() | st.just("ab" * 32), max_size=3),
            "note": details,
            "accounts": st.dictionaries(
                texts, st.tuples(st.integers(0, 2**40), st.just("cd" * 32)).map(list), max_size=3
            ),
            "ü": details,
        },
    ),
    seq=st.integers(0, 2**40),
    salt=st.binary(min_size=16, max_size=16),
    prev=st.binary(min_size=32, max_size=32),
)
def test_every_draft_makes_one_line_that_parses_back(
    draft: EntryDraft, detail: dict[str, Any], seq: int, salt: bytes, prev: bytes
) -> None:
    line, digest = auditlog.encode(draft, seq=seq, time=TIME, salt=salt, detail=detail, prev=prev)
    assert b"\n" not in line
    line.decode("ascii")
    assert line == json.dumps(json.loads(line), separators=(",", ":")).encode()
    entry = auditlog.parse(line)
    assert entry.detail == detail
    assert (entry.seq, entry.salt, entry.prev, entry.hash) == (seq, salt, prev, digest)
    assert (entry.rec, entry.sigs, entry.actor) == (draft.rec, draft.sigs, draft.actor)


def test_every_flipped_bit_is_refused() -> None:
    line, _ = encode()
    for at in range(len(line)):
        for bit in (1, 0x20, 0x80):
            flipped = line[:at] + bytes([line[at] ^ bit]) + line[at + 1 :]
            with pytest.raises(LogError) as caught:
                auditlog.parse(flipped, seq=0)
            assert caught.value.seq == 0


def test_every_cut_is_refused() -> None:
    line, _ = encode()
    for at in range(len(line)):
        for part in (line[:at], line[at + 1 :]):
            with pytest.raises(LogError):
                auditlog.parse(part)
    for extra in (line + b"\n", b" " + line, line + line):
        with pytest.raises(LogError):
            auditlog.parse(extra)


def reorder(value: dict[str, Any]) -> None:
    value["seq"] = value.pop("seq")


@pytest.mark.parametrize(
    "change",
    [
        reorder,
        lambda v: v.pop("stage"),
        lambda v: v.update(extra=1),
        lambda v: v.update(seq=-1),
        lambda v: v.update(seq=True),
        lambda v: v.update(seq="0"),
        lambda v: v.update(seq=1.0),
        lambda v: v.update(seq=[0]),
        lambda v: v.update(op=["upload"]),
        lambda v: v.update(version=[3]),
        lambda v: v.update(version={}),
        lambda v: v.update(sigs={"2": ["c3Nz"]}),
        lambda v: v.update(sigs=[]),
        lambda v: v.update(time="2024-02-29T23:59:59Z"),
        lambda v: v.update(time="2024-02-29T23:59:59.999+00:00"),
        lambda v: v.update(time="2024-02-29T23:59:59.99٣Z"),  # a digit that is not ASCII
        lambda v: v.update(time="2024-02-29T23:59:59.99aZ"),
        lambda v: v.update(time=None),
        lambda v: v.update(time=5),
        lambda v: v.update(time=["2"]),
        lambda v: v.update(op=None),
        lambda v: v.update(actor=3),
        lambda v: v.update(owner=3),
        lambda v: v.update(file=[]),
        lambda v: v.update(version="3"),
        lambda v: v.update(session=False),
        lambda v: v.update(rec="gXJlY29yZP9="),  # stray bits
        lambda v: v.update(rec="gXJl Y29yZP8="),
        lambda v: v.update(rec=5),
        lambda v: v.update(sigs=None),
        lambda v: v.update(sigs={"2": "?"}),
        lambda v: v.update(salt=base64.b64encode(bytes(15)).decode()),
        lambda v: v.update(salt=None),
        lambda v: v.update(detail=[]),
        lambda v: v.update(detail={"x": 1.5}),
        lambda v: v.update(detail={"x": float("nan")}),
        lambda v: v.update(detail={"paths": {"a": "ab"}}),
        lambda v: v.update(detail={"paths": ["a"]}),
        lambda v: v.update(detail={"paths": {"a": 1}}),
        lambda v: v.update(detail={"paths": "a"}),
        lambda v: v.update(detail={"accounts": {"a": [1]}}),
        lambda v: v.update(detail={"accounts": {"a": "ab"}}),
        lambda v: v.update(detail={"accounts": {"a": [[1], "ab" * 32]}}),
        lambda v: v.update(detail={"accounts": {"a": [1, 2]}}),
        lambda v: v.update(detail={"accounts": {"a": ["1", "ab" * 32]}}),
        lambda v: v.update(prev="AB" * 32),
        lambda v: v.update(prev="ab" * 31),
        lambda v: v.update(prev="ab" * 31 + "g0"),
        lambda v: v.update(prev=["a"] * 64),
        lambda v: v.update(prev=None),
    ],
)
def test_a_malformed_line_with_a_valid_hash_is_refused(
    change: Callable[[dict[str, Any]], object],
) -> None:
    auditlog.parse(resealed(lambda value: None))
    with pytest.raises(LogError):
        auditlog.parse(resealed(change))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":0', b'"seq": 0'),
        (b'"seq":0', b'"seq":00'),
        (b'"op":"upload"', b'"op":"\\u0075pload"'),
        (b'"op":"upload"', b'"op":"upload","op":"upload"'),
        (b'"note":"\\u00fc"', b'"note":"\\u00FC"'),
        (b'"note":"\\u00fc"', '"note":"ü"'.encode()),
        (b'"note":"\\u00fc"', b'"note":"\xff"'),
        (b'"note":"\\u00fc"', b'"note":1,"note":2'),
        (b'"note":"\\u00fc"', b'"note":NaN'),
        (b'"note":"\\u00fc"', b'"note":1e5'),
        (b'"note":"\\u00fc"', b'"note":' + b"9" * 5000),
        (b'"note":"\\u00fc"', b'"note":' + b"[" * 30_000 + b"]" * 30_000),
        (b'{"seq"', b'[{"seq"'),
    ],
)
def test_non_canonical_lines_are_refused(old: bytes, new: bytes) -> None:
    body = encode()[0].rpartition(b',"hash":"')[0]
    assert body.count(old) == 1
    auditlog.parse(sealed(body))
    with pytest.raises(LogError):
        auditlog.parse(sealed(body.replace(old, new)))


def test_a_line_is_at_most_64_kib() -> None:
    room = MAX_LINE - len(encode(replace(DRAFT, detail={"note": ""}))[0])
    line, _ = encode(replace(DRAFT, detail={"note": "x" * room}))
    assert len(line) == MAX_LINE
    auditlog.parse(line)
    too_long = replace(DRAFT, detail={"note": "x" * (room + 1)})
    with pytest.raises(LogError) as caught:
        encode(too_long, seq=9)
    assert caught.value.seq == 9
    with pytest.raises(LogError):
        auditlog.parse(resealed(lambda v: v["detail"].update(note="x" * (room + 1)), line))


def chain(count: int) -> list[bytes]:
    lines: list[bytes] = []
    prev = GENESIS
    for seq in range(count):
        line, prev = encode(seq=seq, prev=prev)
        lines.append(line)
    return lines


def first_wrong(lines: list[bytes]) -> int:
    with pytest.raises(LogError) as caught:
        list(auditlog.verify_chain(lines))
    return caught.value.seq


def test_a_chain_verifies_from_any_entry() -> None:
    lines = chain(8)
    entries = list(auditlog.verify_chain(lines))
    assert [entry.seq for entry in entries] == list(range(8))
    tail = auditlog.verify_chain(lines[5:], first=5, prev=entries[4].hash)
    assert list(tail) == entries[5:]
    assert list(auditlog.verify_chain([])) == []


@pytest.mark.parametrize("at", range(8))
def test_the_first_wrong_entry_is_named(at: int) -> None:
    lines = chain(9)
    middle = len(lines[at]) // 2
    flipped = lines[at][:middle] + bytes([lines[at][middle] ^ 1]) + lines[at][middle + 1 :]
    assert first_wrong([*lines[:at], flipped, *lines[at + 1 :]]) == at
    assert first_wrong(lines[:at] + lines[at + 1 :]) == at
    assert first_wrong([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]) == at
    assert first_wrong([*lines[: at + 1], *lines[at:]]) == at + 1
    # The entry after one that was rewritten with its hash does not follow it.
    rewritten = resealed(lambda value: value.update(actor="mallory"), lines[at])
    assert first_wrong([*lines[:at], rewritten, *lines[at + 1 :]]) == at + 1


def test_the_first_entry_follows_genesis() -> None:
    line, _ = encode(prev=bytes(32))
    assert first_wrong([line]) == 0


def test_an_entry_with_another_seq_is_named() -> None:
    lines = chain(3)
    with pytest.raises(LogError) as caught:
        auditlog.parse(lines[1], seq=2)
    assert caught.value.seq == 2
    assert auditlog.parse(lines[1]).seq == 1


TOMBSTONES: dict[str, dict[str, Any]] = {
    "no signatures": {"tombstone": "YQ=="},
    "signatures that are none": {"tombstone": "YQ==", "tombstone_sigs": []},
    "not base64": {"tombstone": "Y", "tombstone_sigs": {}},
    "stray bits": {"tombstone": "YR==", "tombstone_sigs": {}},
    "not text": {"tombstone": 1, "tombstone_sigs": {}},
    "a signature not text": {"tombstone": "YQ==", "tombstone_sigs": {"00": 1}},
}


@pytest.mark.parametrize("wrong", TOMBSTONES)
def test_a_malformed_tombstone_is_refused(wrong: str) -> None:
    line, _ = encode(replace(DRAFT, detail=TOMBSTONES[wrong]))
    with pytest.raises(LogError):
        auditlog.parse(line)


def test_the_records_of_an_entry() -> None:
    own = (b"\x81record\xff", {"2": b"s" * 64})
    both = {"tombstone": "YQ==", "tombstone_sigs": {"00": "Yg=="}}
    for draft, records in (
        (DRAFT, (own,)),
        (replace(DRAFT, detail=both), (own, (b"a", {"00": b"b"}))),
        (EntryDraft("login", "alice"), ()),
    ):
        assert auditlog.parse(encode(draft)[0]).records == records


@pytest.mark.parametrize("spelled", [str.upper, lambda text: " ".join([text[:2], text[2:]])])
@pytest.mark.parametrize("where", ["paths", "accounts"])
def test_hashes_in_the_detail_are_canonical(where: str, spelled: Callable[[str], str]) -> None:
    """Otherwise data could be hidden in the spelling."""
    text = "ab" * 32
    for known in (text, spelled(text)):
        detail = {where: {"ada": known if where == "paths" else [0, known]}}
        line, _ = auditlog.encode(
            EntryDraft("test", "ada"), seq=0, time=TIME, salt=bytes(16), detail=detail, prev=GENESIS
        )
        if known == text:
            auditlog.parse(line)
        else:
            with pytest.raises(LogError):
                auditlog.parse(line)
