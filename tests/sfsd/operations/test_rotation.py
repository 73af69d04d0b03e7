"""A user's identity chain: new statements and their bundles, and rotations."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import merkle
from protocol.codec.base64text import from_text, to_text
from protocol.codec.values import changed
from protocol.records.record_signatures import (
    RecordSigner,
    RecordTree,
    signed_count,
    verify_record_signature,
)
from protocol.records.records import (
    DELETE,
    PURGE,
    Device,
    RecoveryKey,
    RotationFinish,
    Statement,
    record_hash,
    version_leaf,
    wrap_leaf,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.accounts import ForceRotation, Usage
from protocol.wire.messages.base import DamagedVersion
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.rotation import (
    GetBundle,
    GetWraps,
    NewStatement,
    Rewrap,
    RewrapItem,
    Rewrapped,
    RotateBegin,
    RotateFinish,
    SealedBundle,
    WrapItem,
    WrapsPage,
    with_full_wraps,
)
from protocol.wire.messages.sharing import Identity, Lookup
from sfsd.errors import Stale
from sfsd.operations.rotation import NEWEST_ENDORSEMENTS, rewrap
from sfsd.rules.context import Access, Transaction
from sfsd.settings.config import Config, ConnectionLimits
from sfsd.settings.kinds import DAY
from sfsd.storage.paths import VersionPaths
from tests.opens import open_one
from tests.sfsd.builders import (
    SERVER_ID,
    XWING_PUBLIC,
    Daemon,
    Person,
    Result,
    check_receipt,
    check_tags,
    daemon,
    done,
    file_id,
    login,
    refused,
)

DEVICE = Device(b"d" * 16, SigningKey.from_seed(b"d" * 32).public, XWING_PUBLIC, "device")


def onto(
    before: Statement,
    *keys: SigningKey,
    bundle: bytes = b"bundle 2",
    code: SigningKey | None = None,
    **changes: Any,
) -> NewStatement:
    """Return the next statement, signed by `keys`. `code` is a recovery key that it introduces."""
    fields: dict[str, Any] = {
        "n": before.n + 1,
        "prev": record_hash(before.encode()),
        "reason": "device",
        "voids": (),
        "bundle_sha256": hashlib.sha256(bundle).digest(),
    }
    body = changed(before, **(fields | changes)).encode()
    signatures = tuple(key.sign(Label.STATEMENT, body) for key in keys)
    possession = b"" if code is None else code.sign(Label.RECOVERY_POSSESSION, body)
    return NewStatement(body, signatures, bundle, possession)


def hashes_of(items: Sequence[RewrapItem]) -> str:
    """Return what the log entry names of these items."""
    made = [
        (merkle.leaf_hash(wrap_leaf(one.owner, one.file_id, one.version, one.wrap.wrapped)),)
        if one.wrap
        else ()
        for one in items
    ]
    endorsed = [one.endorsed for one in items]
    hashes = [
        digest for both in zip(made, endorsed, strict=True) for each in both for digest in each
    ]
    return to_text(b"".join(digest[:16] for digest in hashes))


def chain(reply: Result) -> list[bytes]:
    assert isinstance(reply, Identity), reply
    return [one.statement for one in reply.statements]


def test_a_device_statement_extends_the_chain(served: Daemon, ada: Person) -> None:
    assert ada.ask(GetBundle(0)) == SealedBundle(ada.bundle)
    joined = onto(ada.first, ada.key, devices=(*ada.first.devices, DEVICE))
    entry = check_receipt(done(ada.ask(joined)), joined.statement)
    assert (entry.op, entry.owner, entry.detail["n"]) == ("statement", "ada", 2)
    assert entry.paths.keys() == {"ada/statements.json", "ada/bundle", "ada/bundle.1"}
    assert ada.ask(GetBundle(0)) == SealedBundle(b"bundle 2")
    bodies = [ada.first.encode(), joined.statement]
    bob = served.person("bob")
    assert chain(ada.ask(Lookup("ada", 1))) == chain(bob.ask(Lookup("ada", 1))) == bodies
    assert chain(bob.ask(Lookup("ada", 2))) == bodies[1:]
    # The same request again gets the same receipt, and later requests work.
    again = check_receipt(done(ada.ask(joined)), joined.statement)
    assert again.seq == entry.seq
    ada.put(file_id(1))
    assert len(served.entries("statement")) == 1


def test_the_chain_survives_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        joined = onto(ada.first, ada.key, devices=(*ada.first.devices, DEVICE))
        done(ada.ask(joined))
    with daemon(tmp_path, served.clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        assert chain(ada.ask(Lookup("ada", 2))) == [joined.statement]
        assert ada.ask(GetBundle(0)) == SealedBundle(b"bundle 2")


def test_a_statement_for_an_older_head_gives_conflict(ada: Person) -> None:
    first = onto(ada.first, ada.key, devices=(*ada.first.devices, DEVICE))
    second = onto(ada.first, ada.key, devices=(), created=ada.first.created + 1)
    done(ada.ask(first))
    refused(ada.ask(second), "conflict")
    refused(ada.ask(onto(ada.first, ada.key, n=7)), "conflict")


def test_the_recovery_key_continues_the_chain(served: Daemon, ada: Person) -> None:
    code = SigningKey.generate()
    recovery = RecoveryKey(code.public, b"y" * 1216)
    made = onto(ada.first, ada.key, reason="recovery-key", recovery=recovery, code=code)
    done(ada.ask(made))
    second = Statement.parse(made.statement)
    session = served.open(login("ada", code, generation=0))[0]
    assert served.ask(session, GetBundle(0)) == SealedBundle(b"bundle 2")
    next_code = SigningKey.generate()
    replaced = RecoveryKey(next_code.public, b"z" * 1216)
    stolen = onto(second, ada.key, reason="recovery-key", recovery=replaced, code=next_code)
    refused(ada.ask(stolen), "bad-request")
    rightful = onto(second, ada.key, code, reason="recovery-key", recovery=replaced, code=next_code)
    refused(served.ask(session, rightful), "not-allowed")
    entry = check_receipt(done(ada.ask(rightful)), rightful.statement)
    assert len(entry.sigs) == 2
    assert from_text(entry.detail["possession"]) == rightful.possession
    shown = ada.ask(Lookup("ada", 3))
    assert isinstance(shown, Identity)
    assert shown.statements[0].possession == rightful.possession


def test_a_new_recovery_key_must_sign(ada: Person) -> None:
    code = SigningKey.generate()
    fields: dict[str, Any] = {
        "reason": "recovery-key",
        "recovery": RecoveryKey(code.public, b"y" * 1216),
    }
    unproven = onto(ada.first, ada.key, **fields)
    refused(ada.ask(unproven), "bad-request")
    stranger = onto(ada.first, ada.key, code=SigningKey.generate(), **fields)
    refused(ada.ask(stranger), "refused")
    of_another = onto(ada.first, ada.key, created=ada.first.created + 1, code=code, **fields)
    refused(ada.ask(changed(unproven, possession=of_another.possession)), "refused")
    useless = changed(onto(ada.first, ada.key), possession=of_another.possession)
    refused(ada.ask(useless), "bad-request")
    done(ada.ask(of_another))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a rotation": ("bad-request", {"reason": "rotate"}),
    "a finish": ("bad-request", {"reason": "finish"}),
    "another generation": ("bad-request", {"generation": 2}),
    "another key": ("bad-request", {"wrap_pub": b"v" * 32}),
    "another bundle": ("bad-request", {"bundle_sha256": bytes(32)}),
    "a clock that is wrong": ("clock", {"created": 5}),
    "a device with an impossible key": (
        "bad-request",
        {"devices": (changed(DEVICE, sign_pub=bytes(32)),)},
    ),
    "a key of two devices": (
        "bad-request",
        {"devices": (DEVICE, changed(DEVICE, device_id=bytes(16)))},
    ),
    "a device twice": ("bad-request", {"devices": (DEVICE, DEVICE)}),
    "another user": ("bad-request", {"user": "bob"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_statement_that_breaks_a_rule_is_refused(ada: Person, case: str) -> None:
    code, changes = WRONG[case]
    refused(ada.ask(onto(ada.first, ada.key, **changes)), code)
    assert chain(ada.ask(Lookup("ada", 1))) == [ada.first.encode()]


def test_a_statement_signed_by_another_key_is_refused(ada: Person) -> None:
    refused(ada.ask(onto(ada.first, SigningKey.generate())), "refused")
    refused(ada.ask(NewStatement(b"\x80", (), b"")), "bad-request")


def test_a_bundle_that_does_not_match_its_statement(served: Daemon, ada: Person) -> None:
    path = served.context.store.users / "ada" / "bundle"
    path.write_bytes(b"another")
    refused(ada.ask(GetBundle(0)), "damaged")
    path.unlink()
    refused(ada.ask(GetBundle(0)), "damaged")


def test_a_missing_bundle_is_damaged(served: Daemon, ada: Person) -> None:
    served.context.store.read("ada/bundle")
    (served.context.root / "store" / "users" / "ada" / "bundle").unlink()
    refused(ada.ask(GetBundle(0)), "damaged")


def test_a_long_chain(served: Daemon, ada: Person) -> None:
    before = ada.first
    for number in range(40):
        device = changed(DEVICE, device_id=bytes([number]) * 16)
        made = onto(before, ada.key, devices=(device,))
        done(ada.ask(made))
        before = Statement.parse(made.statement)
    found: list[bytes] = []
    first = 1
    while first:
        page = ada.ask(Lookup("ada", first))
        assert isinstance(page, Identity)
        found += chain(page)
        first = page.next
    assert len(found) == 41
    assert found[-1] == before.encode()


@pytest.mark.parametrize("days", [1, 40])
def test_endorsements_that_a_record_keeps(served: Daemon, ada: Person, days: int) -> None:
    """The newest eight, and those of 30 days: a thief who rotates often cannot push them out."""
    ada.put(file_id(0), b"content")
    rotations = 39
    for _ in range(rotations):
        served.clock.now += days * DAY
        ada.who = ada.log_in()
        begun(ada)
        reply = ada.ask(ada.rewrap(*(rewrapped(ada, one) for one in wraps(ada))))
        assert isinstance(reply, Rewrapped)
        ending = finished(ada)
        done(ada.ask(ending))
        ada.first = Statement.parse(ending.statement)
    (item,) = wraps(ada, everything=True)
    generations = [one.generation for one in item.content.signatures]
    newest = rotations + 1
    # Generation `newest - 31` was in force 30 days before the last rotation ended.
    oldest = newest - NEWEST_ENDORSEMENTS + 1 if days == 40 else newest - 31
    assert generations == [1, *range(oldest, newest + 1)]


@pytest.mark.parametrize("after", ["b\0b.00.1", f"ada/.{file_id(1)}.1", "../x.0.1", "ada.1", "é"])
def test_a_malformed_cursor_means_the_start(ada: Person, after: str) -> None:
    """A cursor is untrusted text and never becomes a path of the store."""
    ada.put(file_id(1))
    page = ada.ask(GetWraps(after, 1, all_of_them=True))
    assert isinstance(page, WrapsPage)
    assert [item.file_id for item in page.items] == [file_id(1)]


def test_the_number_of_rotations_is_limited(served: Daemon, ada: Person) -> None:
    """A thief could otherwise push out the owner's endorsements and bundles."""
    served.context.config = changed(served.context.config, limits=ConnectionLimits(rotations=3))
    for _ in range(3):
        served.clock.now += DAY
        begun(ada)
    refused(ada.ask(renewed(ada)), "denied")
    served.clock.now += 29 * DAY  # the first rotation is too old to count
    begun(ada)


def test_the_number_of_statements_is_limited(served: Daemon, ada: Person) -> None:
    """Each statement rewrites the whole chain, and every user's changes wait meanwhile."""
    served.context.config = changed(served.context.config, limits=ConnectionLimits(rotations=2))

    def joined(number: int) -> NewStatement:
        now = int(served.clock.now)
        device = changed(DEVICE, device_id=bytes([number]) * 16)
        return onto(ada.first, ada.key, devices=(*ada.first.devices[:1], device), created=now)

    for number in range(4):
        served.clock.now += DAY
        made = joined(number)
        done(ada.ask(made))
        ada.first = Statement.parse(made.statement)
    refused(ada.ask(joined(9)), "denied")
    begun(ada)  # a required rotation is still possible, and its finish too
    ended = finished(ada)
    done(ada.ask(ended))
    ada.first = Statement.parse(ended.statement)
    refused(ada.ask(finished(ada)), "bad-request")  # one finish for each rotation
    served.clock.now += 28 * DAY  # the first statements are too old to count
    done(ada.ask(joined(9)))


def renewed(person: Person, reason: str = "rotate", **changes: Any) -> RotateBegin:
    """Return a statement of the person's next generation, whose keys `begun` adopts."""
    person.next_key, person.next_wrap = SigningKey.generate(), secrets.token_bytes(32)
    before = person.first
    now = int(person.served.clock.now)
    fields: dict[str, Any] = {
        "n": before.n + 1,
        "generation": before.generation + 1,
        "sign_pub": person.next_key.public,
        "wrap_pub": person.next_wrap,
        "created": now,
        "due": now + 90 * DAY,
        "expires": now + 120 * DAY,
        "prev": record_hash(before.encode()),
        "reason": reason,
        "voids": (),
        "bundle_sha256": hashlib.sha256(b"bundle 2").digest(),
    }
    person.renewed = changed(before, **(fields | changes))
    body = person.renewed.encode()
    keys = (person.next_key, person.key)
    return RotateBegin(body, tuple(key.sign(Label.STATEMENT, body) for key in keys), b"bundle 2")


def begun(person: Person, **changes: Any) -> None:
    """Begin a rotation and log in with the new key."""
    message = renewed(person, **changes)
    check_receipt(done(person.ask(message)), message.statement)
    person.key, person.wrap_pub = person.next_key, person.next_wrap
    person.first, person.generation = person.renewed, person.renewed.generation
    person.who = person.log_in()


def test_a_log_that_a_thief_filled_stops_no_rotation(tmp_path: Path) -> None:
    config = Config(limits=ConnectionLimits(user_log_lines_per_day=1))
    with daemon(tmp_path, config=config) as served:
        ada = served.person("ada")
        ada.put(file_id(1))
        refused(ada.ask(ada.version(file_id(2), b"c" * 56).small()), "busy")
        message = renewed(ada)
        check_receipt(done(ada.ask(message)), message.statement)


def wraps(person: Person, *, everything: bool = False, limit: int = 256) -> list[WrapItem]:
    found: list[WrapItem] = []
    after = ""
    while True:
        page = person.ask(GetWraps(after, limit, everything))
        assert isinstance(page, WrapsPage), page
        found += with_full_wraps(page.items)
        if not page.next:
            return found
        after = page.next


def rewrapped(person: Person, item: WrapItem, **changes: Any) -> RewrapItem:
    records = [item.content] + ([] if item.head is None else [item.head])
    endorsed = tuple(record_hash(signed.record) for signed in records)
    wrap = None if item.wrap is None else person.wrap()
    made = RewrapItem(item.owner, item.file_id, item.version, wrap, endorsed)
    return changed(made, **changes)


def finished(person: Person, **changes: Any) -> RotateFinish:
    before = person.first
    body = changed(
        before,
        n=before.n + 1,
        oldest=before.generation,
        prev=record_hash(before.encode()),
        reason="finish",
        voids=(),
        created=int(person.served.clock.now),
        bundle_sha256=hashlib.sha256(b"bundle 3").digest(),
    ).encode()
    leaves = [
        merkle.leaf_hash(wrap_leaf(one.owner, one.file_id, one.version, one.wrap.wrapped))
        for one in wraps(person, everything=True)
        if one.wrap is not None and one.wrap.key_id == before.key_id
    ]
    empty = merkle.root([])
    finish = RotationFinish(
        before.server,
        before.user,
        record_hash(body),
        person.generation,
        1,
        len(leaves),
        merkle.root(leaves),
        0,
        empty,
    )
    record = changed(finish, **changes).encode()
    signature = person.key.sign(Label.ROTATION_FINISH, record)
    return RotateFinish(
        body, (person.key.sign(Label.STATEMENT, body),), b"bundle 3", record, signature
    )


def test_a_rotation_from_begin_to_finish(served: Daemon, ada: Person) -> None:
    for number in range(5):
        ada.put(file_id(number), b"content")
    ada.put(file_id(1), b"again")
    ada.delete(file_id(2))
    old = ada.who
    begun(ada)
    assert [(one.file_id, one.version) for one in wraps(ada)] == [
        (file_id(0), 1),
        (file_id(1), 1),
        (file_id(1), 2),
        (file_id(2), 1),
        (file_id(3), 1),
        (file_id(4), 1),
    ]
    assert wraps(ada, limit=1) == wraps(ada)
    # The old session may only look for the new keys.
    refused(served.ask(old, Usage()), "stale-generation")
    assert isinstance(served.ask(old, GetBundle(0)), SealedBundle)
    # So may a session that a reconnecting client opens with the old key.
    again, _ = served.open(ada.login(generation=1))
    assert again.access is Access.RESTRICTED
    refused(served.ask(again, Usage()), "stale-generation")
    assert isinstance(served.ask(again, GetBundle(0)), SealedBundle)
    refused(ada.ask(finished(ada)), "conflict")
    items = tuple(rewrapped(ada, one) for one in wraps(ada))
    request = ada.rewrap(*items[:4])
    reply = ada.ask(request)
    assert isinstance(reply, Rewrapped)
    assert reply.receipt is not None
    entry = check_receipt(reply.receipt)
    assert (entry.op, entry.detail["count"], reply.left) == ("rewrap", 4, ())
    assert entry.detail["items"] == hashes_of(items[:4])
    assert len(wraps(ada)) == 2
    # Those that are renewed already are not stored again, and the reply says so.
    request = ada.rewrap(*items)
    reply = ada.ask(request)
    assert isinstance(reply, Rewrapped)
    assert reply.receipt is not None
    entry = check_receipt(reply.receipt)
    assert (entry.detail["count"], reply.left) == (2, (0, 1, 2, 3))
    assert entry.detail["items"] == hashes_of(items[4:])
    assert ada.ask(ada.rewrap(*items)) == Rewrapped(None, (0, 1, 2, 3, 4, 5))
    assert wraps(ada) == []
    end = finished(ada)
    entry = check_receipt(done(ada.ask(end)), end.statement)
    assert (entry.op, entry.detail["files"]) == ("rotate-finish", 6)
    assert check_receipt(done(ada.ask(end))).seq == entry.seq
    assert [Statement.parse(body).reason for body in chain(ada.ask(Lookup("ada", 1)))] == [
        "enrol",
        "rotate",
        "finish",
    ]
    check_tags(served, {"ada": ada.tag_key})


def test_a_rotation_continues_after_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        ada.put(file_id(1), b"content")
        begun(ada)
        for item in wraps(ada):
            done_ = ada.ask(ada.rewrap(rewrapped(ada, item)))
            assert isinstance(done_, Rewrapped)
    with daemon(tmp_path, served.clock) as served:
        ada.served = served
        ada.who = ada.log_in()
        assert wraps(ada) == []
        (item,) = wraps(ada, everything=True)
        assert [one.generation for one in item.content.signatures] == [1, 2]
        ada.put(file_id(1), b"again")
        done(ada.ask(finished(ada)))


def test_records_signed_by_old_keys_are_refused(served: Daemon, ada: Person) -> None:
    ada.put(file_id(1), b"content")
    key = ada.key
    begun(ada)
    fresh, ada.key, ada.generation = ada.key, key, 1
    late = ada.version(file_id(1), b"late")
    refused(ada.ask(late.small()), "stale-generation")
    ada.key, ada.generation = fresh, 2
    stale = ada.version(file_id(1), b"late", wraps=(ada.wrap(key_id=b"k" * 32),))
    refused(ada.ask(stale.small()), "stale-recipient")
    ada.put(file_id(1), b"now")


def test_a_damaged_sidecar_does_not_block_the_finish(served: Daemon, ada: Person) -> None:
    for number in range(3):
        ada.put(file_id(number), b"content")
    begun(ada)
    items = wraps(ada)
    done_items = tuple(rewrapped(ada, one) for one in items if one.file_id != file_id(1))
    answer = ada.ask(ada.rewrap(*done_items))
    assert isinstance(answer, Rewrapped)
    assert answer.left == ()
    # The daemon has the parsed sidecar in its cache, and only reading it shows the damage.
    path = VersionPaths.for_version("ada", file_id(1), 1).sidecar
    sidecar = served.context.root / "store/users" / path
    sidecar.write_bytes(sidecar.read_bytes().replace(b"metadata", b"metadatA"))
    page = ada.ask(GetWraps("", 256, True))
    assert isinstance(page, WrapsPage)
    assert page.damaged == (DamagedVersion("ada", file_id(1), 1),)
    assert {one.file_id for one in page.items} == {file_id(0), file_id(2)}
    refused(ada.ask(finished(ada)), "conflict")
    leaf = merkle.leaf_hash(version_leaf("ada", file_id(1), 1))
    wrong = merkle.leaf_hash(version_leaf("ada", file_id(0), 1))
    refused(ada.ask(finished(ada, left_out=1, left_out_root=merkle.root([wrong]))), "conflict")
    entry = check_receipt(
        done(ada.ask(finished(ada, left_out=1, left_out_root=merkle.root([leaf]))))
    )
    assert (entry.detail["files"], entry.detail["left_out"]) == (2, 1)


def test_a_rotation_ends_a_forced_block(served: Daemon, ada: Person) -> None:
    ada.put(file_id(1), b"content")
    operator = served.operator()
    entry = check_receipt(done(served.ask(operator, ForceRotation("ada", "stolen laptop"))))
    assert (entry.op, entry.detail["reason"]) == ("rotate-force", "stolen laptop")
    refused(ada.ask(ada.version(file_id(1), b"x").small()), "rotation-required")
    notice = served.open(ada.login())[1].notice
    assert notice is not None
    assert (notice.state, notice.reason) == ("forced", "stolen laptop")
    begun(ada)
    ada.put(file_id(1), b"again")
    assert served.open(ada.login())[1].notice is None
    refused(served.ask(operator, ForceRotation("eve", "")), "not-found")


def test_a_statement_that_keeps_the_keys_does_not_end_a_forced_block(
    served: Daemon, ada: Person
) -> None:
    done(served.ask(served.operator(), ForceRotation("ada", "stolen laptop")))
    joined = onto(ada.first, ada.key, devices=(*ada.first.devices, DEVICE))
    done(ada.ask(joined))
    ada.first = Statement.parse(joined.statement)
    refused(ada.ask(ada.version(file_id(1), b"x").small()), "rotation-required")
    begun(ada)
    ada.put(file_id(1), b"x")


def test_due_and_overdue_notices(served: Daemon, ada: Person) -> None:
    ada.put(file_id(1), b"content")

    def state() -> str | None:
        notice = served.open(ada.login())[1].notice
        return None if notice is None else notice.state

    start = served.clock.now
    for days, told in ((89.9, None), (90.1, "due"), (119.9, "due"), (120.1, "overdue")):
        served.clock.now = start + days * DAY
        assert state() == told, days
        if told != "overdue":
            ada.put(file_id(1), b"again")
    refused(ada.ask(ada.version(file_id(1), b"x").small()), "rotation-required")
    moved = ada.signed(ada.record(file_id(1), DELETE, current=0, to=file_id(2)))
    refused(ada.ask(moved.change()), "rotation-required")
    assert isinstance(ada.ask(open_one("ada", file_id(1), 0)), OpenedVersion)
    ada.delete(file_id(1))  # it makes room, which the rotation may need
    begun(ada)
    assert state() is None
    ada.put(file_id(1), b"again")


def test_a_login_with_older_keys_gets_a_notice(served: Daemon, ada: Person) -> None:
    begun(ada)
    notice = served.open(ada.login(generation=1))[1].notice
    assert notice is not None
    assert notice.state == "rotated"


WRONG_BEGINNINGS: dict[str, dict[str, Any]] = {
    "the generation is left as it is": {"generation": 1},
    "a generation is skipped": {"generation": 3},
    "older ones are ended at once": {"oldest": 2},
    "it lasts too long": {"due": 2_900_000_000},
    "it recovers without the code": {"reason": "recovery"},
    "it is of a device": {"reason": "device"},
    "a malformed key": {"wrap_pub": b"short"},
}


@pytest.mark.parametrize("case", WRONG_BEGINNINGS)
def test_a_rotate_begin_that_breaks_a_rule_is_refused(ada: Person, case: str) -> None:
    refused(ada.ask(renewed(ada, **WRONG_BEGINNINGS[case])), "bad-request")


def test_the_second_of_two_rotations_gives_conflict(ada: Person) -> None:
    first, second = renewed(ada), renewed(ada)
    done(ada.ask(second))
    refused(ada.ask(first), "stale-generation")


def test_invalid_rewraps_are_refused(served: Daemon, ada: Person) -> None:
    ada.put(file_id(1), b"content")
    bob = served.person("bob")
    bob.put(file_id(1), b"content")
    begun(ada)
    (item,) = wraps(ada)
    right = rewrapped(ada, item)
    assert right.wrap is not None
    for code, wrong in (
        ("stale-recipient", changed(right, wrap=ada.wrap(key_id=b"k" * 32))),
        ("bad-request", changed(right, wrap=ada.wrap(wrapped=b"short"))),
        ("bad-request", changed(right, wrap=changed(right.wrap, user="bob"))),
        ("bad-request", changed(right, owner="bob")),
    ):
        refused(ada.ask(ada.rewrap(wrong)), code)
    refused(ada.ask(ada.rewrap(right, right)), "bad-request")
    for code, wrong, endorsement in forged_endorsements(ada, right):
        refused(ada.ask(Rewrap((wrong,), endorsement)), code)
    assert ada.ask(ada.rewrap(changed(right, endorsed=(bytes(32),)))) == Rewrapped(None, (0,))
    assert ada.ask(ada.rewrap(changed(right, version=1, wrap=None, endorsed=()))) == Rewrapped(
        None, (0,)
    )
    # A missing file and one that is not shared with ada give the same reply.
    for elsewhere in (
        changed(right, file_id=file_id(9)),
        changed(right, version=7),
        changed(right, owner="bob", endorsed=()),
    ):
        assert ada.ask(ada.rewrap(elsewhere)) == Rewrapped(None, (0,))
    assert len(wraps(ada)) == 1


def forged_endorsements(ada: Person, right: RewrapItem) -> Iterator[tuple[str, RewrapItem, bytes]]:
    """Yield (expected error, item, wrong endorsement)."""
    signer = RecordSigner(ada.key, SERVER_ID, ada.origin, ada.generation)
    tree = RecordTree.of_records(right.endorsed)
    body = tree.signed_body(SERVER_ID, ada.origin, ada.generation)
    valid = signer.endorse(right.endorsed)
    yield "refused", right, b""
    yield "refused", right, bytes(64)
    yield "refused", right, valid[:-1]
    yield "refused", right, signer.endorse([bytes(32)])
    yield "refused", right, signer.endorse([*right.endorsed, bytes(32)])
    yield "refused", right, SigningKey.generate().sign(Label.ENDORSEMENTS, body)
    yield "refused", right, ada.key.sign(Label.RECORDS, body)
    for field in ({"server": bytes(32)}, {"owner_first": bytes(32)}, {"generation": 1}):
        yield "refused", right, changed(signer, **field).endorse(right.endorsed)
    # After a rotation on another device the error says so, not that signatures are wrong.
    yield "stale-recipient", changed(right, wrap=ada.wrap(key_id=b"k" * 32)), bytes(64)
    # Items are also checked if their version does not exist.
    yield "refused", changed(right, version=7), bytes(64)
    yield "bad-request", changed(right, endorsed=()), valid


def test_wraps_of_two_owners_are_not_stored_together(served: Daemon, ada: Person) -> None:
    """The log entry of a request names one owner, and each wrap is for one owner's files."""
    bob = served.person("bob")
    bob.put(
        file_id(1), b"shared", readers=(("ada", ada.origin, 0),), wraps=(bob.wrap(), ada.wrap())
    )
    ada.put(file_id(2), b"own")
    begun(ada)
    own, shared = (
        rewrapped(ada, item, **({} if item.owner == "ada" else {"endorsed": ()}))
        for item in wraps(ada)
    )
    assert (own.owner, shared.owner) == ("ada", "bob")
    before = wraps(ada)
    for items in ((own, shared), (shared, own)):
        refused(ada.ask(ada.rewrap(*items)), "bad-request")
    assert wraps(ada) == before
    for item in (own, shared):
        assert ada.ask(ada.rewrap(item)) != Rewrapped(None, (0,))
    assert wraps(ada) == []


def test_one_signature_endorses_at_most_256_records(ada: Person) -> None:
    ada.put(file_id(1), b"content")
    begun(ada)
    (item,) = wraps(ada)
    right = rewrapped(ada, item)
    hashes = [number.to_bytes(32) for number in range(257)]
    pairs = [tuple(hashes[at : at + 2]) for at in range(0, 257, 2)]
    items = tuple(changed(right, version=at, endorsed=one) for at, one in enumerate(pairs, 1))
    # The tree of 257 hashes cannot be signed by our code; no signature is looked at.
    refused(ada.ask(Rewrap(items, bytes(64))), "bad-request")


def test_a_page_is_endorsed_with_one_signature(ada: Person) -> None:
    """Each sidecar keeps a path to the signed root; a record in two sidecars is endorsed once."""
    for number in range(1, 4):
        ada.put(file_id(number), b"content")
    ada.put(file_id(1), b"newer")
    again = ada.took(ada.reencrypted(file_id(1), 1, b"another"))
    done(ada.ask(again.small()))
    begun(ada)
    items = [rewrapped(ada, item) for item in wraps(ada)]
    assert sum(record_hash(again.body) in item.endorsed for item in items) == 2
    answer = ada.ask(ada.rewrap(*items))
    assert isinstance(answer, Rewrapped)
    assert answer.left == ()
    signatures = set[bytes]()
    for item in wraps(ada, everything=True):
        for one in (item.content, item.head):
            if one is None:
                continue
            own, endorsement = one.signatures
            assert (own.generation, endorsement.generation) == (1, 2)
            verify_record_signature(
                Label.ENDORSEMENTS,
                endorsement.signature,
                record_hash(one.record),
                ada.key.public,
                server=SERVER_ID,
                owner_first=ada.origin,
                generation=2,
            )
            assert signed_count(endorsement.signature) == 4
            signatures.add(endorsement.signature[:64])
    assert len(signatures) == 1


def test_a_rewrap_of_an_own_version_relies_on_that_version(served: Daemon, ada: Person) -> None:
    for text in (b"1", b"2"):
        ada.put(file_id(1), text)
    begun(ada)
    older, _ = wraps(ada)
    decided = rewrap(served.context, ada.who, ada.rewrap(rewrapped(ada, older)))
    assert isinstance(decided, Transaction)
    sidecar = VersionPaths.for_version("ada", file_id(1), 1).sidecar
    user = served.context.users.require_active("ada")
    assert decided.change.expect == {
        **user.expect,
        sidecar: served.context.store.stored_digest(sidecar),
    }
    # A newer version does not make it stale; a purge of the version does.
    ada.put(file_id(1), b"3")
    assert decided.change.expect[sidecar] == served.context.store.stored_digest(sidecar)
    done(ada.ask(ada.took(ada.signed(ada.record(file_id(1), PURGE, purged=(1,)))).change()))
    with pytest.raises(Stale):
        served.context.committer.submit(decided.change).result()


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("conflict", {"files": 2}),
        ("conflict", {"root": bytes(32)}),
        ("conflict", {"left_out": 1}),
        ("conflict", {"left_out_root": bytes(32)}),
        ("bad-request", {"generation": 1}),
        ("bad-request", {"user": "eve"}),
        ("bad-request", {"server": bytes(32)}),
    ],
)
def test_a_wrong_finish_is_refused(ada: Person, code: str, changes: dict[str, Any]) -> None:
    ada.put(file_id(1), b"content")
    begun(ada)
    for item in wraps(ada):
        ada.ask(ada.rewrap(rewrapped(ada, item)))
    refused(ada.ask(finished(ada, **changes)), code)


def test_purged_versions_and_tombstones_are_endorsed(ada: Person) -> None:
    ada.put(file_id(1), b"1")
    ada.put(file_id(1), b"2")
    purge = ada.signed(ada.record(file_id(1), PURGE, purged=(1,)))
    done(ada.ask(ada.took(purge).change()))
    ada.delete(file_id(1))
    begun(ada)
    items = wraps(ada)
    assert [(one.version, one.wrap is None) for one in items] == [(1, True), (2, False)]
    reply = ada.ask(ada.rewrap(*(rewrapped(ada, one) for one in items)))
    assert isinstance(reply, Rewrapped)
    done(ada.ask(finished(ada)))


def test_a_finish_reads_only_uncached_sidecars(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        ada.put(file_id(number), b"content")
    begun(ada)
    items = wraps(ada)
    ada.ask(ada.rewrap(*(rewrapped(ada, one) for one in items)))
    end = finished(ada)
    store, reads = served.context.store, list[str]()
    read = store.read_with_digest

    def counted(path: str) -> tuple[bytes, bytes]:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(store, "read_with_digest", counted)
    forgotten = VersionPaths.for_version("ada", file_id(1), 1).sidecar
    del store._digests[forgotten]
    done(ada.ask(end))
    assert [path for path in reads if path.endswith("1.json")] == [forgotten]


def test_a_repeated_put_conflicts_with_what_changed_its_version_since(
    served: Daemon, ada: Person
) -> None:
    """The newest entry of the version is the reader's, and says nothing about the put."""
    bob = served.person("bob")
    readers = (("bob", bob.first_hash, 0),)
    made = ada.put(file_id(1), readers=readers, wraps=(ada.wrap(), bob.wrap()))
    first = check_receipt(done(ada.ask(made.small())), made.body)
    begun(bob)
    (item,) = wraps(bob)
    assert isinstance(bob.ask(bob.rewrap(rewrapped(bob, item, endorsed=()))), Rewrapped)
    error = refused(ada.ask(made.small()), "conflict")
    assert error.head is not None
    assert error.head.content.record == first.rec
