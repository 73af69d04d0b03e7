"""Signed records: exact keys, rules between fields, and hashes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.errors import EncodingError, MessageError, RemoteProtocolError
from protocol.codec.values import changed
from protocol.records import records
from protocol.records.records import (
    CONTENT_OPS,
    DELETE,
    MAX_CUSTODIANS,
    MAX_DEVICES,
    MAX_PURGED,
    MAX_READERS,
    MAX_RECORD,
    MAX_VOIDS,
    MAX_WRITERS,
    MOVE,
    OWN_KEYS,
    PUT,
    RESTORE,
    XWING_PUBLIC_SIZE,
    Device,
    FileRecord,
    LeaveRecord,
    RotationFinish,
    ServerStatement,
    SignedStruct,
    Statement,
    Writer,
    carried_content,
    record_hash,
)
from tests.protocol.strategies import structs
from tests.protocol.wire_form import plain, unpacked
from tests.vectors import protocol_examples as examples

CLASSES: list[type[SignedStruct]] = [
    ServerStatement,
    Statement,
    FileRecord,
    RotationFinish,
    LeaveRecord,
]
COMMON = {
    "server",
    "owner",
    "actor",
    "generation",
    "file_id",
    "rev",
    "op",
    "prev",
    "seen",
    "created",
    "readers",
    "current",
    "content",
}
STATEMENT_KEYS = {
    "server",
    "user",
    "kind",
    "n",
    "generation",
    "oldest",
    "sign_pub",
    "wrap_alg",
    "wrap_pub",
    "devices",
    "recovery",
    "custodians",
    "writers",
    "voids",
    "bundle_sha256",
    "created",
    "due",
    "expires",
    "prev",
    "reason",
    "tag_commit",
}
BY_OP = {
    record.op: record
    for record, _, _ in examples.RECORDS.values()
    if isinstance(record, FileRecord)
}
HASH = bytes(32)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_round_trip(cls: type[SignedStruct], data: st.DataObject) -> None:
    record = data.draw(structs(cls))
    body = record.encode()
    assert cls.parse(body) == record
    assert cls.parse(body).encode() == body


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_missing_unknown_and_repeated_keys(cls: type[SignedStruct], data: st.DataObject) -> None:
    written = plain(data.draw(structs(cls)))
    key = data.draw(st.sampled_from(sorted(written)))
    less = {name: value for name, value in written.items() if name != key}
    for changes in (less, {**written, "more": 1}, {**less, key + "_": written[key]}):
        with pytest.raises(MessageError):
            cls.parse(encoding.pack(changes))
    pairs = b"".join(encoding.pack(name) + encoding.pack(v) for name, v in written.items())
    doubled = encoding.pack(key) + encoding.pack(written[key])
    count = len(written) + 1
    header = b"\xde" + count.to_bytes(2) if count > 15 else bytes((0x80 | count,))
    with pytest.raises(MessageError):
        cls.parse(header + pairs + doubled)
    if len(written) > 1:
        names = list(written)
        swapped = {name: written[name] for name in (*names[1:], names[0])}
        with pytest.raises(MessageError):
            cls.parse(encoding.pack(swapped))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(st.data())
def test_changed_bytes_differ_or_are_refused(cls: type[SignedStruct], data: st.DataObject) -> None:
    record = data.draw(structs(cls))
    body = bytearray(record.encode())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    try:
        changes = cls.parse(bytes(body))
    except RemoteProtocolError:
        return
    assert isinstance(changes, cls)
    assert changes != record
    assert changes.encode() == body


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise_remote_errors(cls: type[SignedStruct], data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        cls.parse(data)


def test_the_keys_of_every_record() -> None:
    assert plain(examples.FIRST).keys() == STATEMENT_KEYS
    assert set(plain(examples.SERVER_STATEMENT)) == {
        "server_pub",
        "n",
        "tls_spki_sha256",
        "log_vkey",
        "created",
    }
    assert set(plain(examples.FINISH)) == {
        "server",
        "user",
        "statement",
        "generation",
        "as_of_seq",
        "files",
        "root",
        "left_out",
        "left_out_root",
    }
    assert set(plain(examples.FIRST)["recovery"]) == {"sign_pub", "xwing_pub"}


@pytest.mark.parametrize("op", OWN_KEYS)
def test_the_keys_of_every_op(op: str) -> None:
    record = BY_OP[op]
    assert plain(record).keys() == COMMON | {key for keys in OWN_KEYS.values() for key in keys}
    set_keys = {key for key, value in plain(record).items() if value is not None}
    optional = {"to", "writer"}
    assert set_keys - optional == (COMMON | set(OWN_KEYS[op])) - optional
    assert (record.content_id is not None) is (op in CONTENT_OPS)
    for other, keys in OWN_KEYS.items():
        if set(keys) - {"to"} != set(OWN_KEYS[op]) - {"to"}:
            with pytest.raises(MessageError):
                FileRecord.parse(encoding.pack({**plain(record), "op": other}))


@pytest.mark.parametrize("op", OWN_KEYS)
def test_no_key_is_left_out_because_it_is_nil(op: str) -> None:
    written = plain(BY_OP[op])
    nil = [key for key, value in written.items() if value is None]
    assert nil
    for key in nil:
        less = {name: value for name, value in written.items() if name != key}
        with pytest.raises(MessageError):
            FileRecord.parse(encoding.pack(less))


@pytest.mark.parametrize("op", OWN_KEYS)
def test_foreign_and_missing_fields_of_an_op(op: str) -> None:
    record = BY_OP[op]
    present: dict[str, Any] = {"to": examples.FILE_ID, "purged": (1,)}
    for other in BY_OP.values():
        present |= {
            name: getattr(other, name)
            for name in FileRecord.__defaults__
            if getattr(other, name) is not None
        }
    for name, value in present.items():
        own = name.rstrip("_") in OWN_KEYS[op]
        if name == "to" and own:
            assert plain(changed(record, to=None))["to"] is None
            continue
        changes: dict[str, Any] = {name: None if own else value}
        with pytest.raises(MessageError):
            changed(record, **changes)


def test_content_names_the_record_of_the_current_version() -> None:
    """It is empty in that record itself and if there is no current version, and only then."""
    for op in (PUT, RESTORE, MOVE, DELETE):
        assert BY_OP[op].content == b""
    for record in (examples.PUT, BY_OP[DELETE], examples.REENCRYPT):
        with pytest.raises(MessageError, match="content"):
            changed(record, content=HASH)
    for record in (examples.ACCESS, examples.OLDER):
        assert record.current not in (0, record.version)
        for wrong in (b"", bytes(31), bytes(33)):
            with pytest.raises(MessageError, match="content"):
                changed(record, content=wrong)


def test_content_is_carried_on() -> None:
    put = examples.PUT.encode()
    assert carried_content(examples.PUT, put) == record_hash(put)
    access = changed(
        examples.ACCESS, content=record_hash(put), current=1, rev=2, prev=record_hash(put)
    )
    assert carried_content(access, access.encode()) == record_hash(put)
    deleted = BY_OP[DELETE]
    assert carried_content(deleted, deleted.encode()) == b""
    assert examples.OLDER.content == record_hash(examples.RESTORE.encode())
    assert carried_content(examples.OLDER, examples.OLDER.encode()) == examples.OLDER.content


def test_only_a_content_has_a_writer() -> None:
    for op, record in BY_OP.items():
        if op in CONTENT_OPS:
            assert changed(record, writer="camera").writer == "camera"
            assert plain(record)["writer"] is None
            without = {key: value for key, value in plain(record).items() if key != "writer"}
            with pytest.raises(MessageError):
                FileRecord.parse(encoding.pack(without))
        else:
            with pytest.raises(MessageError):
                changed(record, writer="camera")


@pytest.mark.parametrize("op", ["", "PUT", "puts", None, 1, b"put", ["put"]])
def test_unknown_ops(op: object) -> None:
    with pytest.raises(MessageError):
        FileRecord.parse(encoding.pack({**plain(examples.PUT), "op": op}))


@pytest.mark.parametrize(
    "changes",
    [
        {"rev": 2},
        {"rev": 0},
        {"prev": HASH},
        {"rev": 2, "prev": bytes(31)},
        {"generation": 0},
        {"generation": 2**31 + 1},
        {"version": 0},
        {"current": -1},
        {"seen": (1, bytes(31))},
        {"seen": (-1, HASH)},
        {"seen": (1,)},
        {"owner": "operator"},
        {"actor": "nobody!"},
        {"created": True},
        {"created": 1.0},
        {"ciphertext_size": -1},
        {"file_id": "A" * 32},
        {"readers": (("bob", HASH, 0), ("bob", HASH, 0))},
        {"readers": (("bob", HASH, 0), ("ann", HASH, 0))},
        {"readers": (("alice", HASH, 0),)},
        {"readers": (("bob", HASH),)},
        {"readers": (("bob", HASH, -1),)},
        {"readers": (("bob", bytes(31), 0),)},
        {"readers": (("operator", HASH, 0),)},
    ],
)
def test_invalid_file_records(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        changed(examples.PUT, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"oldest": 2},
        {"oldest": 0},
        {"generation": 0},
        {"n": 0},
        {"n": 2},
        {"prev": HASH},
        {"n": 2, "prev": bytes(33)},
        {"reason": "because"},
        {"wrap_alg": "rsa1024"},
        {"wrap_pub": bytes(XWING_PUBLIC_SIZE + 1)},
        {"sign_pub": bytes(31)},
        {"user": "server"},
        {"devices": ((bytes(15), b""),)},
        {"devices": ((bytes(16), bytes(XWING_PUBLIC_SIZE + 1)),)},
        {"devices": ((bytes(16), b""),) * (MAX_DEVICES + 1)},
        {"voids": (bytes(31),)},
        {"voids": (HASH,) * (MAX_VOIDS + 1)},
        {"recovery": (HASH, b"")},
        {"due": 2**53 + 1},
    ],
)
def test_invalid_statements(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        changed(examples.FIRST, **changes)


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (b"2" * 32, b"1" * 32),
        (HASH, HASH),
        (b"1" * 31,),
        tuple(b"%032d" % n for n in range(65)),
    ],
)
def test_tls_keys_are_one_to_64_sorted_each_once(keys: tuple[bytes, ...]) -> None:
    written = plain(examples.SERVER_STATEMENT)
    with pytest.raises(MessageError):
        ServerStatement.parse(encoding.pack(written | {"tls_spki_sha256": list(keys)}))
    for good in ([HASH], [b"%032d" % n for n in range(64)]):
        body = encoding.pack(written | {"tls_spki_sha256": good})
        assert ServerStatement.parse(body).tls_spki_sha256 == tuple(good)


def test_the_largest_records_fit_their_limit() -> None:
    readers = tuple((f"{n:032}", HASH, 2**53) for n in range(MAX_READERS))
    changed(examples.RESTORE, readers=readers).encode()
    purged = tuple(range(2**31 - MAX_PURGED, 2**31))
    changed(examples.PURGE, readers=readers, purged=purged).encode()
    device = Device(bytes(16), HASH, bytes(XWING_PUBLIC_SIZE), "device", HASH, bytes(64))
    devices, writers = (device,) * MAX_DEVICES, (Writer("w" * 32, HASH, 2**53),) * MAX_WRITERS
    more: dict[str, Any] = {
        "devices": devices,
        "writers": writers,
        "custodians": (HASH,) * MAX_CUSTODIANS,
    }
    changed(examples.FIRST, **more, voids=(HASH,) * MAX_VOIDS).encode()
    with pytest.raises(MessageError):
        changed(examples.PURGE, purged=(*purged, 1))
    with pytest.raises(MessageError):
        changed(examples.PUT, readers=(*readers, ("z", HASH, 0)))


def test_the_limit_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(EncodingError):
        FileRecord.parse(bytes(MAX_RECORD + 1))


def test_hashes_match_their_definitions() -> None:
    assert records.record_hash(b"body") == hashlib.sha256(b"body").digest()
    public = bytes(range(32))
    assert records.server_id(public) == hashlib.sha256(b"sfs/v2/server\x00" + public).digest()
    expected = hashlib.sha256(b"x25519\x00" + public).digest()
    assert records.key_id("x25519", public) == expected
    statement = changed(examples.FIRST, wrap_alg="x25519", wrap_pub=public)
    assert statement.key_id == expected
    assert records.key_id("xwing", public) != expected


def test_what_a_login_and_an_enrolment_cover() -> None:
    body = records.login_body(
        server=b"s" * 32,
        spki=b"t" * 32,
        welcome=b"w" * 32,
        version=2,
        user="alice",
        device_id=b"d" * 16,
        generation=3,
    )
    assert unpacked(body) == [b"s" * 32, b"t" * 32, b"w" * 32, 2, "alice", b"d" * 16, 3]
    proof = records.enrol_proof_body(welcome=b"w" * 32, statement=b"h" * 32)
    assert proof == b"sfs/v2/enroll\x00" + b"w" * 32 + b"h" * 32
