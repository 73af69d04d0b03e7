"""Records and wraps of a generation that the recovery key has undone: shown, and never believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.records.records import record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import FileView
from sfsc.crypto.primitives import PrivateKey
from sfsc.errors import BadRecord
from sfsc.keys.keyring import GenerationKeys
from sfsc.trust.file_records import Account
from tests.sfsc.trust.test_file_records import (
    ENDORSE,
    FILE_ID,
    OTHER,
    RECORD,
    SIGNING,
    WRAPPING,
    Made,
    keyring,
    signed_by,
    statement,
    tombstone,
    version,
)

THIEF = OTHER
OWNER = SigningKey.from_seed(b"4" * 32)
HIS_WRAP = PrivateKey("x25519", b"5" * 32)
NEW_WRAP = PrivateKey("x25519", b"6" * 32)


def recovered(*, finished: bool = False, his: PrivateKey = HIS_WRAP) -> Account:
    """1 Ada's, 2 a thief's, which he has finished, 3 hers again."""
    chain = [statement()]

    def add(**changed: Any) -> None:
        fields = {"n": len(chain) + 1, "prev": record_hash(chain[-1])}
        chain.append(statement(**(fields | changed)))

    stolen: dict[str, Any] = {
        "generation": 2,
        "sign_pub": THIEF.public,
        "wrap_pub": his.public.encoded,
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
    ring = replace(
        keyring(*chain),
        generations=(
            GenerationKeys(1, SIGNING.seed, "x25519", WRAPPING.encoded),
            GenerationKeys(3, OWNER.seed, "x25519", NEW_WRAP.encoded),
        ),
    )
    return Account.of(ring)


HIS = (2, THIEF, RECORD)
MINE = (3, OWNER, RECORD)


def his(**changed: Any) -> Made:
    return version().changed(generation=2, **changed)


def test_the_owner_s_keys_count_again() -> None:
    who = recovered()
    assert who.signers == {1: SIGNING.public, 3: OWNER.public}
    assert who.voided == {2: THIEF.public}
    assert who.voided_wraps == {HIS_WRAP.public.key_id}
    assert recovered(finished=True).signers == {3: OWNER.public}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "signatures", [(HIS,), (HIS, (3, OWNER, ENDORSE)), (HIS, (2, THIEF, ENDORSE)), (MINE,)]
)
def test_what_he_has_signed_counts_for_nothing(
    signatures: tuple[tuple[int, SigningKey, Label], ...], *, finished: bool
) -> None:
    """Not even where the owner's present key vouches for it."""
    who, made = recovered(finished=finished), his()
    signed = signed_by(made.body, *signatures)
    with pytest.raises(BadRecord):
        who.record(signed, FILE_ID)
    view = FileView(5, signed, None, made.metadata, made.wraps)
    with pytest.raises(BadRecord):
        who.newest(view, FILE_ID, None)
    with pytest.raises(BadRecord):
        who.opened(view, FILE_ID, 0, None)


def test_he_vouches_for_nobody() -> None:
    old = version()
    who = recovered(finished=True)
    with pytest.raises(BadRecord):
        who.record(signed_by(old.body, (1, SIGNING, RECORD), (2, THIEF, ENDORSE)), FILE_ID)
    endorsed = signed_by(old.body, (1, SIGNING, RECORD), (3, OWNER, ENDORSE))
    assert who.record(endorsed, FILE_ID) == old.record


def test_below_the_owner_s_record_his_is_shown_and_not_opened() -> None:
    who, made = recovered(), his()
    end = replace(tombstone(made.record), generation=3)
    head = signed_by(end.encode(), MINE)
    view = FileView(5, signed_by(made.body, HIS), head, made.metadata, made.wraps)
    file = who.newest(view, FILE_ID, None)
    assert (file.deleted, file.version) == (True, 1)
    with pytest.raises(BadRecord):
        who.open(file)
    # Signed with another key than his it is nothing at all.
    forged = replace(view, content=signed_by(made.body, (2, OWNER, RECORD)))
    with pytest.raises(BadRecord):
        who.newest(forged, FILE_ID, None)
    # And his tombstone is no end.
    end = replace(end, generation=2)
    with pytest.raises(BadRecord):
        who.newest(replace(view, head=signed_by(end.encode(), HIS)), FILE_ID, None)
    assert who.standing_file(replace(view, head=signed_by(end.encode(), HIS)), FILE_ID).deleted


def test_a_history_shows_it() -> None:
    who, made = recovered(finished=True), his()
    signed = signed_by(made.body, HIS)
    record = who.record(signed, FILE_ID, historic=True)
    assert who.is_voided(record)
    assert who.is_undone(signed)
    assert not who.is_voided(version().record)


def test_a_key_of_the_owner_s_that_he_has_named_as_his() -> None:
    """Else all that is wrapped for it would be given up as lost."""
    who = recovered(his=WRAPPING)
    assert who.voided_wraps == frozenset()
    assert not who.is_lost(version().wraps)
