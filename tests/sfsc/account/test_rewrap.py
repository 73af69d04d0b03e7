"""Rewrapping: each version's result is its own, whatever the other versions are."""

from __future__ import annotations

from itertools import groupby

import pytest

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.records.records import PURGE, WRAP_ITEM_SIZE, FileRecord, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.base import GenerationSignature, SignedRecord, Wrap
from protocol.wire.messages.rotation import RewrapItem, WrapItem
from sfsc.account.rewrap import RewrapBuilder, Version, leaf_of
from sfsc.crypto.envelope import (
    ContentKey,
    Recipient,
    RecordAuthor,
    WrapBatches,
    content_record,
    open_wraps,
)
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import BadRecord, KeyringError, SfscError, Tampered
from sfsc.trust.file_records import FileOwner, KnownRevision, OwnAccount
from tests.record_signing import packed_signature

SERVER = bytes(32)
OLD, NEW = PrivateKey.generate("xwing"), PrivateKey.generate("xwing")
OLD_SIGNING, NEW_SIGNING = SigningKey.generate(), SigningKey.generate()
SIGNERS = {1: OLD_SIGNING.public, 2: NEW_SIGNING.public}
KEYS = {OLD.public.key_id: OLD, NEW.public.key_id: NEW}
ADA = OwnAccount(SERVER, "ada", b"a" * 32, SIGNERS, SIGNERS, {}, frozenset(), bytes(32), KEYS)
BOB_SIGNING = SigningKey.generate()
BOB_SIGNERS = {1: BOB_SIGNING.public}
BOB = FileOwner(SERVER, "bob", b"b" * 32, BOB_SIGNERS, BOB_SIGNERS, {}, frozenset())
BUILD = RewrapBuilder(ADA, 2)


def item(
    number: int, owner: FileOwner = ADA, to: PrivateKey = OLD, by: SigningKey = OLD_SIGNING
) -> WrapItem:
    """Build a version of the owner's file of that number, wrapped for ada."""
    key = ContentKey.generate()
    file_id = f"{number:032x}"
    record = content_record(
        RecordAuthor(SERVER, owner.user, owner.user, 1),
        key,
        file_id=file_id,
        head=None,
        version=1,
        ciphertext_size=100,
        segments_root=merkle.EMPTY_ROOT,
        metadata=b"sealed",
        readers=(),
        seen=(0, merkle.EMPTY_ROOT),
        created=1_800_000_000,
    )
    (wrap,) = WrapBatches(SERVER, owner.first).wrap(key, [Recipient("ada", to.public)])
    return WrapItem(owner.user, file_id, 1, signed(record, by, owner), None, wrap)


def signed(record: FileRecord, by: SigningKey, owner: FileOwner = ADA) -> SignedRecord:
    body = record.encode()
    packed = packed_signature(by, body, server=SERVER, first=owner.first)
    return SignedRecord(body, (GenerationSignature(1, packed),))


def endorsed(one: WrapItem) -> WrapItem:
    """Return the item after its record was endorsed."""
    packed = packed_signature(
        NEW_SIGNING,
        one.content.record,
        server=SERVER,
        first=ADA.first,
        generation=2,
        label=Label.ENDORSEMENTS,
    )
    added = GenerationSignature(2, packed)
    content = SignedRecord(one.content.record, (*one.content.signatures, added))
    return WrapItem(one.owner, one.file_id, one.version, content, None, one.wrap)


def wrapped(one: WrapItem, wrap: Wrap | None) -> WrapItem:
    return WrapItem(one.owner, one.file_id, one.version, one.content, one.head, wrap)


def tampered(one: WrapItem) -> WrapItem:
    assert one.wrap is not None
    wrap = one.wrap
    other = bytes([wrap.wrapped[0] ^ 1]) + wrap.wrapped[1:]
    return wrapped(one, Wrap(wrap.user, wrap.key_id, wrap.algorithm, other))


def check(
    version: Version, sent: RewrapItem | None, leaf: bytes | None, error: SfscError | None
) -> None:
    """Verify that `sent` belongs to this version and has the same content under the new keys."""
    owner, before, _ = version
    assert error is None
    assert sent is not None
    assert (sent.owner, sent.file_id, sent.version) == (before.owner, before.file_id, 1)
    assert sent.wrap is not None
    assert before.wrap is not None
    record = FileRecord.parse(before.content.record)
    first = (owner or ADA).first
    opened = [open_wraps(record, first, (one,), KEYS) for one in (before.wrap, sent.wrap)]
    assert opened[0] == opened[1]
    assert sent.wrap.key_id == NEW.public.key_id
    assert leaf == leaf_of(before, sent.wrap)
    if owner is not None:
        assert sent.endorsed == ()
        return
    assert sent.endorsed == (record_hash(before.content.record),)


def test_results_are_in_input_order() -> None:
    versions: list[Version] = [
        (None, item(1), None),
        (BOB, item(2, BOB, by=BOB_SIGNING), None),
        (None, item(3), None),
    ]
    answers = BUILD(versions)
    assert len(answers) == 3
    for version, answer in zip(versions, answers, strict=True):
        check(version, *answer)


def test_wraps_of_a_pass_share_a_batch_for_each_owner() -> None:
    """Files of a sharer are wrapped under the sharer's own batch, and another pass has others."""
    versions: list[Version] = [
        *[(None, item(number), None) for number in range(1, 41)],
        *[(BOB, item(number, BOB, by=BOB_SIGNING), None) for number in range(41, 44)],
    ]

    def heads(build: RewrapBuilder) -> list[bytes]:
        sent = [one for chunk in (versions[:32], versions[32:]) for one, _, _ in build(chunk)]
        return [
            one.wrap.wrapped[:-WRAP_ITEM_SIZE]
            for one in sent
            if one is not None and one.wrap is not None
        ]

    first, second = heads(RewrapBuilder(ADA, 2)), heads(RewrapBuilder(ADA, 2))
    for made in (first, second):
        assert len(made) == 43
        assert [len(list(same)) for _, same in groupby(made)] == [40, 3]
    assert set(first).isdisjoint(second)


def test_empty_input() -> None:
    assert BUILD([]) == []


def test_new_wraps_are_kept_and_counted() -> None:
    first, last = item(1), item(3)
    done = endorsed(item(2, to=NEW))
    shared = item(4, BOB, to=NEW, by=BOB_SIGNING)
    answers = BUILD(
        [(None, first, None), (None, done, None), (BOB, shared, None), (None, last, None)]
    )
    check((None, first, None), *answers[0])
    check((None, last, None), *answers[3])
    for one, (sent, leaf, error) in ((done, answers[1]), (shared, answers[2])):
        assert one.wrap is not None
        assert sent is None
        assert error is None
        assert leaf == leaf_of(one, one.wrap)


def test_new_wrap_with_an_old_record() -> None:
    one = item(1, to=NEW)
    ((sent, leaf, _),) = BUILD([(None, one, None)])
    assert sent is not None
    assert one.wrap is not None
    assert sent.wrap == one.wrap
    assert len(sent.endorsed) == 1
    assert leaf == leaf_of(one, one.wrap)


def test_version_without_a_wrap_is_endorsed() -> None:
    one = wrapped(item(1), None)
    ((sent, leaf, _),) = BUILD([(None, one, None)])
    assert sent is not None
    assert sent.wrap is None
    assert len(sent.endorsed) == 1
    assert leaf is None


@pytest.mark.parametrize("wrong", ["wrap", "signature", "file", "record"])
def test_invalid_shared_version_is_skipped(wrong: str) -> None:
    good = [item(1, BOB, by=BOB_SIGNING), item(2), item(4, BOB, by=BOB_SIGNING)]
    bad = item(3, BOB, by=BOB_SIGNING)
    if wrong == "wrap":
        bad = tampered(bad)
    elif wrong == "signature":
        bad = item(3, BOB, by=OLD_SIGNING)
    elif wrong == "record":
        garbage = SignedRecord(b"no record", bad.content.signatures)
        bad = WrapItem("bob", bad.file_id, 1, garbage, None, bad.wrap)
    else:
        bad = WrapItem("bob", f"{9:032x}", 1, bad.content, None, bad.wrap)
    owners = [BOB, None, BOB]
    answers = BUILD(
        [(BOB, good[0], None), (None, good[1], None), (BOB, bad, None), (BOB, good[2], None)]
    )
    skipped = answers.pop(2)
    for owner, one, answer in zip(owners, good, answers, strict=True):
        check((owner, one, None), *answer)
    assert skipped[:2] == (RewrapItem("bob", bad.file_id, 1, None, ()), None)
    assert isinstance(skipped[2], SfscError)


def test_invalid_own_version_does_not_stop_the_others() -> None:
    good, bad, forged = item(1), tampered(item(2)), item(3, by=BOB_SIGNING)
    answers = BUILD([(None, bad, None), (None, forged, None), (None, good, None)])
    check((None, good, None), *answers[2])
    sent, leaf, error = answers[0]  # its record is valid, and is endorsed
    assert sent is not None
    assert (sent.wrap, len(sent.endorsed), leaf) == (None, 1, None)
    assert isinstance(error, Tampered)
    sent, leaf, error = answers[1]
    assert (sent, leaf) == (None, None)
    assert isinstance(error, BadRecord)


def test_wrap_for_a_lost_key_does_not_stop_the_others() -> None:
    good, lost = item(1), item(2)
    assert lost.wrap is not None
    elsewhere = wrapped(lost, changed(lost.wrap, key_id=bytes(32)))
    answers = BUILD([(None, elsewhere, None), (None, good, None)])
    check((None, good, None), *answers[1])
    assert isinstance(answers[0][2], KeyringError)


def test_known_signature_is_not_verified_again() -> None:
    good, by_bob = item(1), item(2, by=BOB_SIGNING)  # the signer tells whether it is verified
    digest = record_hash(by_bob.content.record)
    known = [KnownRevision(1, digest, vouched) for vouched in (True, False)]
    answers = BUILD([(None, good, None), (None, by_bob, known[0])])
    for one, answer in zip((good, by_bob), answers, strict=True):
        check((None, one, None), *answer)
    other = KnownRevision(1, record_hash(good.content.record), verified=True)
    for unknown in (known[1], other):
        ((_, _, error),) = BUILD([(None, by_bob, unknown)])
        assert isinstance(error, BadRecord)


def test_both_records_of_a_purged_file_are_endorsed() -> None:
    one = item(1)
    content = FileRecord.parse(one.content.record)
    purged = FileRecord(
        server=SERVER,
        owner="ada",
        actor="ada",
        generation=1,
        file_id=one.file_id,
        rev=2,
        op=PURGE,
        prev=record_hash(one.content.record),
        seen=(0, merkle.EMPTY_ROOT),
        created=1_800_000_001,
        readers=(),
        current=content.current,
        content=record_hash(one.content.record),
        purged=(1,),
    )
    head = signed(purged, OLD_SIGNING)
    ((sent, leaf, _),) = BUILD(
        [(None, WrapItem("ada", one.file_id, 1, one.content, head, None), None)]
    )
    assert sent is not None
    assert sent.endorsed == (record_hash(one.content.record), record_hash(head.record))
    assert leaf is None
