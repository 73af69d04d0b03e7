"""Known answers for wrap batches, made by another implementation, and what must not open.

`wrap_batches.json` has three files in one batch for a key of each kind, as lower-case hex. Its
X-Wing keys are in the expanded form of 96 bytes, and its commitments have the labels of version 1.
Both are replaced here. Other vectors check the expansion of the seed and the commitment.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from protocol.codec.errors import MessageError
from protocol.codec.values import changed
from protocol.records.records import BATCH_ID_SIZE, WRAP_ITEM_SIZE, WRAP_SIZES, FileRecord
from protocol.wire.messages.base import Wrap
from sfsc.crypto import envelope, primitives
from sfsc.crypto.envelope import (
    ContentKey,
    Recipient,
    RecordAuthor,
    WrapBatches,
    content_record,
    open_wraps,
)
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import KeyringError, Tampered

CASES: list[dict[str, str]] = json.loads(
    Path(__file__).with_name("wrap_batches.json").read_text("utf-8")
)["wraps"]
ALGORITHMS = ("xwing", "x25519", "rsa2048")


def raw(case: dict[str, str], key: str) -> bytes:
    return bytes.fromhex(case[key])


def commitment(dek: bytes) -> bytes:
    prk = hmac.digest(hashlib.sha256(b"sfs/v1/dek").digest(), dek, "sha256")
    return hmac.digest(prk, b"sfs/v1/commit\x01", "sha256")


@pytest.fixture(autouse=True)
def as_in_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SHA-256 of an expanded X-Wing key stand for its seed."""
    monkeypatch.setattr(envelope, "commitment", commitment)
    known = {hashlib.sha256(raw(one, "private")).digest(): raw(one, "private") for one in CASES}
    expand = primitives.expand_xwing

    def expanded(seed: bytes) -> tuple[bytes, bytes]:
        return (known[seed][:64], known[seed][64:]) if seed in known else expand(seed)

    monkeypatch.setattr(primitives, "expand_xwing", expanded)


def private_key(case: dict[str, str]) -> PrivateKey:
    encoded = raw(case, "private")
    seed = hashlib.sha256(encoded).digest()
    return PrivateKey(case["alg"], seed if case["alg"] == "xwing" else encoded)


def record_of(case: dict[str, str], **other: Any) -> FileRecord:
    record = content_record(
        RecordAuthor(raw(case, "server"), "ann", "ann", 1),
        ContentKey(raw(case, "content_id"), raw(case, "dek")),
        file_id="0" * 32,
        head=None,
        version=1,
        ciphertext_size=100,
        segments_root=bytes(32),
        metadata=b"",
        readers=(),
        seen=(1, bytes(32)),
        created=1,
    )
    assert record.dek_commit == raw(case, "dek_commit")
    return changed(record, **other)


def opened(
    case: dict[str, str], private: PrivateKey, wrapped: bytes, first: bytes = b"", **other: Any
) -> ContentKey:
    """Open `wrapped` as the wrap of the case's record, with `other` fields of the record."""
    wrap = Wrap("ann", private.public.key_id, private.alg, wrapped)
    record, first = record_of(case, **other), first or raw(case, "owner_first")
    return open_wraps(record, first, (wrap,), {wrap.key_id: private})


def opens(case: dict[str, str], private: PrivateKey, wrapped: bytes, **other: Any) -> bool:
    try:
        opened(case, private, wrapped, **other)
    except (Tampered, MessageError):
        return False
    return True


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["alg"])
def test_known_wraps_open(case: dict[str, str]) -> None:
    private, wrapped = private_key(case), raw(case, "wrapped")
    assert len(wrapped) == WRAP_SIZES[case["alg"]].wrapped
    assert opened(case, private, wrapped) == ContentKey(raw(case, "content_id"), raw(case, "dek"))
    context = raw(case, "server"), raw(case, "owner_first"), wrapped[:16], private.public.key_id
    encrypted = wrapped[BATCH_ID_SIZE:-WRAP_ITEM_SIZE]
    kek = private.unwrap(encrypted, primitives.wrap_batch_info(*context))
    assert kek == raw(case, "kek")


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("cached", [False, True])
def test_what_belongs_elsewhere_does_not_open(alg: str, cached: bool) -> None:
    """A KEK that is in the cache opens no more than one that is not."""
    case, second, _ = [one for one in CASES if one["alg"] == alg]
    private, wrapped = private_key(case), raw(case, "wrapped")
    recipient = PrivateKey.generate(alg)
    context = raw(case, "server"), raw(case, "owner_first")
    (elsewhere,) = WrapBatches(*context).wrap(
        ContentKey(raw(case, "content_id"), raw(case, "dek")), [Recipient("ann", private.public)]
    )
    if cached:
        opened(case, private, wrapped)
        opened(second, private, raw(second, "wrapped"))
        opened(case, private, elsewhere.wrapped)
    enc_end = -WRAP_ITEM_SIZE
    other = raw(second, "wrapped")
    assert other[:enc_end] == wrapped[:enc_end], "one batch"
    wrong: dict[str, tuple[bytes, dict[str, Any]]] = {
        "item of another content": (other, {}),
        "another content_id": (wrapped, {"content_id": raw(second, "content_id")}),
        "another commitment": (wrapped, {"dek_commit": raw(second, "dek_commit")}),
        "another server": (wrapped, {"server": bytes(32)}),
        "another owner": (wrapped, {"first": bytes(31) + b"\1"}),
        "item of another batch": (wrapped[:enc_end] + elsewhere.wrapped[enc_end:], {}),
        "KEK of another batch": (
            wrapped[:16] + elsewhere.wrapped[16:enc_end] + wrapped[enc_end:],
            {},
        ),
        "another batch_id": (elsewhere.wrapped[:16] + wrapped[16:], {}),
        "one byte short": (wrapped[:-1], {}),
        "one byte long": (wrapped + b"\0", {}),
        "no item": (wrapped[:enc_end], {}),
        "the item alone": (wrapped[enc_end:], {}),
        "nothing": (b"", {}),
        "item flipped": (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), {}),
        "nonce flipped": (
            wrapped[:enc_end] + bytes([wrapped[enc_end] ^ 1]) + wrapped[enc_end + 1 :],
            {},
        ),
    }
    for what, (changes, fields) in wrong.items():
        assert not opens(case, private, changes, **fields), what
    assert not opens(case, recipient, wrapped)
    wrap = Wrap("ann", private.public.key_id, alg, wrapped)
    keys = {recipient.public.key_id: recipient}
    with pytest.raises(KeyringError):
        open_wraps(record_of(case), raw(case, "owner_first"), (wrap,), keys)
    assert opens(case, private, wrapped)
