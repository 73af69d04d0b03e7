"""Wraps, metadata and content records: what opens, and every case that must not."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encoding
from protocol.codec.errors import MessageError
from protocol.codec.names import MAX_FILE_NAME
from protocol.codec.values import changed
from protocol.records.records import (
    BATCH_ID_SIZE,
    WRAP_ALGORITHMS,
    WRAP_ITEM_SIZE,
    FileRecord,
    record_hash,
)
from protocol.wire.messages.base import MAX_METADATA, Wrap
from sfsc.crypto import envelope, primitives
from sfsc.crypto.envelope import (
    BATCH_SIZE,
    FILE,
    FOLDER,
    LINK,
    MAX_PADDING,
    MAX_TARGET,
    ContentKey,
    Metadata,
    Recipient,
    RecordAuthor,
    WrapBatches,
    check_name,
    content_record,
    open_wraps,
)
from sfsc.crypto.primitives import metadata_key, seal
from sfsc.crypto.segments import ciphertext_size
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import BadRecord, KeyringError, Tampered, UsageError
from sfsc.keys.bundle import private_keys
from sfsc.keys.keyring import GenerationKeys
from tests.protocol.wire_form import plain
from tests.sfsc.crypto.streams import decrypt_stream, encrypt_stream

SERVER, FIRST = b"S" * 32, b"F" * 32
AUTHOR = RecordAuthor(SERVER, "ann", "ann", 1)
KEY = ContentKey(b"content-id-is-16", bytes(range(32)))
METADATA = Metadata("docs/report.pdf", 1000, 1_700_000_000_123_456_789, 0o644)
BAD_NAMES = (
    "",
    "/etc/passwd",
    "../up",
    "a//b",
    "a/./b",
    "a\\b",
    "a\0b",
    "a\nb",
    "e\u0301",
    "\ud800",
)


def _record(metadata: bytes = b"", *, key: ContentKey = KEY, size: int = 1000) -> FileRecord:
    return content_record(
        AUTHOR,
        key,
        file_id="0" * 32,
        head=None,
        version=1,
        ciphertext_size=ciphertext_size(size),
        segments_root=b"R" * 32,
        metadata=metadata,
        readers=(("bob", b"B" * 32, 0),),
        seen=(7, b"L" * 32),
        created=1_700_000_000,
    )


# --- metadata -------------------------------------------------------------------------------


@given(
    name=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=100),
    size=st.integers(0, 2**44),
    mtime=st.none() | st.integers(-(2**63), 2**63 - 1),
    mode=st.none() | st.integers(0, 0o7777),
)
def test_metadata_round_trip(name: str, size: int, mtime: int | None, mode: int | None) -> None:
    metadata = Metadata(unicodedata.normalize("NFC", name), size, mtime, mode)
    sealed = KEY.seal_metadata(metadata)
    assert KEY.open_metadata(_record(sealed, size=size), sealed) == metadata


def test_the_longest_metadata_fits_a_message() -> None:
    longest = Metadata(
        "x" * MAX_FILE_NAME,
        0,
        -(2**63),
        0o7777,
        LINK,
        "x" * MAX_TARGET,
        bytes(32),
        bytes(MAX_PADDING),
    )
    assert len(KEY.seal_metadata(longest)) <= MAX_METADATA


KINDS: list[dict[str, Any]] = [
    {"kind": FILE},
    {"kind": FILE, "sha256": hashlib.sha256(b"plaintext").digest()},
    {"sparse": True},
    {"kind": FOLDER, "name": "folder/", "size": 0, "mode": 0o755},
    {"kind": LINK, "size": 0, "target": "../elsewhere"},
    {"padding": bytes(1)},
    {"padding": bytes(MAX_PADDING)},
]


@pytest.mark.parametrize("changes", KINDS)
def test_every_kind_is_parsed(changes: dict[str, Any]) -> None:
    metadata = changed(METADATA, **changes)
    sealed = KEY.seal_metadata(metadata)
    opened = KEY.open_metadata(_record(sealed, size=metadata.size), sealed)
    assert opened == metadata
    assert list(plain(opened)) == [
        *("name", "size", "mtime", "mode"),
        *("kind", "target", "sha256", "padding", "sparse"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "device"},
        {"kind": ""},
        {"kind": LINK},
        {"kind": LINK, "target": ""},
        {"kind": LINK, "target": "a\0b"},
        {"kind": LINK, "target": "x" * (MAX_TARGET + 1)},
        {"target": "elsewhere"},
        {"kind": FOLDER, "name": "folder/", "size": 0, "target": "elsewhere"},
        {"kind": FOLDER, "size": 0},
        {"kind": FOLDER, "name": "folder/", "size": 1},
        {"kind": FOLDER, "name": "folder/", "size": 0, "sparse": True},
        {"kind": FOLDER, "name": "folder//", "size": 0},
        {"kind": FOLDER, "name": "x" * MAX_FILE_NAME + "/", "size": 0},
        {"kind": LINK, "size": 1, "target": "elsewhere"},
        {"kind": LINK, "name": "link/", "size": 0, "target": "elsewhere"},
        {"name": "file/"},
        {"sha256": bytes(31)},
        {"sha256": b""},
        {"padding": b""},
        {"padding": b"\0\1"},
        {"padding": bytes(MAX_PADDING + 1)},
    ],
)
def test_malformed_metadata_is_never_built(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        changed(METADATA, **changes)


def test_metadata_has_one_spelling() -> None:
    """Exactly its keys, in order, in the shortest form."""
    fields = plain(METADATA)
    right = encoding.pack(fields)
    wrong = [
        encoding.pack({key: value for key, value in fields.items() if key != "padding"}),
        encoding.pack({**fields, "more": None}),
        encoding.pack(dict(reversed(fields.items()))),
        # The size 1000 as a longer integer.
        right.replace(b"\xa4size\xcd\x03\xe8", b"\xa4size\xce\x00\x00\x03\xe8"),
    ]
    for body in (right, *wrong):
        sealed = seal(metadata_key(KEY.dek), body, KEY.content_id)
        record = _record(sealed, size=METADATA.size)
        if body == right:
            assert KEY.open_metadata(record, sealed) == METADATA
        else:
            with pytest.raises(BadRecord):
                KEY.open_metadata(record, sealed)


def test_other_metadata_than_signed_is_refused() -> None:
    record = _record(KEY.seal_metadata(METADATA))
    with pytest.raises(Tampered):
        KEY.open_metadata(record, KEY.seal_metadata(METADATA))
    deleted = changed(
        record,
        op="delete",
        content_id=None,
        version=None,
        ciphertext_size=None,
        segments_root=None,
        dek_commit=None,
        metadata_sha256=None,
        current=0,
    )
    with pytest.raises(Tampered):
        KEY.open_metadata(deleted, b"")


def test_metadata_is_bound_to_its_content_and_key() -> None:
    sealed = KEY.seal_metadata(METADATA)
    for key in (ContentKey(b"content-id-is-17", KEY.dek), ContentKey(KEY.content_id, bytes(32))):
        with pytest.raises(Tampered):
            key.open_metadata(_record(sealed), sealed)


@pytest.mark.parametrize("name", BAD_NAMES[:-1])
def test_bad_name_in_metadata_is_refused(name: str) -> None:
    body = encoding.pack({"name": name, "size": 1000, "mtime": None, "mode": None})
    sealed = primitives.seal(primitives.metadata_key(KEY.dek), body, KEY.content_id)
    with pytest.raises(BadRecord):
        KEY.open_metadata(_record(sealed), sealed)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        encoding.pack({"name": "a", "size": 1000, "mtime": None}),
        encoding.pack({"name": "a", "size": 1000, "mtime": None, "mode": None, "more": 1}),
        encoding.pack({"name": "a", "size": 999, "mtime": None, "mode": None}),
        encoding.pack({"name": "a", "size": 1000, "mtime": None, "mode": 0o10000}),
        encoding.pack({"name": "a", "size": True, "mtime": None, "mode": None}),
    ],
)
def test_malformed_metadata_is_refused(body: bytes) -> None:
    sealed = primitives.seal(primitives.metadata_key(KEY.dek), body, KEY.content_id)
    with pytest.raises(BadRecord):
        KEY.open_metadata(_record(sealed), sealed)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_own_names_are_usage_errors(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_good_names_pass() -> None:
    check_name("docs/é ☃.txt")


# --- wraps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", WRAP_ALGORITHMS)
def test_wraps_open_for_each_recipient(alg: str) -> None:
    ours, other = PrivateKey.generate(alg), PrivateKey.generate("x25519")
    wraps = WrapBatches(SERVER, FIRST).wrap(
        KEY, [Recipient("ann", other.public), Recipient("bob", ours.public)]
    )
    assert [(w.user, w.key_id, w.algorithm) for w in wraps] == [
        ("ann", other.public.key_id, "x25519"),
        ("bob", ours.public.key_id, alg),
    ]
    assert open_wraps(_record(), FIRST, wraps, {ours.public.key_id: ours}) == KEY
    assert open_wraps(_record(), FIRST, wraps, {other.public.key_id: other}) == KEY


def test_wraps_of_any_generation_open() -> None:
    old, new = PrivateKey.generate("x25519"), PrivateKey.generate("xwing")
    keys = private_keys(
        [
            GenerationKeys(1, bytes(32), "x25519", old.encoded),
            GenerationKeys(2, bytes(32), "xwing", new.encoded),
        ]
    )
    for key in (old, new):
        wraps = WrapBatches(SERVER, FIRST).wrap(KEY, [Recipient("ann", key.public)])
        assert open_wraps(_record(), FIRST, wraps, keys) == KEY


@pytest.mark.parametrize(
    ("server", "first", "content_id"),
    [
        (b"s" * 32, FIRST, KEY.content_id),
        (SERVER, b"f" * 32, KEY.content_id),
        (SERVER, FIRST, b"content-id-is-17"),
    ],
)
def test_a_wrap_of_another_context_does_not_open(
    server: bytes, first: bytes, content_id: bytes
) -> None:
    key = PrivateKey.generate("xwing")
    other = ContentKey(content_id, KEY.dek)
    wraps = WrapBatches(server, first).wrap(other, [Recipient("ann", key.public)])
    with pytest.raises(Tampered):
        open_wraps(_record(), FIRST, wraps, {key.public.key_id: key})


def test_a_wrap_that_opens_to_another_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile owner may seal another DEK under the item info of the record."""
    key = PrivateKey.generate("x25519")
    record, other = _record(), ContentKey(KEY.content_id, bytes(32))
    recipients = [Recipient("ann", key.public)]
    wraps = [WrapBatches(SERVER, FIRST).wrap(other, recipients)]
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "commitment", lambda _dek: record.dek_commit)
        hostile = ContentKey(KEY.content_id, bytes(32))
        wraps.append(WrapBatches(SERVER, FIRST).wrap(hostile, recipients))
        assert open_wraps(record, FIRST, wraps[1], {key.public.key_id: key}) == other
    for wrap in wraps:
        with pytest.raises(Tampered):
            open_wraps(record, FIRST, wrap, {key.public.key_id: key})


def test_a_wrap_under_another_keys_name_is_refused() -> None:
    ours, other = PrivateKey.generate("x25519"), PrivateKey.generate("x25519")
    [wrap] = WrapBatches(SERVER, FIRST).wrap(KEY, [Recipient("ann", other.public)])
    renamed = Wrap(wrap.user, ours.public.key_id, wrap.algorithm, wrap.wrapped)
    with pytest.raises(Tampered):
        open_wraps(_record(), FIRST, [renamed], {ours.public.key_id: ours})


def test_a_batch_has_one_kek_for_each_recipient() -> None:
    one, two = PrivateKey.generate("xwing"), PrivateKey.generate("xwing")
    recipients = [Recipient("ann", one.public), Recipient("bob", two.public)]
    batches, keys = WrapBatches(SERVER, FIRST), [ContentKey.generate() for _ in range(3)]
    wraps = [batches.wrap(key, recipients) for key in keys]
    heads = [{made[place].wrapped[:-WRAP_ITEM_SIZE] for made in wraps} for place in (0, 1)]
    assert [len(some) for some in heads] == [1, 1]
    assert heads[0].isdisjoint(heads[1])
    (head,), (other,) = heads
    assert head[:BATCH_ID_SIZE] != other[:BATCH_ID_SIZE]
    assert _kek(one, head) != _kek(two, other)
    items = {made[0].wrapped[-WRAP_ITEM_SIZE:][:12] for made in wraps}
    assert len(items) == 3, "nonces are random"
    for key, made in zip(keys, wraps, strict=True):
        for private in (one, two):
            opened = open_wraps(_record(key=key), FIRST, made, {private.public.key_id: private})
            assert opened == key


def test_users_who_publish_one_key_share_no_kek() -> None:
    key = PrivateKey.generate("x25519")
    recipients = [Recipient("ann", key.public), Recipient("eve", key.public)]
    ours, theirs = WrapBatches(SERVER, FIRST).wrap(KEY, recipients)
    assert ours.wrapped[:-WRAP_ITEM_SIZE] != theirs.wrapped[:-WRAP_ITEM_SIZE]


def test_a_full_batch_is_followed_by_a_fresh_one() -> None:
    key = PrivateKey.generate("x25519")
    recipients, batches = [Recipient("ann", key.public)], WrapBatches(SERVER, FIRST)
    heads = [
        wrap.wrapped[:-WRAP_ITEM_SIZE]
        for _ in range(2 * BATCH_SIZE + 1)
        for wrap in batches.wrap(KEY, recipients)
    ]
    assert [len(list(same)) for _, same in itertools.groupby(heads)] == [256, 256, 1]
    assert len({_kek(key, head) for head in set(heads)}) == 3


def test_an_opened_kek_is_cached_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = PrivateKey.generate("xwing")
    batches, contents = WrapBatches(SERVER, FIRST), [ContentKey.generate() for _ in range(5)]
    wraps = [batches.wrap(one, [Recipient("ann", key.public)]) for one in contents]
    decrypted = list[bytes]()
    decrypt = PrivateKey.decrypt

    def counting(self: PrivateKey, wrapped: bytes, info: bytes) -> bytes:
        decrypted.append(wrapped)
        return decrypt(self, wrapped, info)

    monkeypatch.setattr(PrivateKey, "decrypt", counting)
    for again in (key, PrivateKey("xwing", key.encoded)):
        for content, wrap in zip(contents, wraps, strict=True):
            record = _record(key=content)
            assert open_wraps(record, FIRST, wrap, {again.public.key_id: again}) == content
    assert len(decrypted) == 2, "once for each object, whatever the key"


def _kek(private: PrivateKey, head: bytes) -> bytes:
    batch_id, encrypted = head[:BATCH_ID_SIZE], head[BATCH_ID_SIZE:]
    info = primitives.wrap_batch_info(SERVER, FIRST, batch_id, private.public.key_id)
    return private.unwrap(encrypted, info)


def test_missing_wrap_is_a_keyring_error() -> None:
    ours, other = PrivateKey.generate("x25519"), PrivateKey.generate("x25519")
    wraps = WrapBatches(SERVER, FIRST).wrap(KEY, [Recipient("ann", other.public)])
    for offered in (wraps, ()):
        with pytest.raises(KeyringError):
            open_wraps(_record(), FIRST, offered, {ours.public.key_id: ours})


def test_record_without_content_is_refused() -> None:
    access = FileRecord(
        server=SERVER, owner="ann", actor="ann", generation=1, file_id="0" * 32, rev=2,
        op="access", prev=b"P" * 32, seen=(1, bytes(32)), created=1, readers=(), current=1,
        content=bytes(32),
    )  # fmt: skip
    with pytest.raises(BadRecord):
        open_wraps(access, FIRST, (), {})


# --- content and records --------------------------------------------------------------------


def test_file_round_trip() -> None:
    key, reader = ContentKey.generate(), PrivateKey.generate("xwing")
    plaintext = os.urandom(3000)
    blob = b"".join(encrypt_stream(key.encryptor(), io.BytesIO(plaintext)))
    metadata = key.seal_metadata(changed(METADATA, size=3000))
    record = FileRecord.parse(_record(metadata, key=key, size=3000).encode())
    wraps = WrapBatches(SERVER, FIRST).wrap(key, [Recipient("ann", reader.public)])

    opened = open_wraps(record, FIRST, wraps, {reader.public.key_id: reader})
    assert opened.open_metadata(record, metadata).name == "docs/report.pdf"
    decryptor = opened.decryptor(blob[:40], record.ciphertext_size or 0)
    assert b"".join(decrypt_stream(decryptor, io.BytesIO(blob))) == plaintext


def test_fresh_keys_differ() -> None:
    one, two = ContentKey.generate(), ContentKey.generate()
    assert one.content_id != two.content_id
    assert one.dek != two.dek


def test_content_record_fields() -> None:
    record = _record(b"metadata")
    assert (record.rev, record.prev, record.version, record.current) == (1, b"", 1, 1)
    assert record.dek_commit == primitives.commitment(KEY.dek)
    assert record.metadata_sha256 == hashlib.sha256(b"metadata").digest()
    assert (record.op, record.content_id) == ("put", KEY.content_id)


def test_content_record_links_to_the_head() -> None:
    head = _record().encode()
    following = content_record(
        AUTHOR,
        KEY,
        file_id="0" * 32,
        head=head,
        version=2,
        ciphertext_size=56,
        segments_root=bytes(32),
        metadata=b"",
        readers=(),
        seen=(8, bytes(32)),
        created=2,
    )
    assert (following.rev, following.prev) == (2, record_hash(head))


def test_repr_hides_keys() -> None:
    assert repr(KEY.dek) not in repr(KEY)
