"""What a server may claim about our files: each false claim has its own error."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import merkle
from protocol.codec.values import Value, changed
from protocol.log.tags import tag_commit
from protocol.records.records import (
    ACCESS,
    DELETE,
    REENCRYPT,
    FileRecord,
    Statement,
    carried_content,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import FileView
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from sfsc.crypto.envelope import (
    ContentKey,
    Metadata,
    Recipient,
    RecordAuthor,
    WrapBatches,
    content_record,
)
from sfsc.crypto.primitives import file_id
from sfsc.crypto.segments import ciphertext_size
from sfsc.crypto.wrap import PrivateKey
from sfsc.errors import (
    BadRecord,
    Fork,
    IntegrityError,
    KeyringError,
    NotFound,
    Rollback,
    Tampered,
)
from sfsc.keys.keyring import DeviceKey, GenerationKeys, Keyring
from sfsc.trust.file_records import Entry, KnownRevision, OwnAccount
from tests.record_signing import packed_signature

SERVER = b"s" * 32
NAME_KEY = b"n" * 32
TAG_KEY = b"t" * 32
SIGNING = SigningKey.from_seed(b"1" * 32)
OTHER = SigningKey.from_seed(b"2" * 32)
WRAPPING = PrivateKey("x25519", b"3" * 32)
NAME = "docs/report.pdf"
FILE_ID = file_id(NAME_KEY, NAME)


def statement(**changes: Any) -> bytes:
    made = Statement(
        server=SERVER,
        user="ada",
        kind="user",
        n=1,
        generation=1,
        oldest=1,
        sign_pub=SIGNING.public,
        wrap_alg="x25519",
        wrap_pub=WRAPPING.public.encoded,
        devices=(),
        recovery=None,
        custodians=(),
        writers=(),
        voids=(),
        bundle_sha256=bytes(32),
        created=1,
        due=2,
        expires=3,
        prev=b"",
        reason="enrol",
        tag_commit=tag_commit(TAG_KEY),
    )
    return changed(made, **changes).encode()


def keyring(*statements: bytes) -> Keyring:
    return Keyring(
        server_id=SERVER,
        addresses=("localhost:1",),
        user="ada",
        first=record_hash(statement()),
        statements=statements or (statement(),),
        generations=(GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),),
        name_keys=(NAME_KEY,),
        tag_key=TAG_KEY,
        device=DeviceKey(bytes(16), bytes(32), bytes(32)),
        pending=None,
        pins=(),
    )


@cache
def account() -> OwnAccount:
    return OwnAccount.from_keyring(keyring())


class Made(Value):
    """A version as an honest client makes it: record, metadata, wraps."""

    record: FileRecord
    metadata: bytes
    wraps: Any

    @property
    def body(self) -> bytes:
        return self.record.encode()

    def changed(self, **changes: Any) -> Made:
        return changed(self, record=changed(self.record, **changes))


def version(
    number: int = 1, onto: bytes | None = None, *, name: str = NAME, stated_size: int = 10
) -> Made:
    key = ContentKey.generate()
    sealed = key.seal_metadata(Metadata(name, stated_size, 1_700_000_000_500_000_000, 0o644))
    record = content_record(
        RecordAuthor(SERVER, "ada", "ada", 1),
        key,
        file_id=FILE_ID,
        head=onto,
        version=number,
        ciphertext_size=ciphertext_size(10),
        segments_root=merkle.EMPTY_ROOT,
        metadata=sealed,
        readers=(),
        seen=(0, merkle.EMPTY_ROOT),
        created=1_800_000_000,
    )
    wraps = WrapBatches(SERVER, account().first).wrap(key, [Recipient("ada", WRAPPING.public)])
    return Made(record, sealed, wraps)


def reencrypted(made: Made) -> Made:
    """Return the record that replaced the content of `made`."""
    return version(1, made.body).changed(op=REENCRYPT)


def tombstone(head: FileRecord) -> FileRecord:
    return FileRecord(
        server=SERVER,
        owner="ada",
        actor="ada",
        generation=1,
        file_id=FILE_ID,
        rev=head.rev + 1,
        op=DELETE,
        prev=record_hash(head.encode()),
        seen=(0, merkle.EMPTY_ROOT),
        created=1_800_000_001,
        readers=(),
        current=0,
        content=b"",
    )


def access(head: FileRecord) -> FileRecord:
    """A record that changes the readers: it makes no content, and names the current version."""
    content = carried_content(head, head.encode())
    return changed(tombstone(head), op=ACCESS, current=head.current, content=content)


def signed(record: FileRecord | bytes, key: SigningKey = SIGNING, **changes: Any) -> SignedRecord:
    body = record if isinstance(record, bytes) else record.encode()
    right: dict[str, Any] = {"server": SERVER, "first": account().first}
    packed = packed_signature(key, body, **(right | changes))
    return SignedRecord(body, (GenerationSignature(1, packed),))


def view(made: Made, head: FileRecord | None = None) -> FileView:
    shown = None if head is None else signed(head)
    return FileView(5, 9, signed(made.record), shown, made.metadata, made.wraps)


# --- what is believed


def test_newest_version_is_verified() -> None:
    made = version()
    file = account().verify_newest(view(made), FILE_ID, None)
    assert (file.content, file.head, file.version, file.deleted) == (
        made.record,
        made.record,
        1,
        False,
    )
    _, metadata = account().open_version(file)
    assert metadata == Metadata(NAME, 10, 1_700_000_000_500_000_000, 0o644)
    assert account().listing_entry(file) == Entry(
        name=NAME,
        file_id=FILE_ID,
        version=1,
        revision=1,
        size=10,
        ciphertext_size=ciphertext_size(10),
        mtime=1_700_000_000,
        mode=0o644,
        created=1_800_000_000,
        mtime_ns=1_700_000_000_500_000_000,
    )


def test_deleted_file_shows_last_version_and_tombstone() -> None:
    made = version()
    end = tombstone(made.record)
    file = account().verify_newest(view(made, end), FILE_ID, None)
    assert (file.deleted, file.version, file.head) == (True, 1, end)
    with pytest.raises(NotFound):
        account().verify_version(view(made, end), FILE_ID, 0, None)
    assert account().verify_version(view(made, end), FILE_ID, 1, None).version == 1


def test_older_version_is_verified_with_the_head() -> None:
    first = version()
    second = version(2, first.body)
    shown = view(first, second.record)
    assert account().verify_version(shown, FILE_ID, 1, None).content == first.record
    known = KnownRevision(2, record_hash(second.body))
    assert account().verify_version(shown, FILE_ID, 1, known).head == second.record


@given(st.integers(-(2**40), 2**40), st.integers(0, 0o7777) | st.none(), st.integers(0, 2**53))
def test_entry_pack_round_trip(mtime: int, mode: int | None, size: int) -> None:
    entry = Entry("náme/ö", FILE_ID, 1, 2, size, size, mtime, mode, 5, sha256=bytes(32))
    assert Entry.unpack(entry.pack()) == entry


def test_missing_mtime_falls_back_to_created() -> None:
    record = version().record
    assert Entry.from_record(record, record, Metadata(NAME, 10, None, None)).mtime == record.created


# --- what is refused

Spoil = Callable[[Made], FileView]


def with_record(**changes: Any) -> Spoil:
    return lambda made: view(made.changed(**changes))


def with_signature(**how: Any) -> Spoil:
    return lambda made: changed(view(made), content=signed(made.record, **how))


def unsigned(made: Made) -> FileView:
    return changed(view(made), content=SignedRecord(made.body, ()))


def other_generation(made: Made) -> FileView:
    (entry,) = signed(made.record).signatures
    moved = GenerationSignature(2, entry.signature)
    return changed(view(made), content=SignedRecord(made.body, (moved,)))


def signed_twice(made: Made) -> FileView:
    (entry,) = signed(made.record).signatures
    wrong = GenerationSignature(1, bytes(64))
    return changed(view(made), content=SignedRecord(made.body, (wrong, entry)))


def flipped(made: Made) -> FileView:
    body = made.body
    (entry,) = signed(made.record).signatures
    at = body.index(b"docs") if b"docs" in body else len(body) - 1
    changes = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    return changed(view(made), content=SignedRecord(changes, (entry,)))


REFUSED: dict[str, tuple[Spoil, type[IntegrityError]]] = {
    "another server": (with_record(server=bytes(32)), BadRecord),
    "another owner": (with_record(owner="eve"), BadRecord),
    "another actor": (with_record(actor="eve"), BadRecord),
    "another file": (with_record(file_id="0" * 32), BadRecord),
    "another generation": (with_record(generation=2), BadRecord),
    "another signer": (with_signature(key=OTHER), BadRecord),
    "another label": (with_signature(label=Label.ENDORSEMENTS), BadRecord),
    "signed for another server": (with_signature(server=bytes(32)), BadRecord),
    "signed for another owner": (with_signature(first=bytes(32)), BadRecord),
    "signed as another generation": (with_signature(generation=2), BadRecord),
    "no signature": (unsigned, BadRecord),
    "signature of another generation": (other_generation, BadRecord),
    "two signatures": (signed_twice, BadRecord),
    "a flipped bit": (flipped, BadRecord),
    "another version current": (with_record(current=0), BadRecord),
    "no record": (
        lambda made: changed(view(made), content=signed(b"\x80")),
        BadRecord,
    ),
    "a tombstone as content": (
        lambda made: changed(view(made), content=signed(tombstone(made.record))),
        BadRecord,
    ),
    "a head that is not after it": (
        lambda made: view(made, version(1).record),
        BadRecord,
    ),
    "a head that does not follow": (
        lambda made: view(made, changed(tombstone(made.record), prev=bytes(32))),
        BadRecord,
    ),
    "a head of another file": (
        lambda made: view(made, changed(tombstone(made.record), file_id="0" * 32)),
        BadRecord,
    ),
    "a head that is not signed": (
        lambda made: changed(view(made), head=signed(tombstone(made.record), OTHER)),
        BadRecord,
    ),
    "an older version as the newest": (
        lambda made: view(made, version(2, made.body).record),
        Rollback,
    ),
    "an older version below a head that has no content": (
        lambda made: view(made, access(version(2, made.body).record)),
        Rollback,
    ),
    "an older version that was encrypted again": (
        lambda made: view(
            made.changed(op=REENCRYPT, rev=3, prev=bytes(32), current=2, content=bytes(32))
        ),
        Rollback,
    ),
    "a replaced content": (lambda made: view(made, access(reencrypted(made).record)), Rollback),
    "a content that was replaced by the head": (
        lambda made: view(made, reencrypted(made).record),
        Rollback,
    ),
    "a refused content under the accepted one": (
        lambda made: view(version(2, made.body), version(2, made.body).record),
        BadRecord,
    ),
    "a refused content under a later record": (
        lambda made: view(version(2, made.body), access(access(version(2, made.body).record))),
        Rollback,
    ),
    "a head that names another record": (
        lambda made: view(made, changed(access(made.record), content=bytes(32))),
        Rollback,
    ),
    "a writer's content": (with_record(writer="camera"), BadRecord),
}


@pytest.mark.parametrize("lie", REFUSED)
def test_false_views_are_refused(lie: str) -> None:
    spoil, error = REFUSED[lie]
    made = version()
    with pytest.raises(error):
        account().verify_newest(spoil(made), FILE_ID, None)
    assert account().verify_newest(view(made), FILE_ID, None).content == made.record


def test_older_revision_is_a_rollback_or_fork() -> None:
    first = version()
    second = version(2, first.body)
    other = version(2, first.body)
    third = version(3, other.body)
    seen = KnownRevision(2, record_hash(second.body))
    with pytest.raises(Rollback):
        account().verify_newest(view(first), FILE_ID, seen)
    with pytest.raises(Fork):
        account().verify_newest(view(other), FILE_ID, seen)
    with pytest.raises(Fork):
        account().verify_newest(view(third), FILE_ID, seen)
    assert account().verify_newest(view(second), FILE_ID, seen).version == 2
    follows = version(3, second.body)
    assert account().verify_newest(view(follows), FILE_ID, seen).version == 3
    # Without the head, the older version is a rollback.
    with pytest.raises(Rollback):
        account().verify_version(view(first), FILE_ID, 1, seen)


def test_another_version_than_requested_is_refused() -> None:
    first = version()
    second = version(2, first.body)
    with pytest.raises(Rollback):
        account().verify_version(view(second), FILE_ID, 1, None)
    with pytest.raises(Rollback):
        account().verify_version(view(first, second.record), FILE_ID, 0, None)
    assert account().verify_version(view(second), FILE_ID, 0, None).version == 2


def test_content_that_the_head_names_is_opened() -> None:
    made = version()
    for head in (None, access(made.record), access(access(made.record))):
        file = account().verify_newest(view(made, head), FILE_ID, None)
        assert account().open_version(file)[1].name == NAME
    again = reencrypted(made)
    file = account().verify_newest(view(again, access(again.record)), FILE_ID, None)
    assert account().open_version(file)[1].name == NAME


@pytest.mark.parametrize("deleted", [True, False])
def test_version_that_is_not_current_is_opened_once_it_is_confirmed(*, deleted: bool) -> None:
    """Nothing in the view says that it is not a content which was replaced or refused."""
    made = version()
    newer = tombstone(made.record) if deleted else version(2, made.body).record
    file = account().verify_version(view(made, newer), FILE_ID, 1, None)
    assert not file.is_confirmed
    for opened in (account().open_version, account().open_content_key, account().listing_entry):
        with pytest.raises(BadRecord, match="do not name"):
            opened(file)
    confirmed = changed(file, confirmed=True)
    assert account().open_version(confirmed)[1].name == NAME


def test_metadata_of_another_version_is_refused() -> None:
    one, other = version(), version()
    file = account().verify_newest(view(changed(one, metadata=other.metadata)), FILE_ID, None)
    with pytest.raises(Tampered):
        account().open_version(file)


def test_wrap_of_another_key_is_refused() -> None:
    one, other = version(), version()
    file = account().verify_newest(view(changed(one, wraps=other.wraps)), FILE_ID, None)
    with pytest.raises(Tampered):
        account().open_version(file)


def test_missing_wrap_is_a_keyring_error() -> None:
    file = account().verify_newest(view(changed(version(), wraps=())), FILE_ID, None)
    with pytest.raises(KeyringError):
        account().open_version(file)


def test_name_of_another_file_is_refused() -> None:
    file = account().verify_newest(view(version(name="docs/other.pdf")), FILE_ID, None)
    with pytest.raises(Tampered):
        account().open_version(file)


def test_wrong_size_in_metadata_is_refused() -> None:
    file = account().verify_newest(view(version(stated_size=11)), FILE_ID, None)
    with pytest.raises(BadRecord):
        account().open_version(file)


# --- whose signatures count


def test_signers_start_at_the_oldest_generation() -> None:
    first = statement()
    second = statement(
        n=2, generation=2, sign_pub=OTHER.public, prev=record_hash(first), reason="rotate"
    )
    third_key = SigningKey.from_seed(b"4" * 32).public
    both = OwnAccount.from_keyring(keyring(first, second))
    assert both.signers == {1: SIGNING.public, 2: OTHER.public}
    finished = statement(
        n=3,
        generation=2,
        oldest=2,
        sign_pub=OTHER.public,
        prev=record_hash(second),
        reason="finish",
    )
    assert OwnAccount.from_keyring(keyring(first, second, finished)).signers == {2: OTHER.public}
    voiding = statement(
        n=3,
        generation=3,
        sign_pub=third_key,
        prev=record_hash(second),
        voids=(record_hash(second),),
        reason="recovery",
    )
    assert OwnAccount.from_keyring(keyring(first, second, voiding)).signers == {
        1: SIGNING.public,
        3: third_key,
    }


# --- rotation: which keys count


def rotated(*, finished: bool) -> OwnAccount:
    """Ada after a rotation from `SIGNING` to `OTHER`, with or without its finish."""
    begin = {
        "n": 2,
        "generation": 2,
        "sign_pub": OTHER.public,
        "prev": record_hash(statement()),
        "reason": "rotate",
    }
    chain = [statement(), statement(**begin)]
    if finished:
        end = {**begin, "n": 3, "oldest": 2, "prev": record_hash(chain[-1]), "reason": "finish"}
        chain.append(statement(**end))
    ring = changed(
        keyring(*chain),
        generations=(
            GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),
            GenerationKeys(2, OTHER.seed, "x25519", WRAPPING.encoded),
        ),
    )
    return OwnAccount.from_keyring(ring)


def signed_by(body: bytes, *signatures: tuple[int, SigningKey, Label]) -> SignedRecord:
    first = account().first
    return SignedRecord(
        body,
        tuple(
            GenerationSignature(
                generation,
                packed_signature(
                    key, body, server=SERVER, first=first, generation=generation, label=label
                ),
            )
            for generation, key, label in signatures
        ),
    )


RECORD, ENDORSE = Label.RECORDS, Label.ENDORSEMENTS
OLD = (1, SIGNING, RECORD)
COUNTS: dict[str, tuple[tuple[tuple[int, SigningKey, Label], ...], bool, bool]] = {
    "an old record while its key counts": ((OLD,), False, True),
    "an endorsed one while its key counts": ((OLD, (2, OTHER, ENDORSE)), False, True),
    "an old record once its key is ended": ((OLD,), True, False),
    "an endorsed one": ((OLD, (2, OTHER, ENDORSE)), True, True),
    "endorsed by the old key itself": ((OLD, (2, SIGNING, ENDORSE)), True, False),
    "endorsed with a signature for something else": ((OLD, (2, OTHER, RECORD)), True, False),
    "an endorsement alone": (((2, OTHER, ENDORSE),), True, False),
    "endorsed, and signed by a stranger": (
        ((1, SigningKey.from_seed(b"9" * 32), RECORD), (2, OTHER, ENDORSE)),
        True,
        False,
    ),
    "endorsed by a generation that never was": ((OLD, (3, OTHER, ENDORSE)), True, False),
    "signed twice by one": ((OLD, OLD), False, False),
    "not signed": ((), False, False),
}


@pytest.mark.parametrize("case", COUNTS)
def test_valid_signatures_and_endorsements(case: str) -> None:
    signatures, finished, counts = COUNTS[case]
    who, made = rotated(finished=finished), version()
    signed = signed_by(made.body, *signatures)
    if counts:
        assert who.verify_record(signed, FILE_ID) == made.record
    else:
        with pytest.raises(BadRecord):
            who.verify_record(signed, FILE_ID)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("case", COUNTS)
def test_known_record_needs_only_a_valid_generation(case: str, *, finished: bool) -> None:
    """Its own signature was valid before, so it is not verified again; everything else is."""
    signatures, _, _ = COUNTS[case]
    made = version()
    shown = FileView(9, 9, signed_by(made.body, *signatures), None, made.metadata, made.wraps)
    known = KnownRevision(1, record_hash(made.body), verified=True)
    endorsed = (2, OTHER, ENDORSE) in signatures
    # A generation that was never valid is refused, even for a known record.
    never = changed(rotated(finished=finished), signers={2: OTHER.public}, former={})
    if case != "signed twice by one" and (endorsed or not finished):
        assert (
            rotated(finished=finished).verify_newest(shown, FILE_ID, known).content == made.record
        )
    else:
        with pytest.raises(BadRecord):
            rotated(finished=finished).verify_newest(shown, FILE_ID, known)
    with pytest.raises(BadRecord):
        never.verify_newest(shown, FILE_ID, known)


@pytest.mark.parametrize("known", [None, (1, "same", False), (1, "another", True)])
def test_unknown_record_is_verified(known: tuple[int, str, bool] | None) -> None:
    made, rest = version(), version().body
    shown = FileView(9, 9, signed(made.record, OTHER), None, made.metadata, made.wraps)
    if known is None:
        revision = None
    else:
        rev, which, vouched = known
        # With a lower `rev`: the known record is the one before this.
        body = made.body if which == "same" else rest
        revision = KnownRevision(rev if which == "same" else 0, record_hash(body), vouched)
    with pytest.raises(BadRecord):
        account().verify_newest(shown, FILE_ID, revision)


def test_historic_record_needs_no_endorsement() -> None:
    who, made = rotated(finished=True), version()
    assert who.verify_record(signed_by(made.body, OLD), FILE_ID, historic=True) == made.record
    with pytest.raises(BadRecord):
        who.verify_record(signed_by(made.body, (1, OTHER, RECORD)), FILE_ID, historic=True)


def test_record_signed_with_a_finished_key_is_refused() -> None:
    """Whatever a thief of the old key signs, no valid key has endorsed it."""
    who = rotated(finished=True)
    forged = version().changed(created=10**10)
    for signatures in ((OLD,), (OLD, (2, SIGNING, ENDORSE))):
        view = FileView(
            9, 9, signed_by(forged.body, *signatures), None, forged.metadata, forged.wraps
        )
        with pytest.raises(BadRecord):
            who.verify_newest(view, FILE_ID, None)
        with pytest.raises(BadRecord):
            who.verify_version(view, FILE_ID, 0, None)


# --- generations that a recovery has voided: shown, and never believed

ATTACKER = OTHER
OWNER = SigningKey.from_seed(b"4" * 32)
ATTACKER_WRAP = PrivateKey("x25519", b"5" * 32)
NEW_WRAP = PrivateKey("x25519", b"6" * 32)


def recovered(*, finished: bool = False, attacker_wrap: PrivateKey = ATTACKER_WRAP) -> OwnAccount:
    """Ada's account: generation 1 is hers, 2 an attacker's and finished, 3 hers again."""
    chain = [statement()]

    def add(**changes: Any) -> None:
        fields = {"n": len(chain) + 1, "prev": record_hash(chain[-1])}
        chain.append(statement(**(fields | changes)))

    stolen: dict[str, Any] = {
        "generation": 2,
        "sign_pub": ATTACKER.public,
        "wrap_pub": attacker_wrap.public.encoded,
    }
    add(**stolen, reason="rotate")
    first = record_hash(chain[-1])
    add(**stolen, oldest=2, reason="finish")
    back: dict[str, Any] = {
        "generation": 3,
        "sign_pub": OWNER.public,
        "wrap_pub": NEW_WRAP.public.encoded,
    }
    add(**back, voids=(first,), reason="recovery")
    if finished:
        add(**back, oldest=3, reason="finish")
    ring = changed(
        keyring(*chain),
        generations=(
            GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),
            GenerationKeys(3, OWNER.seed, "x25519", NEW_WRAP.encoded),
        ),
    )
    return OwnAccount.from_keyring(ring)


ATTACKER_SIGNED = (2, ATTACKER, RECORD)
OWNER_SIGNED = (3, OWNER, RECORD)


def attacker_version(**changes: Any) -> Made:
    return version().changed(generation=2, **changes)


def test_recovery_makes_the_owners_keys_valid_again() -> None:
    who = recovered()
    assert who.signers == {1: SIGNING.public, 3: OWNER.public}
    assert who.voided == {2: ATTACKER.public}
    assert who.voided_wraps == {ATTACKER_WRAP.public.key_id}
    assert recovered(finished=True).signers == {3: OWNER.public}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "signatures",
    [
        (ATTACKER_SIGNED,),
        (ATTACKER_SIGNED, (3, OWNER, ENDORSE)),
        (ATTACKER_SIGNED, (2, ATTACKER, ENDORSE)),
        (OWNER_SIGNED,),
    ],
)
def test_records_of_a_voided_generation_are_refused(
    signatures: tuple[tuple[int, SigningKey, Label], ...], *, finished: bool
) -> None:
    """They are refused even if the owner's current key endorses them."""
    who, made = recovered(finished=finished), attacker_version()
    signed = signed_by(made.body, *signatures)
    with pytest.raises(BadRecord):
        who.verify_record(signed, FILE_ID)
    view = FileView(5, 9, signed, None, made.metadata, made.wraps)
    with pytest.raises(BadRecord):
        who.verify_newest(view, FILE_ID, None)
    with pytest.raises(BadRecord):
        who.verify_version(view, FILE_ID, 0, None)


def test_endorsements_by_a_voided_generation_are_ignored() -> None:
    old = version()
    who = recovered(finished=True)
    with pytest.raises(BadRecord):
        who.verify_record(
            signed_by(old.body, (1, SIGNING, RECORD), (2, ATTACKER, ENDORSE)), FILE_ID
        )
    endorsed = signed_by(old.body, (1, SIGNING, RECORD), (3, OWNER, ENDORSE))
    assert who.verify_record(endorsed, FILE_ID) == old.record


def test_voided_content_below_the_owners_record_is_shown_but_not_opened() -> None:
    who, made = recovered(), attacker_version()
    end = changed(tombstone(made.record), generation=3)
    head = signed_by(end.encode(), OWNER_SIGNED)
    view = FileView(5, 9, signed_by(made.body, ATTACKER_SIGNED), head, made.metadata, made.wraps)
    file = who.verify_newest(view, FILE_ID, None)
    assert (file.deleted, file.version) == (True, 1)
    with pytest.raises(BadRecord):
        who.open_version(file)
    # Signed with a key other than the attacker's, it is refused.
    forged = changed(view, content=signed_by(made.body, (2, OWNER, RECORD)))
    with pytest.raises(BadRecord):
        who.verify_newest(forged, FILE_ID, None)
    # The attacker's tombstone does not delete the file.
    end = changed(end, generation=2)
    with pytest.raises(BadRecord):
        who.verify_newest(
            changed(view, head=signed_by(end.encode(), ATTACKER_SIGNED)), FILE_ID, None
        )
    assert who.verify_voidable(
        changed(view, head=signed_by(end.encode(), ATTACKER_SIGNED)), FILE_ID
    ).deleted


def test_voided_records_are_valid_in_a_history() -> None:
    who, made = recovered(finished=True), attacker_version()
    signed = signed_by(made.body, ATTACKER_SIGNED)
    record = who.verify_record(signed, FILE_ID, historic=True)
    assert who.is_voided(record)
    assert who.is_voided_signed(signed)
    assert not who.is_voided(version().record)


def test_owners_wrap_key_named_by_the_attacker_is_not_voided() -> None:
    """Otherwise everything wrapped for it would be given up as lost."""
    who = recovered(attacker_wrap=WRAPPING)
    assert who.voided_wraps == frozenset()
    assert not who.is_lost(version().wraps)
