"""Recovery: a thief extends the chain, and the recovery key voids the thief's statements."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from protocol.codec.values import changed
from protocol.records.records import Device, RecoveryKey, Statement, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages.accounts import Usage, UsageAnswer
from protocol.wire.messages.rotation import GetBundle, Rewrapped, RotateBegin, SealedBundle
from protocol.wire.messages.session import Ping
from sfsd.errors import Refused, Stale
from sfsd.fs.files import Files
from sfsd.rules import bundles
from sfsd.rules.context import Principal
from sfsd.rules.users import MAX_RUN
from sfsd.settings.config import ConnectionLimits
from sfsd.settings.kinds import DAY
from tests.sfsd.builders import XWING_PUBLIC, Daemon, Person, daemon, done, file_id, login, refused
from tests.sfsd.jobs.test_retention import run
from tests.sfsd.operations.test_rotation import begun, finished, onto, renewed, rewrapped, wraps

F, G, H = file_id(1), file_id(2), file_id(3)
CODE = SigningKey.from_seed(b"c" * 32)
RECOVERY = RecoveryKey(CODE.public, b"y" * 1216)


@pytest.fixture
def ada(served: Daemon) -> Person:
    """A user with a recovery key, a second statement and two files."""
    ada = served.person("ada")
    made = onto(
        ada.first, ada.key, reason="recovery-key", recovery=RECOVERY, code=CODE, bundle=b"good"
    )
    done(ada.ask(made))
    ada.first = Statement.parse(made.statement)
    ada.put(F, b"content")
    ada.put(G, b"content")
    return ada


def recovered(person: Person, first: bytes, **changes: Any) -> RotateBegin:
    """Return a recovery statement that voids all statements from the one with hash `first` on."""
    fields = {"voids": (first,), "oldest": 1, **changes}
    renewed(person, "recovery", **fields)
    body = person.renewed.encode()
    keys = (person.next_key, CODE)
    return RotateBegin(body, tuple(key.sign(Label.STATEMENT, body) for key in keys), b"bundle 2")


def adopt(person: Person) -> None:
    person.key, person.wrap_pub = person.next_key, person.next_wrap
    person.first, person.generation = person.renewed, person.renewed.generation
    person.who = person.log_in()


def by_code(served: Daemon) -> Principal:
    return served.open(login("ada", CODE, generation=0))[0]


def robbed(ada: Person, *, finish: bool = False) -> tuple[SigningKey, bytes]:
    """Begin a generation with ada's stolen key. Return (thief's key, hash of their statement)."""
    begun(ada)
    stolen = record_hash(ada.first.encode())
    if finish:
        for item in wraps(ada):
            assert isinstance(ada.ask(ada.rewrap(rewrapped(ada, item))), Rewrapped)
        end = finished(ada)
        done(ada.ask(end))
        ada.first = Statement.parse(end.statement)
    return ada.key, stolen


@pytest.mark.parametrize("finish", [False, True])
def test_the_recovery_key_voids_the_thiefs_generation(
    served: Daemon, ada: Person, *, finish: bool
) -> None:
    thief, first = robbed(ada, finish=finish)
    ada.put(F, b"thief")
    ada.put(H, b"thief")
    theirs = ada.who
    message = recovered(ada, first)
    done(served.ask(by_code(served), message))
    # The thief's sessions are refused, and so are records that the thief signs.
    refused(served.ask(theirs, Usage()), "stale-generation")
    with pytest.raises(Refused):
        served.open(login("ada", thief, generation=2))
    late = ada.version(G, b"late")
    adopt(ada)
    refused(ada.ask(late.small()), "stale-generation")
    # The thief's records and wraps do not block the finish: only the owner's are required.
    asked = [(one.file_id, one.version) for one in wraps(ada)]
    assert asked == [(F, 1), (G, 1)]
    refused(ada.ask(finished(ada)), "conflict")
    for item in wraps(ada):
        lost = changed(item, wrap=None) if finish else item
        reply = ada.ask(ada.rewrap(rewrapped(ada, lost)))
        assert isinstance(reply, Rewrapped)
        assert reply.left == ()
    assert wraps(ada) == []
    ada.put(G, b"mine")
    done(ada.ask(finished(ada)))
    assert isinstance(ada.ask(Usage()), UsageAnswer)


def test_only_the_recovery_key_can_void_statements(served: Daemon, ada: Person) -> None:
    thief, first = robbed(ada)
    for second in (thief, SigningKey.generate()):
        message = recovered(ada, first)
        forged = second.sign(Label.STATEMENT, message.statement)
        wrong = changed(message, signatures=(message.signatures[0], forged))
        refused(ada.ask(wrong), "bad-request")
    for changes in ({"oldest": 2}, {"voids": (bytes(32),)}, {"generation": 2}):
        refused(served.ask(by_code(served), recovered(ada, first, **changes)), "bad-request")
    with pytest.raises(Refused):
        served.open(login("ada", thief, generation=0))


def test_the_owner_can_delete_a_file_that_the_thief_deleted(served: Daemon, ada: Person) -> None:
    _, first = robbed(ada)
    theirs = ada.delete(F)
    done(served.ask(by_code(served), recovered(ada, first)))
    adopt(ada)
    ada.delete(F)
    again = ada.signed(ada.record(F, "delete", current=0))
    refused(ada.ask(again.change()), "conflict")
    assert theirs.record.generation == 2


def test_only_the_recovery_key_reads_earlier_bundles(served: Daemon, ada: Person) -> None:
    robbed(ada)
    code = by_code(served)
    assert served.ask(code, GetBundle(0)) == SealedBundle(b"bundle 2")
    assert served.ask(code, GetBundle(3)) == SealedBundle(b"bundle 2")
    assert served.ask(code, GetBundle(2)) == SealedBundle(b"good")
    assert served.ask(code, GetBundle(1)) == SealedBundle(b"sealed bundle")
    refused(served.ask(code, GetBundle(4)), "not-found")
    refused(ada.ask(GetBundle(2)), "not-allowed")
    refused(ada.ask(GetBundle(3)), "not-allowed")


def test_earlier_bundles_are_kept_for_thirty_days(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        made = onto(ada.first, ada.key, reason="recovery-key", recovery=RECOVERY, code=CODE)
        done(ada.ask(made))
        ada.first = Statement.parse(made.statement)
        begun(ada)
        assert run(served) == 0
        served.clock.now += bundles.KEPT_DAYS * DAY - 60
        assert run(served) == 0
        served.clock.now += 60
        assert run(served) == 1
        entry = served.entries("retention")[-1]
        assert entry.paths == {"ada/bundle.1": None, "ada/bundle.2": None}
        refused(served.ask(by_code(served), GetBundle(2)), "not-found")
        assert run(served) == 0


def test_a_flood_of_statements_removes_its_own_bundles(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "KEPT_MOST", 4)
    served.clock.now += 3600
    for number in range(12):
        served.clock.now += 1
        device = Device(
            secrets.token_bytes(16), SigningKey.generate().public, XWING_PUBLIC, "device"
        )
        made = onto(
            ada.first,
            ada.key,
            devices=(device,),
            created=int(served.clock.now),
            bundle=b"thief %d" % number,
        )
        done(ada.ask(made))
        ada.first = Statement.parse(made.statement)
    code = by_code(served)
    assert served.ask(code, GetBundle(2)) == SealedBundle(b"good")
    names = served.context.store.children("ada")
    assert sum(name.startswith("bundle.") for name in names) == 4


def test_a_full_chain_accepts_the_recovery_key(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_RUN == 2048
    monkeypatch.setattr("sfsd.rules.users.MAX_RUN", 4)
    _, first = robbed(ada)
    device = Device(b"d" * 16, SigningKey.generate().public, XWING_PUBLIC, "device")
    made = onto(ada.first, ada.key, devices=(*ada.first.devices, device), bundle=b"thief")
    done(ada.ask(made))
    ada.first = Statement.parse(made.statement)
    refused(ada.ask(onto(ada.first, ada.key, devices=())), "denied")
    refused(ada.ask(renewed(ada)), "denied")
    done(served.ask(by_code(served), recovered(ada, first)))
    adopt(ada)
    # The count starts again at the recovery: the owner can continue.
    done(ada.ask(onto(ada.first, ada.key, devices=(device,), bundle=b"mine")))


def test_the_number_of_recoveries_is_limited(served: Daemon, ada: Person) -> None:
    served.context.config = changed(served.context.config, limits=ConnectionLimits(rotations=10))
    for _ in range(2):
        served.clock.now += DAY
        begun(ada)
        done(served.ask(by_code(served), recovered(ada, record_hash(ada.first.encode()))))
        adopt(ada)
    begun(ada)
    again = recovered(ada, record_hash(ada.first.encode()))
    refused(served.ask(by_code(served), again), "denied")
    served.clock.now += 30 * DAY
    done(served.ask(by_code(served), recovered(ada, record_hash(ada.first.encode()))))


def test_a_damaged_bundle_does_not_stop_the_chain(served: Daemon, ada: Person) -> None:
    (served.context.store.users / "ada" / "bundle").write_bytes(b"another")
    begun(ada)
    refused(served.ask(by_code(served), GetBundle(2)), "not-found")
    assert hashlib.sha256(b"bundle 2").digest() == ada.first.bundle_sha256


@pytest.mark.parametrize(
    ("reason", "closed"), [("rotate", False), ("compromised", True), ("recovery", True)]
)
def test_sessions_of_older_generations_are_closed(
    served: Daemon, ada: Person, reason: str, *, closed: bool
) -> None:
    sessions = [ada.who, ada.log_in(), by_code(served)]
    gone: list[Principal] = []

    def revoke(user: str, which: Any) -> None:  # noqa: ANN401 - a predicate
        assert user == "ada"
        gone.extend(one for one in sessions if which(one))

    served.dispatcher.on_revoke = revoke
    if reason == "recovery":
        asker = sessions[2]
        done(served.ask(asker, recovered(ada, record_hash(ada.first.encode()))))
        assert gone == sessions[:2]
        return
    asker = sessions[0]
    done(ada.ask(renewed(ada, reason)))
    assert gone == ([sessions[1]] if closed else [])
    assert not isinstance(served.ask(asker, Ping()), Refused)


class LosesStatements(Files):
    """A disk that cannot read the next statements.json that is written."""

    armed = broken = False

    def replace(self, source: Path | str, target: Path | str) -> None:
        super().replace(source, target)
        self.broken |= self.armed and str(target).endswith("statements.json")

    def open_read(self, path: Path | str) -> int:
        if self.broken and str(path).endswith("statements.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().open_read(path)


def test_all_other_sessions_are_closed_if_the_chain_cannot_be_read(tmp_path: Path) -> None:
    files = LosesStatements()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        sessions = [ada.who, ada.log_in()]
        gone: list[Principal] = []

        def revoke(_user: str, which: Any) -> None:  # noqa: ANN401 - a predicate
            gone.extend(one for one in sessions if which(one))

        served.dispatcher.on_revoke = revoke
        files.armed = True
        done(ada.ask(renewed(ada, "rotate")))
        assert files.broken
        assert gone == sessions[1:]


def test_removing_old_bundles_is_stale_after_a_rotation(served: Daemon) -> None:
    """A change that was decided on a shorter chain is stale."""
    ada = served.person("ada")
    begun(ada)
    served.clock.now += bundles.KEPT_DAYS * DAY
    change = bundles.remove_expired_bundles(served.context, "ada")
    assert change is not None
    begun(ada)
    assert isinstance(served.context.committer.submit(change).exception(), Stale)
