"""Forged records: one wrong field at a time is refused with a typed error.

Store, log, staging directory and quota must be unchanged to the byte; then the valid record is
accepted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.codec import encoding
from protocol.codec.values import changed
from protocol.records.record_signatures import RecordSigner
from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    REENCRYPT,
    RESTORE,
    Device,
    FileRecord,
    record_hash,
)
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Error, Request
from protocol.wire.messages.accounts import Usage
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.rotation import (
    NewStatement,
    Rewrap,
    Rewrapped,
    RotateBegin,
    RotateFinish,
)
from sfsd.settings.kinds import DAY
from tests.protocol.wire_form import unpacked
from tests.record_signing import packed_signature
from tests.sfsd.builders import (
    SERVER_ID,
    XWING_PUBLIC,
    Daemon,
    Person,
    Version,
    daemon,
    done,
    file_id,
)
from tests.sfsd.operations.test_rotation import begun, finished, onto, renewed, rewrapped, wraps

F, G, H, NEW = map(file_id, range(1, 5))
"""F has a reader and three versions, the first purged; G has one version; H is deleted."""


@dataclass
class Setup:
    served: Daemon
    ada: Person
    eve: Person
    zoe: Person
    joe: Person
    root: Path

    def state(self) -> object:
        """Return everything that a refused request must not change."""
        folder, context = self.root / "store", self.served.context
        stored = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        usage = [self.served.ask(one.who, Usage()) for one in (self.ada, self.eve)]
        ledger = context.index.for_user("ada").ledger
        staged = sorted(path.name for path in (self.root / "staging").glob("*.ct"))
        log = (self.root / "logs" / "audit.jsonl").read_bytes()
        return (
            stored,
            usage,
            ledger.used,
            staged,
            context.journal.size,
            hashlib.sha256(log).digest(),
        )


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    with daemon(tmp_path) as served:
        ada, eve = served.person("ada", quota=10_000), served.person("eve", quota=10_000)
        zoe, joe = served.person("zoe"), served.person("joe")
        for number in (1, 2, 3):
            readers = (("eve", eve.first_hash, 0),)
            ada.put(F, b"%d" % number * 60, readers=readers, wraps=(ada.wrap(), eve.wrap()))
        ada.took(purge := ada.signed(ada.record(F, PURGE, purged=(1,))))
        done(ada.ask(purge.change()))
        ada.put(G, b"g" * 60)
        ada.put(H, b"h" * 60)
        ada.delete(H)
        eve.put(F)
        yield Setup(served, ada, eve, zoe, joe, tmp_path)


Ask = Callable[[Version], Request]
Build = Callable[[Setup], tuple[Version, Ask]]


def small(made: Version) -> Request:
    return made.small()


def one(made: Version) -> Request:
    return made.change()


def put(setup: Setup) -> tuple[Version, Ask]:
    ada = setup.ada
    return ada.version(F, b"4" * 60, wraps=(ada.wrap(), setup.eve.wrap())), small


def first_put(setup: Setup) -> tuple[Version, Ask]:
    return setup.ada.version(NEW, b"n" * 60), small


def committed(setup: Setup) -> tuple[Version, Ask]:
    ada = setup.ada
    upload = ada.upload(F, b"4" * 60)
    made = ada.version(F, b"4" * 60, wraps=(ada.wrap(), setup.eve.wrap()))
    return made, lambda made: made.commit(upload)


def reencrypt(setup: Setup) -> tuple[Version, Ask]:
    ada = setup.ada
    return ada.reencrypted(F, 2, b"n" * 60, wraps=(ada.wrap(), setup.eve.wrap())), small


def delete(setup: Setup) -> tuple[Version, Ask]:
    return setup.ada.signed(setup.ada.record(F, DELETE, current=0)), one


def source(ada: Person, file: str, number: int) -> dict[str, Any]:
    made = ada.made[file, number].record
    kept = ("content_id", "ciphertext_size", "segments_root", "dek_commit")
    return {"from_": (file, number)} | {name: getattr(made, name) for name in kept}


def restore(setup: Setup) -> tuple[Version, Ask]:
    ada = setup.ada
    wraps = (ada.wrap(), setup.eve.wrap())
    return ada.version(F, b"", op=RESTORE, wraps=wraps, **source(ada, F, 2)), one


def moving(setup: Setup) -> tuple[Version, Version]:
    ada = setup.ada
    made = ada.version(
        NEW,
        b"",
        op=MOVE,
        readers=ada.made[F, 3].record.readers,
        wraps=(ada.wrap(), setup.eve.wrap()),
        **source(ada, F, 3),
    )
    return made, ada.signed(ada.record(F, DELETE, current=0, to=NEW))


def arriving(setup: Setup) -> tuple[Version, Ask]:
    made, gone = moving(setup)
    return made, lambda made: setup.ada.together(made, gone)


def leaving(setup: Setup) -> tuple[Version, Ask]:
    made, gone = moving(setup)
    return gone, lambda gone: setup.ada.together(made, gone)


def purge(setup: Setup) -> tuple[Version, Ask]:
    return setup.ada.signed(setup.ada.record(F, PURGE, purged=(2,))), one


def access(setup: Setup) -> tuple[Version, Ask]:
    """Add zoe as a reader and drop eve."""
    made = setup.ada.signed(
        setup.ada.record(F, ACCESS, readers=(("zoe", setup.zoe.first_hash, 0),)),
        wraps=(setup.zoe.wrap(),),
    )
    return made, lambda made: made.share({3: made.wraps})


BUILDS: dict[str, Build] = {
    build.__name__: build
    for build in (
        *(put, first_put, committed, reencrypt, delete, restore, arriving, leaving, purge, access),
    )
}
FAR = 2**53
EVERY: dict[str, Any] = {
    "server": [bytes(32), SERVER_ID[:31], "x"],
    "owner": ["eve", "nobody", "zoe", "operator", "", 7],
    "actor": ["eve", "server", "operator", "nobody"],
    "generation": [0, 2, 2**31, -1, True],
    "file_id": [G, H, file_id(99), "../x", F.upper() + "z", F[:-1]],
    "rev": [0, 1, 3, 5, 9, FAR, FAR + 1],
    "op": ["put", "delete", "restore", "move", "access", "reencrypt", "purge", "endorse", None],
    "prev": [b"", bytes(32), "G's", bytes(31)],
    "seen": [[10**6, bytes(32)], [1, bytes(32)], [FAR, bytes(32)], [1], [-1, bytes(32)]],
    "created": [-1, FAR + 1, 1.5, "now"],
    "readers": [
        "doubled",
        "unsorted",
        "with the owner",
        "of another first statement",
        "unknown",
        "expired already, and added",
        [["eve"]],
        [["eve", bytes(32), -1]],
        None,
    ],
    "current": [-1, 1, 7, 2**31, 2**31 + 1],
    "content": [b"", bytes(31), bytes(32), "G's", "F's", None],
    "writer": ["camera", "ada", ""],
    "content_id": [b"", bytes(15), "another version's", "of what was purged"],
    "version": [0, 1, 3, 5, 2**31, 2**31 + 1, -4],
    "ciphertext_size": [0, 59, 61, FAR, FAR + 1, -60],
    "segments_root": [bytes(32), bytes(31)],
    "dek_commit": [bytes(31), None],
    "metadata_sha256": [bytes(32), b""],
    "from": [[F, 1], [F, 9], [G, 1], [H, 1], [NEW, 1], [F, 0], [F, 2**31], [file_id(99), 1], F],
    "to": [F, G, file_id(99), "x", 1],
    "purged": [[], [3], [2, 2], [2, 3], [3, 2], [9], [0], [2, 2**31], list(range(1, 514))],
    "more": [1],
}
"""Wrong values for each field, also for fields that a record of that op does not have."""


def readers_of(setup: Setup, made: FileRecord, how: str) -> list[list[Any]]:
    eve, zoe = (["eve", setup.eve.first_hash, 0], ["zoe", setup.zoe.first_hash, 0])
    return {
        "doubled": [eve, eve],
        "unsorted": [zoe, eve],
        "with the owner": [["ada", setup.ada.first_hash, 0], eve],
        "of another first statement": [["eve", setup.zoe.first_hash, 0]],
        "unknown": [["nobody", setup.eve.first_hash, 0]],
        "expired already, and added": [*map(list, made.readers), ["zz", setup.zoe.first_hash, 1]],
    }[how]


def instead(setup: Setup, made: FileRecord, field: str, value: Any) -> Any:  # noqa: ANN401
    """Return `value`, or the value that it is a placeholder for."""
    if field == "readers" and isinstance(value, str):
        return readers_of(setup, made, value)
    if value == "G's":
        return record_hash(setup.ada.heads[G])
    if value == "F's":
        return record_hash(setup.ada.made[F, 2].body)
    if value == "another version's":
        return setup.ada.made[F, 3 if made.op != RESTORE else 2].record.content_id
    if value == "of what was purged":
        return setup.ada.made[F, 1].record.content_id
    return value


def decoded(body: bytes) -> dict[str, Any]:
    found = unpacked(body)
    assert isinstance(found, dict)
    return found


def forged(setup: Setup, made: Version, field: str, value: Any) -> Version | None:  # noqa: ANN401
    """Return a re-signed version with `field` replaced; None if the value is unchanged."""
    body = decoded(made.body)
    wrong = instead(setup, made.record, field, value)
    if field in body and body[field] == wrong and type(body[field]) is type(wrong):
        return None
    raw = encoding.pack(body | {field: wrong})
    return changed(made, body=raw, signature=setup.ada.sign(raw))


@pytest.mark.parametrize("name", BUILDS)
def test_a_record_with_one_wrong_field_is_refused(setup: Setup, name: str) -> None:
    made, ask = BUILDS[name](setup)
    before = setup.state()
    tried = 0
    for field, values in EVERY.items():
        for value in values:
            wrong = forged(setup, made, field, value)
            if wrong is None or (name, field, value) in RIGHT:
                continue
            reply = setup.ada.ask(ask(wrong))
            assert isinstance(reply, Error), (field, value, type(reply))
            assert reply.code in CODES, (field, value, reply)
            tried += 1
    assert tried > 60
    assert setup.state() == before
    done(setup.ada.ask(ask(made)))


CODES = {"bad-request", "conflict", "not-found", "refused", "stale-recipient", "stale-generation"}


RIGHT: list[tuple[str, str, Any]] = [
    ("first_put", "file_id", file_id(99)),
    ("first_put", "content_id", "of what was purged"),
    ("reencrypt", "version", 3),
]
"""Changes that make a different, valid request."""


@pytest.mark.parametrize("name", BUILDS)
def test_a_record_with_a_missing_field_is_refused(setup: Setup, name: str) -> None:
    made, ask = BUILDS[name](setup)
    before = setup.state()
    body = decoded(made.body)
    for field in body:
        raw = encoding.pack({key: value for key, value in body.items() if key != field})
        wrong = changed(made, body=raw, signature=setup.ada.sign(raw))
        reply = setup.ada.ask(ask(wrong))
        assert isinstance(reply, Error)
        assert reply.code == "bad-request", (field, reply)
    assert setup.state() == before
    done(setup.ada.ask(ask(made)))


@pytest.mark.parametrize("name", BUILDS)
def test_a_record_with_wrong_signature_metadata_wraps_or_bytes_is_refused(
    setup: Setup, name: str
) -> None:
    made, ask = BUILDS[name](setup)
    before = setup.state()
    for what, wrong in beside(setup, made).items():
        reply = setup.ada.ask(ask(wrong))
        assert isinstance(reply, Error), (what, reply)
        assert reply.code in CODES, (what, reply)
    assert setup.state() == before
    done(setup.ada.ask(ask(made)))


def beside(setup: Setup, made: Version) -> dict[str, Version]:
    """Return versions with a wrong signature, metadata, wraps or ciphertext."""
    other_key, ada = SigningKey.generate(), setup.ada
    right: dict[str, Any] = {"server": SERVER_ID, "first": ada.origin, "key": ada.key}

    def packed(**changes: Any) -> bytes:
        return packed_signature(body=made.body, **(right | changes))

    signer = RecordSigner(ada.key, SERVER_ID, ada.origin, ada.generation)
    wrongs = {
        "another key's signature": changed(made, signature=packed(key=other_key)),
        "an endorsement": changed(made, signature=packed(label=Label.ENDORSEMENTS)),
        "a signature for another server": changed(made, signature=packed(server=bytes(32))),
        "a signature for another owner": changed(made, signature=packed(first=bytes(32))),
        "another generation's signature": changed(made, signature=packed(generation=9)),
        "another record's signature": changed(made, signature=setup.ada.sign(b"another")),
        "one of two records": changed(made, signature=signer.sign([made.body, b"another"])[0]),
        "a wrap for nobody": changed(made, wraps=(*made.wraps, setup.ada.wrap(user="nobody"))),
        "a wrap for no reader": changed(made, wraps=(*made.wraps, setup.joe.wrap())),
        "other metadata": changed(made, metadata=made.metadata + b"?"),
    }
    if made.record.op == ACCESS:
        del wrongs["other metadata"]  # this op has no metadata
    if made.ciphertext and made.record.op in ("put", REENCRYPT):
        wrongs["no metadata"] = changed(made, metadata=b"")
    if made.wraps:
        wrongs |= wrong_wraps(made)
    return wrongs


def wrong_wraps(made: Version) -> dict[str, Version]:
    first, *others = made.wraps

    def having(*wraps: Wrap) -> Version:
        return changed(made, wraps=(*wraps, *others))

    return {
        "none": changed(made, wraps=()),
        "one is missing": changed(made, wraps=made.wraps[1:]),
        "for another key": having(changed(first, key_id=bytes(32))),
        "of another algorithm": having(changed(first, algorithm="xwing", wrapped=bytes(1244))),
        "too short": having(changed(first, wrapped=first.wrapped[:-1])),
        "too long": having(changed(first, wrapped=first.wrapped + b"?")),
        "two": having(first, first),
        "two that differ": having(first, changed(first, wrapped=bytes(156))),
    }


D, E, V, W = (SigningKey.from_seed(one * 32).public for one in (b"d", b"e", b"v", b"w"))
OTHER_DEVICE = Device(b"e" * 16, E, XWING_PUBLIC, "device")


def device(**changes: Any) -> list[Any]:
    """Return a device as it is written in a statement, with fields replaced."""
    fields: dict[str, Any] = {
        "device_id": b"d" * 16,
        "sign_pub": D,
        "xwing_pub": XWING_PUBLIC,
        "kind": "device",
        "member": b"",
        "member_signature": b"",
    }
    return list((fields | changes).values())


STATEMENT: dict[str, Any] = {
    "server": [bytes(32), b""],
    "user": ["eve", "nobody", "operator", ""],
    "n": [0, 1, 3, 4, FAR],
    "generation": [0, 3, 2**31, 2**31 + 1],
    "oldest": [0, 3, 2**31],
    "sign_pub": [bytes(32), bytes(31)],
    "wrap_alg": ["xwing", "rsa2048", "rot13", None],
    "wrap_pub": [b"", bytes(32), b"x" * 31, b"x" * 1216],
    "devices": [
        [device(xwing_pub=bytes(1216))],
        [device(xwing_pub=b"x")],
        [device()] * 2,
        [device(), device(device_id=b"e" * 16)],
        [device(), device(sign_pub=E)],
        [device(device_id=b"%016d" % n, sign_pub=b"%032d" % n) for n in range(17)],
        [device(device_id=b"d")],
        [device(sign_pub=b"d")],
        [device(kind="invite")],
        [device(kind="camera")],
        [device(member=bytes(32))],
        [device(member_signature=bytes(64))],
        [device(member_signature=b"m")],
        [device()[:5]],
    ],
    "kind": ["space", "camera"],
    "custodians": [[bytes(32)], [bytes(31)], 1],
    "writers": [
        [["w", bytes(31), FAR]],
        [["W", bytes(32), 0]],
        [["w", W, 0], ["w", V, 0]],
        [["w", W, 0], ["v", W, 0]],
        [[f"w{n}", b"%032d" % n, 0] for n in range(17)],
    ],
    "recovery": [
        {"sign_pub": bytes(32), "xwing_pub": b"x"},
        {"sign_pub": bytes(31), "xwing_pub": b"x" * 1216},
        {"sign_pub": bytes(32), "xwing_pub": bytes(1216)},
        {"sign_pub": bytes(32)},
        1,
    ],
    "voids": [[bytes(32)], [bytes(31)], [bytes(32)] * 65],
    "bundle_sha256": [bytes(32), b""],
    "created": [0, FAR, 1_800_000_000 + 3 * DAY, 1_800_000_000 - 3 * DAY],
    "due": [0, FAR, 1_800_000_000 + 900 * DAY, 1_800_000_000],
    "expires": [0, FAR, 1_800_000_000 + 900 * DAY, 1_800_000_000],
    "prev": [b"", bytes(32), bytes(31)],
    "reason": ["enrol", "finish", "recovery", "compromise", 7],
    "more": [1],
}
Signed = NewStatement | RotateBegin | RotateFinish
STEPS: dict[str, Callable[[Person], Signed]] = {
    "device": lambda ada: onto(ada.first, ada.key, devices=(*ada.first.devices, OTHER_DEVICE)),
    "rotate": renewed,
    "finish": finished,
}


def rotated(setup: Setup) -> None:
    begun(setup.ada)
    while items := wraps(setup.ada):
        setup.ada.ask(setup.ada.rewrap(*(rewrapped(setup.ada, item) for item in items)))


@pytest.mark.parametrize("name", STEPS)
def test_a_statement_with_one_wrong_field_is_refused(setup: Setup, name: str) -> None:
    ada = setup.ada
    if name == "finish":
        rotated(setup)
    made = STEPS[name](ada)
    keys = (ada.next_key, ada.key) if name == "rotate" else (ada.key,)
    before, body, tried = setup.state(), decoded(made.statement), 0
    for field, values in STATEMENT.items():
        for value in values:
            if body.get(field) == value:
                continue
            raw = encoding.pack(body | {field: value})
            signatures = tuple(key.sign(Label.STATEMENT, raw) for key in keys)
            reply = ada.ask(changed(made, statement=raw, signatures=signatures))
            assert isinstance(reply, Error), (field, value)
            assert reply.code in CODES | {"clock"}, (field, value, reply)
            tried += 1
    assert tried > 50
    for signatures in ((), made.signatures[:-1], made.signatures[::-1], (bytes(64),) * 2):
        if signatures != made.signatures:
            assert isinstance(ada.ask(changed(made, signatures=signatures)), Error), signatures
    assert isinstance(ada.ask(changed(made, bundle=b"another")), Error)
    assert setup.state() == before
    done(ada.ask(made))


def test_a_finish_with_one_wrong_field_is_refused(setup: Setup) -> None:
    rotated(setup)
    made = finished(setup.ada)
    before, body = setup.state(), decoded(made.finish)
    wrongs: dict[str, list[Any]] = {
        "server": [bytes(32), bytes(31)],
        "user": ["eve", ""],
        "statement": [record_hash(setup.ada.first.encode()), bytes(32), b""],
        "generation": [0, 1, 3, -1],
        "files": [0, body["files"] + 1, body["files"] - 1, FAR, -1],
        "root": [bytes(32), bytes(31)],
        "as_of_seq": [-1, FAR + 1],
        "more": [1],
    }
    for field, values in wrongs.items():
        for value in values:
            raw = encoding.pack(body | {field: value})
            signature = setup.ada.key.sign(Label.ROTATION_FINISH, raw)
            reply = setup.ada.ask(changed(made, finish=raw, finish_signature=signature))
            assert isinstance(reply, Error), (field, value)
            assert reply.code in CODES
    other = setup.ada.key.sign(Label.STATEMENT, made.finish)
    assert isinstance(setup.ada.ask(changed(made, finish_signature=other)), Error)
    assert setup.state() == before
    done(setup.ada.ask(made))


def test_foreign_and_forged_rewraps_are_refused(setup: Setup) -> None:
    """Rewraps of foreign wraps, foreign files and missing files, or with foreign signatures."""
    begun(setup.ada)
    ada, eve = setup.ada, setup.eve
    item = wraps(ada)[-1]
    right = rewrapped(ada, item)
    assert right.wrap is not None
    assert item.wrap is not None
    before = setup.state()
    wrongs = {
        "another's wrap": changed(right, wrap=eve.wrap()),
        "an old key's": changed(right, wrap=changed(right.wrap, key_id=item.wrap.key_id)),
        "too short": changed(right, wrap=changed(right.wrap, wrapped=b"x")),
        "another's record": changed(right, owner="eve", file_id=F),
    }
    for what, wrong in wrongs.items():
        reply = ada.ask(ada.rewrap(wrong))
        assert isinstance(reply, Error), what
        assert reply.code in CODES
    assert isinstance(ada.ask(Rewrap((), b"")), Error)
    assert isinstance(ada.ask(ada.rewrap(right, right)), Error)
    left = {
        "of no version": changed(right, version=99),
        "of no file": changed(right, file_id=file_id(99)),
        "of another record": changed(
            right,
            endorsed=(bytes(32),),
        ),
        "of another's file": changed(right, owner="eve", file_id=F, version=1, endorsed=()),
    }
    for what, other in left.items():
        assert ada.ask(ada.rewrap(other)) == Rewrapped(None, (0,)), what
    assert setup.state() == before
    # A version whose wrap its owner cannot open is endorsed, and keeps that wrap.
    assert isinstance(ada.ask(ada.rewrap(changed(right, wrap=None))), Rewrapped)
    assert wraps(ada)[-1].wrap == item.wrap
    assert ada.ask(ada.rewrap(right)) != Rewrapped(None, (0,))
