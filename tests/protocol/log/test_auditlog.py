from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec.errors import LogError
from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import GENESIS, KEYS, MAX_LINE, EntryDraft

TIME = "2024-02-29T23:59:59.999Z"
SALT = bytes(range(16))
TAGS = (b"\xff" * 16, bytes(16), bytes(15) + b"\1")
"""In another order than in the line."""
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
    return auditlog.encode(
        draft,
        seq=seq,
        time=TIME,
        salt=SALT,
        detail=draft.detail,
        accounts=dict.fromkeys(draft.accounts, seq),
        tags=TAGS,
        prev=prev,
    )


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
        b'{"v":2,"seq":0,"time":"2024-02-29T23:59:59.999Z","op":"upload","actor":"alice",'
        b'"owner":"alice","file":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","version":3,"session":7,'
        b'"stage":"5d","rec":"gXJlY29yZP8=","sigs":{"2":"' + b"c3Nz" * 21 + b'cw=="},'
        b'"salt":"AAECAwQFBgcICQoLDA0ODw==","detail":{"paths":{"alice/files/0f/x.json":"'
        + b"ab" * 32
        + b'","alice/inbox/y":null},"note":"\\u00fc"},"accounts":{"alice":0},'
        + b'"tags":["AAAAAAAAAAAAAAAAAAAAAA==","AAAAAAAAAAAAAAAAAAAAAQ==",'
        + b'"/////////////////////w=="],"prev":"'
        + hashlib.sha256(b"sfs/v2/genesis").hexdigest().encode()
        + b'","hash":"'
        + digest.hex().encode()
        + b'"}'
    )
    # The check as another program would do it.
    body, _, tail = line.rpartition(b',"hash":"')
    assert hashlib.sha256(body).hexdigest() + '"}' == tail.decode()
    assert tuple(json.loads(line)) == KEYS
    leaf = digest + bytes(16) + bytes(15) + b"\1" + b"\xff" * 16
    assert auditlog.leaf_data(line) == auditlog.parse(line).leaf_data == leaf


def test_a_line_parses_to_its_draft() -> None:
    line, digest = encode(seq=4, prev=bytes(32))
    entry = auditlog.parse(line, seq=4)
    for name in ("op", "actor", "owner", "file", "version", "session", "stage", "rec", "sigs"):
        assert getattr(entry, name) == getattr(DRAFT, name)
    assert (entry.seq, entry.time, entry.salt) == (4, TIME, SALT)
    assert (entry.prev, entry.hash) == (bytes(32), digest)
    assert entry.paths == {"alice/files/0f/x.json": bytes.fromhex("ab" * 32), "alice/inbox/y": None}
    assert entry.accounts == {"alice": 4}
    assert entry.tags == tuple(sorted(TAGS))
    assert entry.extra == {}


def test_a_known_line_of_an_atomic_set() -> None:
    line, _ = encode(changed(DRAFT, in_set=(2, 3)), seq=57)
    plain, _ = encode(seq=57)
    before, behind = line.split(b',"set":[55,3],"accounts":{"alice":57},"tags":[')
    assert plain.startswith(before + b',"accounts":{"alice":57},"tags":[')
    assert before.endswith(b'"note":"\\u00fc"}')
    assert len(behind) == len(plain) - len(before) - len(b',"accounts":{"alice":57},"tags":[')
    entry = auditlog.parse(line, seq=57)
    assert (entry.in_set, entry.extra) == ((55, 3), {})
    assert auditlog.set_of(line) == (55, 3)
    assert auditlog.parse(plain).in_set is auditlog.set_of(plain) is None
    assert auditlog.leaf_data(line) == entry.leaf_data


def test_only_the_key_before_the_accounts_names_a_set() -> None:
    hidden = {"note": ',"set":[1,2],"accounts":{', "set": [1, 2], "accounts": {"set": [1, 2]}}
    line, _ = encode(changed(DRAFT, detail=hidden))
    assert auditlog.set_of(line) is auditlog.parse(line).in_set is None


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
            "ü": details,
        },
    ),
    seq=st.integers(0, 2**40),
    salt=st.binary(min_size=16, max_size=16),
    prev=st.binary(min_size=32, max_size=32),
    accounts=st.dictionaries(texts, st.integers(0, 2**40), max_size=3),
    tags=st.sets(st.binary(min_size=16, max_size=16), max_size=3),
    extra=st.dictionaries(
        texts.filter(lambda name: name not in (*KEYS, "set")), details, max_size=2
    ),
)
def test_every_draft_makes_one_line_that_parses_back(
    draft: EntryDraft,
    detail: dict[str, Any],
    seq: int,
    salt: bytes,
    prev: bytes,
    accounts: dict[str, int],
    tags: set[bytes],
    extra: dict[str, Any],
) -> None:
    line, digest = auditlog.encode(
        draft,
        seq=seq,
        time=TIME,
        salt=salt,
        detail=detail,
        accounts=accounts,
        tags=tags,
        prev=prev,
        extra=extra,
    )
    assert b"\n" not in line
    line.decode("ascii")
    assert line == json.dumps(json.loads(line), separators=(",", ":")).encode()
    entry = auditlog.parse(line)
    assert entry.detail == detail
    assert (entry.accounts, entry.tags, entry.extra) == (accounts, tuple(sorted(tags)), extra)
    assert auditlog.leaf_data(line) == entry.leaf_data == digest + b"".join(sorted(tags))
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


def _with_set(value: dict[str, Any], stated: object, **behind: object) -> None:
    """Put a set, and other keys `behind` it, in front of the accounts."""
    tail = {name: value.pop(name) for name in ("accounts", "tags", "prev")}
    value.update({"set": stated} | behind | tail)


def reorder(value: dict[str, Any]) -> None:
    value["seq"] = value.pop("seq")


@pytest.mark.parametrize(
    "change",
    [
        reorder,
        lambda v: v.pop("stage"),
        lambda v: v.pop("v"),
        lambda v: v.update(v=1),
        lambda v: v.update(v=3),
        lambda v: v.update(v=True),
        *(
            lambda v, one=one: _with_set(v, one)
            for one in (
                *(
                    None,
                    [],
                    [0],
                    [0, 1, 1],
                    [0, 0],
                    [0, 257],
                    [1, 1],
                    [-1, 2],
                    [0, True],
                    [False, 1],
                ),
                *(["0", 1], [[0], 1], {"0": 1}, "01", 1, [0, 1.0]),
            )
        ),
        lambda v: _with_set(v, [0, 1], later=1),
        lambda v: v.update(extra=1),  # behind `prev`, where nothing may be added
        lambda v: v.pop("accounts"),
        lambda v: v.pop("tags"),
        lambda v: v.update(accounts=[]),
        lambda v: v.update(accounts=None),
        lambda v: v.update(tags=None),
        lambda v: v.update(tags={}),
        lambda v: v.update(tags="AAAAAAAAAAAAAAAAAAAAAA=="),
        lambda v: v.update(tags=[1]),
        lambda v: v.update(tags=[["AAAAAAAAAAAAAAAAAAAAAA=="]]),
        lambda v: v.update(tags=v["tags"][::-1]),
        lambda v: v.update(tags=v["tags"][:1] * 2),
        lambda v: v.update(tags=["AAAAAAAAAAAAAAAAAAAA"]),  # 15 bytes
        lambda v: v.update(tags=["AAAAAAAAAAAAAAAAAAAAAAA="]),  # 17 bytes
        lambda v: v.update(tags=["AAAAAAAAAAAAAAAAAAAAAB=="]),  # stray bits
        lambda v: v.update(tags=["AAAAAAAAAAAAAAAAAAAAA?=="]),
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
        lambda v: v.update(accounts={"a": [1]}),
        lambda v: v.update(accounts={"a": "1"}),
        lambda v: v.update(accounts={"a": True}),
        lambda v: v.update(accounts={"a": -1}),
        lambda v: v.update(accounts={"a": 1.0}),
        lambda v: v.update(accounts={"a": None}),
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
    auditlog.parse(resealed(lambda value: _with_set(value, [0, 256])))
    with pytest.raises(LogError):
        auditlog.parse(resealed(change))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":0', b'"seq": 0'),
        (b'"seq":0', b'"seq":00'),
        (b'{"v":2,', b'{"v":2,"v":2,'),
        (b'{"v":2,', b'{"v":1,"v":2,'),
        (b'{"v":2,', b'{"v":2.0,'),
        (b'"op":"upload"', b'"op":"\\u0075pload"'),
        (b'"op":"upload"', b'"op":"upload","op":"upload"'),
        (b'"note":"\\u00fc"', b'"note":"\\u00FC"'),
        (b'"note":"\\u00fc"', '"note":"ü"'.encode()),
        (b'"note":"\\u00fc"', b'"note":"\xff"'),
        (b'"note":"\\u00fc"', b'"note":1,"note":2'),
        (b'"note":"\\u00fc"', b'"note":NaN'),
        (b'"accounts":{"alice":0}', b'"accounts":{"alice":0,"alice":0}'),
        (b'"tags":', b'"tags":[],"tags":'),
        (b'"prev":', b'"hash":"' + b"ab" * 32 + b'","prev":'),
        (b'"note":"\\u00fc"', b'"note":1e5'),
        (b'"note":"\\u00fc"', b'"note":' + b"9" * 5000),
        (b'"note":"\\u00fc"', b'"note":' + b"[" * 30_000 + b"]" * 30_000),
        (b'{"v"', b'[{"v"'),
    ],
)
def test_non_canonical_lines_are_refused(old: bytes, new: bytes) -> None:
    body = encode()[0].rpartition(b',"hash":"')[0]
    assert body.count(old) == 1
    auditlog.parse(sealed(body))
    with pytest.raises(LogError):
        auditlog.parse(sealed(body.replace(old, new)))


def test_a_line_is_at_most_64_kib() -> None:
    room = MAX_LINE - len(encode(changed(DRAFT, detail={"note": ""}))[0])
    line, _ = encode(changed(DRAFT, detail={"note": "x" * room}))
    assert len(line) == MAX_LINE
    auditlog.parse(line)
    too_long = changed(DRAFT, detail={"note": "x" * (room + 1)})
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


@pytest.mark.parametrize(
    ("sets", "wrong", "is_open"),
    [
        ([None, (1, 2), (1, 2), None, (4, 1), (5, 2), (5, 2)], None, False),
        ([(0, 3), (0, 3)], None, True),
        ([(0, 2), None], 1, True),
        ([(0, 2), (1, 1)], 1, True),
        ([None, (0, 2)], 1, False),
        ([(0, 1), (0, 2)], 1, False),
        ([(0, 3), (0, 3), (1, 2)], 2, True),
    ],
)
def test_a_set_is_checked_entry_by_entry(
    sets: list[tuple[int, int] | None], wrong: int | None, is_open: bool
) -> None:
    check, found = auditlog.SetCheck(), None
    for seq, stated in enumerate(sets):
        placed = stated and (seq - stated[0], stated[1])
        entry = auditlog.parse(encode(changed(DRAFT, in_set=placed), seq=seq)[0])
        try:
            check.add(entry)
        except LogError as exc:
            found = exc.seq
            break
    assert found == wrong
    assert (check.open is not None) == is_open


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
    line, _ = encode(changed(DRAFT, detail=TOMBSTONES[wrong]))
    with pytest.raises(LogError):
        auditlog.parse(line)


def test_the_records_of_an_entry() -> None:
    own = (b"\x81record\xff", {"2": b"s" * 64})
    both = {"tombstone": "YQ==", "tombstone_sigs": {"00": "Yg=="}}
    for draft, records in (
        (DRAFT, (own,)),
        (changed(DRAFT, detail=both), (own, (b"a", {"00": b"b"}))),
        (EntryDraft("login", "alice"), ()),
    ):
        assert auditlog.parse(encode(draft)[0]).records == records


@pytest.mark.parametrize("spelled", [str.upper, lambda text: " ".join([text[:2], text[2:]])])
def test_hashes_in_the_detail_are_canonical(spelled: Callable[[str], str]) -> None:
    """Otherwise data could be hidden in the spelling."""
    text = "ab" * 32
    for known in (text, spelled(text)):
        line, _ = encode(EntryDraft("test", "ada", detail={"paths": {"ada": known}}))
        if known == text:
            auditlog.parse(line)
        else:
            with pytest.raises(LogError):
                auditlog.parse(line)


def with_extra(*names: str) -> bytes:
    """Return a line of a later version, with keys that this one does not know."""
    body = encode()[0].rpartition(b',"hash":"')[0]
    added = b"".join(b',"%b":{"b":[1,null],"a":"\\u00fc"}' % name.encode() for name in names)
    return sealed(body.replace(b',"accounts":', added + b',"accounts":'))


def test_unknown_keys_are_kept() -> None:
    entry = auditlog.parse(with_extra("writer", "attest"))
    value = {"b": [1, None], "a": "ü"}
    assert list(entry.extra.items()) == [("writer", value), ("attest", value)]
    assert (entry.accounts, entry.tags) == ({"alice": 0}, tuple(sorted(TAGS)))
    assert entry.leaf_data == auditlog.leaf_data(with_extra("writer", "attest"))


@pytest.mark.parametrize("names", [("writer", "writer"), ("tags",), ("seq",), ("hash",), ("v",)])
def test_an_unknown_key_repeats_no_other(names: tuple[str, ...]) -> None:
    with pytest.raises(LogError):
        auditlog.parse(with_extra(*names))


def test_a_hash_within_a_line_is_not_its_hash() -> None:
    """The hash is taken from the end: neither a nested one nor one in a text counts."""
    nested = changed(DRAFT, detail={"hash": "ab" * 32, "x": {"hash": "cd" * 32}, "y": '"hash":"'})
    line, digest = encode(nested)
    assert auditlog.parse(line).hash == auditlog.line_hash(line) == digest
    assert hashlib.sha256(line[: line.rindex(b',"hash":"')]).digest() == digest


@pytest.mark.parametrize(
    "detail",
    [
        {"tags": ["AAAAAAAAAAAAAAAAAAAAAA=="], "prev": "ab" * 32},
        {"x": ',"tags":["AAAAAAAAAAAAAAAAAAAAAA=="],"prev":"' + "ab" * 32 + '"'},
        {"x": {"tags": []}},
    ],
)
@pytest.mark.parametrize("tags", [(), TAGS])
def test_tags_within_the_detail_are_not_its_tags(
    detail: dict[str, Any], tags: tuple[bytes, ...]
) -> None:
    line, digest = auditlog.encode(
        DRAFT, seq=0, time=TIME, salt=SALT, detail=detail, accounts={}, tags=tags, prev=GENESIS
    )
    assert auditlog.leaf_data(line) == digest + b"".join(sorted(tags))
    assert auditlog.parse(line).tags == tuple(sorted(tags))


@pytest.mark.parametrize(
    "tags",
    [
        b"1",
        b'"AAAAAAAAAAAAAAAAAAAAAA==",',
        b'"AAAAAAAAAAAAAAAAAAAAAB=="',
        b'"AAAAAAAAAAAAAAAAAAAAAA==","AAAAAAAAAAAAAAAAAAAAAA=="',
        b'"/////////////////////w==","AAAAAAAAAAAAAAAAAAAAAA=="',
    ],
)
def test_leaf_data_of_malformed_tags_is_refused(tags: bytes) -> None:
    """Without parsing the line, which `parse` refuses as well."""
    body = encode()[0].rpartition(b',"hash":"')[0]
    start = body.index(b'"tags":[') + 8
    wrong = sealed(body[:start] + tags + body[body.index(b"]", start) :])
    for check in (auditlog.leaf_data, auditlog.parse):
        with pytest.raises(LogError):
            check(wrong, seq=0)
    with pytest.raises(LogError):
        auditlog.leaf_data(sealed(body.replace(b'"tags"', b'"tagz"')))
