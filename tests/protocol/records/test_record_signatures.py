"""One signature for many records: known answers, and what is never valid."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import merkle
from protocol.codec.errors import LocalProtocolError, SignatureError
from protocol.records import record_signatures
from protocol.records.record_signatures import (
    MAX_PACKED,
    MAX_SIGNED,
    RecordSigner,
    RecordTree,
    SignatureCache,
    signed_count,
    verify_record_signature,
)
from protocol.records.records import record_hash
from protocol.records.signatures import Label, SigningKey, verify_signature

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "record_signatures.json").read_text("utf-8")
)["trees"]
SERVER, FIRST = b"s" * 32, b"f" * 32
KEY, OTHER = SigningKey.from_seed(b"k" * 32), SigningKey.from_seed(b"o" * 32)
SIGNER = RecordSigner(KEY, SERVER, FIRST, 7)
RIGHT: dict[str, Any] = {"server": SERVER, "owner_first": FIRST, "generation": 7}
COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 100, 127, 128, 129, 255, 256]


def bodies(count: int) -> list[bytes]:
    return [b"record %d" % number for number in range(count)]


def hashes(count: int) -> list[bytes]:
    return [record_hash(body) for body in bodies(count)]


def is_valid(
    packed: bytes,
    digest: bytes,
    *,
    label: Label = Label.RECORDS,
    public: bytes = KEY.public,
    **changed: Any,
) -> bool:
    try:
        verify_record_signature(label, packed, digest, public, **(RIGHT | changed))
    except SignatureError:
        return False
    return True


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: f"{one['index']} of {one['count']}")
def test_known_answers(vector: dict[str, Any]) -> None:
    """Signatures that another implementation made."""
    packed = (
        bytes.fromhex(vector["signature"])
        + vector["count"].to_bytes(2)
        + vector["index"].to_bytes(2)
        + bytes.fromhex("".join(vector["path"]))
    )
    label = Label(b"sfs/v2/" + vector["label"].encode())
    stated: dict[str, Any] = {
        "server": bytes.fromhex(vector["server"]),
        "owner_first": bytes.fromhex(vector["owner_first"]),
        "generation": vector["generation"],
    }
    digest, public = bytes.fromhex(vector["record_hash"]), bytes.fromhex(vector["public"])
    verify_record_signature(label, packed, digest, public, **stated)
    for wrong in ({"server": bytes(32)}, {"owner_first": bytes(32)}, {"generation": 8}):
        assert not is_valid(packed, digest, public=public, label=label, **(stated | wrong))


@pytest.mark.parametrize("count", COUNTS)
def test_every_record_of_a_tree_is_signed(count: int) -> None:
    packed = SIGNER.sign(bodies(count))
    assert len({one[:64] for one in packed}) == 1
    root = merkle.root(map(merkle.leaf_hash, hashes(count)))
    body = SERVER + FIRST + (7).to_bytes(4) + count.to_bytes(2) + root
    assert packed[0][:64] == KEY.sign_note(b"sfs/v2/records\0" + body)
    for index, (one, digest) in enumerate(zip(packed, hashes(count), strict=True)):
        assert is_valid(one, digest)
        assert one[64:68] == count.to_bytes(2) + index.to_bytes(2)
        assert len(one) <= MAX_PACKED
        assert signed_count(one) == count


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 255, 256])
def test_nothing_else_is_signed(count: int) -> None:
    packed = SIGNER.sign(bodies(count))
    for index in {0, count // 2, count - 1}:
        one, digest = packed[index], hashes(count)[index]
        for label in set(Label) - {Label.RECORDS}:
            assert not is_valid(one, digest, label=label)
        assert not is_valid(one, digest, public=OTHER.public)
        assert not is_valid(one, digest, server=bytes(32))
        assert not is_valid(one, digest, owner_first=bytes(32))
        assert not is_valid(one, digest, generation=8)
        assert not is_valid(one, record_hash(b"another record"))
        assert not is_valid(one, b"")
        for at in range(len(one)):
            wrong = bytearray(one)
            wrong[at] ^= 1
            assert not is_valid(bytes(wrong), digest), at
        for wrong_length in (one[:-1], one + b"\0", one[:-32], one + bytes(32), one + one[68:100]):
            assert wrong_length == one or not is_valid(wrong_length, digest)
        for place in range(count):
            if place != index:
                moved = one[:66] + place.to_bytes(2) + one[68:]
                assert not is_valid(moved, digest)
                assert not is_valid(packed[place], digest)
        for other in {0, 1, 2, count - 1, count + 1, 256, 257, 2**16 - 1} - {count}:
            assert not is_valid(one[:64] + other.to_bytes(2) + one[66:], digest)


def test_inner_nodes_and_padding_leaves_are_no_records() -> None:
    """Whoever shows them as records needs a preimage: a leaf is the hash of a record's hash."""
    digests = hashes(4)
    leaves = [merkle.leaf_hash(one) for one in digests]
    packed = SIGNER.sign(bodies(4))
    node = merkle.node_hash(leaves[0], leaves[1])
    # The path of a tree of two that leads from the inner node to the same root.
    sibling = merkle.node_hash(leaves[2], leaves[3])
    for n, index in ((2, 0), (4, 0), (4, 2)):
        shown = packed[0][:64] + n.to_bytes(2) + index.to_bytes(2) + sibling
        assert not is_valid(shown, node)
        assert not is_valid(shown, leaves[0])
    # A tree is padded with random leaves, which are not the hash of any record's hash.
    padding = hashlib.sha256(b"random").digest()
    root, paths = merkle.inclusion_paths([*leaves[:3], padding])
    body = record_signatures.signed_body(SERVER, FIRST, 7, 4, root)
    signature = KEY.sign(Label.RECORDS, body)
    form = [
        signature + (4).to_bytes(2) + index.to_bytes(2) + path for index, path in enumerate(paths)
    ]
    assert is_valid(form[0], digests[0])
    assert not is_valid(form[3], padding)
    assert not is_valid(form[3], merkle.leaf_hash(padding))


@pytest.mark.parametrize("count", [1, 3, 256])
def test_an_endorsement_is_no_record_and_a_record_no_endorsement(count: int) -> None:
    digests = hashes(count)
    endorsed = RecordTree.of_records(digests).pack(SIGNER.endorse(digests))
    made = SIGNER.sign(bodies(count))
    for digest, endorsement, signature in zip(digests, endorsed, made, strict=True):
        assert is_valid(endorsement, digest, label=Label.ENDORSEMENTS)
        assert not is_valid(endorsement, digest, label=Label.RECORDS)
        assert not is_valid(signature, digest, label=Label.ENDORSEMENTS)


def test_a_tree_has_1_to_256_different_records() -> None:
    for wrong in ([], hashes(MAX_SIGNED + 1), [*hashes(2), hashes(1)[0]]):
        with pytest.raises(LocalProtocolError):
            RecordTree.of_records(wrong)
        with pytest.raises(LocalProtocolError):
            SIGNER.endorse(wrong)
    with pytest.raises(LocalProtocolError):
        SIGNER.sign([b"same", b"same"])


def test_records_signed_together_cost_one_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, cache, verified = SIGNER.sign(bodies(256)), SignatureCache(8), list[bytes]()

    def counting(label: Label, body: bytes, signature: bytes, public: bytes) -> None:
        verified.append(body)
        verify_signature(label, body, signature, public)

    monkeypatch.setattr(record_signatures, "verify_signature", counting)
    for one, digest in zip(packed, hashes(256), strict=True):
        verify_record_signature(Label.RECORDS, one, digest, KEY.public, **RIGHT, cache=cache)
    assert len(verified) == 1
    # What is cached is the signature over the root: another record, label or key is not.
    for label, digest, public in (
        (Label.RECORDS, hashes(256)[1], KEY.public),
        (Label.ENDORSEMENTS, hashes(256)[0], KEY.public),
        (Label.RECORDS, hashes(256)[0], OTHER.public),
    ):
        with pytest.raises(SignatureError):
            verify_record_signature(label, packed[0], digest, public, **RIGHT, cache=cache)


def test_cache_is_bounded_and_holds_only_valid_signatures() -> None:
    cache = SignatureCache(3)
    for number in range(10):
        body = bytes([number])
        signature = KEY.sign(Label.RECORDS, body)
        for wrong in ((body + b"!", KEY.public), (body, OTHER.public)):
            for _ in range(2):
                assert not cache.is_valid(Label.RECORDS, wrong[0], signature, wrong[1])
        before = set(cache._valid)
        assert cache.is_valid(Label.RECORDS, body, signature, KEY.public)
        assert len(cache._valid - before) == 1
        assert len(cache._valid) <= 3
