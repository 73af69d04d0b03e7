"""Logins and enrolments, and that a refusal reveals nothing."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.codec.base64text import to_text
from protocol.codec.values import changed
from protocol.log.checkpoint import verify
from protocol.records.records import RecoveryKey, Statement, login_body, record_hash
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Done
from protocol.wire.messages.accounts import Status, StatusAnswer, UserAccess, UserList
from protocol.wire.messages.rotation import GetBundle, SealedBundle
from protocol.wire.messages.session import Enroll, Login, Ping, Pong
from protocol.wire.messages.sharing import Identity, Lookup
from protocol.wire.messages.uploads import PutOpen
from sfsc.trust.follower import LogFollower
from sfsd.errors import Refused
from sfsd.rules.context import Access
from sfsd.rules.users import signing_key_id
from tests.sfsd.builders import (
    ADDRESS,
    OPERATOR_KEY,
    SERVER_ID,
    SPKI,
    VERIFIER,
    WELCOME,
    XWING_PUBLIC,
    Daemon,
    Person,
    check_receipt,
    done,
    leaf_page,
    login,
    refused,
)
from tests.sfsd.operations.test_rotation import begun, onto, renewed


def invited(served: Daemon, name: str = "bob", **changes: Any) -> Person:
    person = Person(name, served)
    assert isinstance(served.ask(served.operator(), person.invitation(**changes)), Done)
    return person


def refusal(served: Daemon, message: Login | Enroll) -> Refused:
    with pytest.raises(Refused) as caught:
        served.open(message)
    return caught.value


def test_a_login_is_logged_with_what_was_signed(served: Daemon, ada: Person) -> None:
    who, session = served.open(ada.login())
    entry = served.entries("login")[-1]
    body = login_body(
        server=SERVER_ID,
        spki=SPKI,
        welcome=WELCOME,
        version=2,
        user="ada",
        device_id=ada.device_id,
        generation=1,
    )
    assert (entry.actor, entry.rec, entry.seq) == ("ada", body, who.session)
    signer = signing_key_id(ada.device_key.public)
    assert entry.sigs == {signer: ada.device_key.sign(Label.LOGIN, body)}
    assert (entry.detail["address"], entry.detail["device"]) == (ADDRESS, ada.device_id.hex())
    assert who.access is Access.FULL
    assert verify(session.checkpoint, VERIFIER).size == who.known_size > who.session
    assert session.receipt is not None
    assert check_receipt(session.receipt, body).seq == who.session
    assert (session.notice, session.time) == (None, served.clock.now)


def test_a_login_shows_how_the_log_continues(served: Daemon, ada: Person) -> None:
    _, before = served.open(ada.login())
    old = verify(before.checkpoint, VERIFIER)
    for _ in range(5):
        ada.log_in()
    _, after = served.open(ada.login(known_size=old.size))
    assert after.receipt is not None
    assert after.receipt.first == old.size
    lines = list(served.context.journal.lines())
    follower = LogFollower()
    follower.feed(0, leaf_page(lines[: old.size]))
    follower.check_root(old.size, old.root)
    follower.feed(old.size, after.receipt.leaves)
    new = verify(after.checkpoint, VERIFIER)
    follower.check_root(new.size, new.root)


def test_a_client_that_saw_a_longer_log_gets_the_size_and_no_leaves(
    served: Daemon, ada: Person
) -> None:
    _, session = served.open(ada.login(known_size=10**6))
    assert session.receipt is not None
    assert session.receipt.leaves == b""
    assert verify(session.checkpoint, VERIFIER).size < 10**6


def test_a_refused_login_does_not_say_why(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    off = UserAccess("bob", disabled=True, reason="left")
    assert isinstance(served.ask(served.operator(), off), Done)
    invited(served, "eve")
    other_key = SigningKey.generate()
    refusals = [
        refusal(served, message)
        for message in (
            login("nobody", other_key),
            login("eve", other_key),
            login("ada", other_key),
            login("ada", ada.key, generation=2),
            login("ada", ada.key, generation=0),
            login("ada", ada.key, device_id=ada.device_id),
            login("ada", ada.device_key),
            ada.login(device_id=bytes(16)),
            ada.login(device_id=bob.device_id),
            ada.login(generation=0),
            ada.login(server=bytes(32)),
            ada.login(spki=bytes(32)),
            ada.login(welcome=bytes(32)),
            changed(ada.login(), generation=2),
            changed(ada.login(), device_id=None),
            changed(ada.login(), user="bob"),
            login("operator", ada.key),
            login("operator", OPERATOR_KEY, generation=2),
            login("operator", OPERATOR_KEY, device_id=bytes(16)),
            login("server", other_key),
        )
    ]
    assert {(one.code, one.cause) for one in refusals} == {("refused", refusals[0].cause)}


def test_another_protocol_version_is_refused(served: Daemon, ada: Person) -> None:
    assert refusal(served, changed(ada.login(), version=1)).code == "bad-request"


def test_the_recovery_key_opens_a_recovery_session(served: Daemon) -> None:
    code = SigningKey.generate()
    bob = invited(served)
    bob.first = bob.statement(recovery=RecoveryKey(code.public, b"x" * 1216))
    possession = code.sign(Label.RECOVERY_POSSESSION, bob.first.encode())
    assert refusal(served, bob.enroll()).code == "bad-request"
    served.open(bob.enroll(possession=possession))
    who, _ = served.open(login("bob", code, generation=0))
    assert who.access is Access.RECOVERY
    refused(served.ask(who, PutOpen("bob", "0" * 32, 0)), "not-allowed")
    assert isinstance(served.ask(who, Ping()), Pong)


def test_the_operator_logs_in_with_the_operator_key(served: Daemon) -> None:
    who = served.operator()
    assert who.access is Access.OPERATOR
    refused(served.ask(who, PutOpen("ada", "0" * 32, 0)), "not-allowed")


def test_a_monitor_is_the_operator_who_may_only_ask_for_the_status(
    served: Daemon, ada: Person
) -> None:
    """It may ask every few seconds, so its login is not logged."""
    size = served.context.journal.size
    who, session = served.open(login("operator", OPERATOR_KEY, generation=0))
    assert (who.access, session.receipt) == (Access.MONITOR, None)
    assert isinstance(served.ask(who, Status()), StatusAnswer)
    refused(served.ask(who, UserList("")), "not-allowed")
    refused(served.ask(who, PutOpen("ada", "0" * 32, 0)), "not-allowed")
    assert served.context.journal.size == size
    assert refusal(served, login("operator", ada.key, generation=0)).code == "refused"


def test_an_enrolment_opens_a_session_and_returns_a_receipt(served: Daemon) -> None:
    bob = invited(served)
    enroll = bob.enroll()
    who, session = served.open(enroll)
    assert (who.access, who.generation) == (Access.FULL, 1)
    assert session.receipt is not None
    entry = check_receipt(session.receipt, enroll.statement)
    assert (entry.op, entry.owner, entry.seq) == ("enrol", "bob", who.session)
    assert set(entry.paths) == {
        "bob/account.json",
        "bob/bundle",
        "bob/statements.json",
        "bob/tag.key",
    }
    assert served.context.store.read("bob/bundle") == bob.bundle
    chain = served.context.users.chain("bob")
    assert chain is not None
    assert chain[0].first_hash == record_hash(enroll.statement)


def test_a_used_invitation_opens_nothing(served: Daemon) -> None:
    bob, eve = invited(served, "bob"), invited(served, "eve")
    served.open(bob.enroll())
    unknown = refusal(served, eve.enroll(token=b"wrong"))
    size = served.context.journal.size
    ended = refusal(served, bob.enroll())
    assert (ended.code, ended.cause) == (unknown.code, unknown.cause)
    assert served.context.journal.size == size
    assert served.open(bob.login())[0].access is Access.FULL  # its device logs in


def test_a_token_is_valid_once_for_one_user_until_it_expires(served: Daemon) -> None:
    bob, eve = invited(served, "bob"), invited(served, "eve")
    late = invited(served, "late", lasts=60)
    used = invited(served, "used")
    served.open(used.enroll())
    served.clock.now += 60
    refusals = [
        refusal(served, message)
        for message in (
            Person("nobody", served).enroll(),
            bob.enroll(token=b"wrong"),
            bob.enroll(token=eve.token),
            bob.enroll(welcome=bytes(32)),
            late.enroll(),
            used.enroll(used.statement(due=used.first.due - 1)),
        )
    ]
    assert {(one.code, one.cause) for one in refusals} == {("token", refusals[0].cause)}
    served.open(bob.enroll())  # a refused attempt does not use up the token


def test_a_new_invitation_replaces_the_token(served: Daemon) -> None:
    bob = invited(served)
    old, bob.token = bob.token, b"new token"
    assert isinstance(served.ask(served.operator(), bob.invitation()), Done)
    assert refusal(served, bob.enroll(token=old)).code == "token"
    served.open(bob.enroll())


def test_a_disabled_account_cannot_be_enrolled(served: Daemon) -> None:
    bob = invited(served)
    off = UserAccess("bob", disabled=True, reason="")
    assert isinstance(served.ask(served.operator(), off), Done)
    assert refusal(served, bob.enroll()).code == "token"


def test_a_statement_that_breaks_a_rule_does_not_use_the_token(served: Daemon) -> None:
    bob = invited(served)
    wrong = bob.enroll(bob.statement(reason="rotate"))
    assert refusal(served, wrong).code == "bad-request"
    served.open(bob.enroll())


def test_a_login_notice_says_when_the_key_is_due(served: Daemon, ada: Person) -> None:
    notices = []
    for at in (ada.first.due - 1, ada.first.due, ada.first.expires):
        served.clock.now = at
        _, session = served.open(ada.login())
        notices.append(session.notice)
    assert notices[0] is None
    assert [notice and notice.state for notice in notices] == [None, "due", "overdue"]
    assert notices[1] is not None
    assert notices[1].due == ada.first.due


def test_ping_returns_the_time(served: Daemon, ada: Person) -> None:
    assert ada.ask(Ping()) == Pong(int(served.clock.now))


def test_the_account_key_opens_a_session_that_is_good_only_to_join(
    served: Daemon, ada: Person
) -> None:
    who = served.open(login("ada", ada.key))[0]
    assert who.access is Access.JOINING
    assert isinstance(served.ask(who, Lookup("ada", 1)), Identity)
    assert served.ask(who, GetBundle(0)) == SealedBundle(ada.bundle)
    refused(served.ask(who, PutOpen("ada", "0" * 32, 1)), "not-allowed")
    refused(served.ask(who, renewed(ada)), "not-allowed")
    code = SigningKey.generate()
    recovery = RecoveryKey(code.public, XWING_PUBLIC)
    made = onto(ada.first, ada.key, reason="recovery-key", recovery=recovery, code=code)
    refused(served.ask(who, made), "bad-request")
    new = changed(ada.device(), device_id=b"n" * 16, sign_pub=code.public)
    done(served.ask(who, onto(ada.first, ada.key, devices=(*ada.first.devices, new))))
    joined = served.open(login("ada", code, device_id=new.device_id))[0]
    assert joined.access is Access.FULL


def test_keys_of_an_older_generation_log_in_with_a_device_only(served: Daemon, ada: Person) -> None:
    old = ada.key
    begun(ada)
    assert refusal(served, login("ada", old)).code == "refused"
    assert refusal(served, login("ada", old, generation=2)).code == "refused"
    who, session = served.open(ada.login(generation=1))
    assert (who.access, session.notice and session.notice.state) == (Access.RESTRICTED, "rotated")
    refused(served.ask(who, PutOpen("ada", "0" * 32, 1)), "stale-generation")


def test_a_restored_server_lets_a_known_device_find_the_keys_it_knows(
    served: Daemon, ada: Person
) -> None:
    """The device has keys of generation 3, and this server never heard of them."""
    who, session = served.open(ada.login(generation=3))
    assert (who.access, session.notice and session.notice.state) == (Access.RESTRICTED, "rotated")
    assert served.ask(who, GetBundle(0)) == SealedBundle(ada.bundle)
    refused(served.ask(who, PutOpen("ada", "0" * 32, 1)), "stale-generation")


def test_a_dropped_device_is_refused_at_once(served: Daemon, ada: Person) -> None:
    """Also by a statement that keeps the account's keys, and also its open sessions."""
    revoked: list[bool] = []
    open_session = ada.log_in()
    kept = Person("ada", served, key=ada.key)
    both = onto(ada.first, ada.key, devices=(ada.device(), kept.device()))
    done(ada.ask(both))
    ada.first = kept.first = Statement.parse(both.statement)
    kept.who = kept.log_in()
    served.dispatcher.on_revoke = lambda _user, which: revoked.append(
        which is not None and which(open_session) and not which(kept.who)
    )
    done(kept.ask(onto(ada.first, ada.key, devices=(kept.device(),), bundle=b"bundle 3")))
    assert revoked == [True]
    refused(served.ask(open_session, PutOpen("ada", "0" * 32, 1)), "stale-generation")
    assert refusal(served, ada.login()).code == "refused"
    assert refusal(served, ada.login(generation=2)).code == "refused"
    assert isinstance(kept.ask(Ping()), Pong)
    assert kept.log_in().access is Access.FULL


def test_a_replaced_device_key_is_refused(served: Daemon, ada: Person) -> None:
    old = ada.login()
    ada.device_key = SigningKey.generate()
    done(ada.ask(onto(ada.first, ada.key, devices=(ada.device(),))))
    assert refusal(served, old).code == "refused"
    assert ada.log_in().access is Access.FULL


@pytest.mark.parametrize("wrong", [bytes(32), b"t" * 32])
def test_an_enrolment_brings_the_tag_key_it_commits_to(served: Daemon, wrong: bytes) -> None:
    bob = invited(served)
    refusal(served, bob.enroll(tag_key=wrong))
    assert not served.entries("enrol")
    who, _ = served.open(bob.enroll())
    assert who.access is Access.FULL


def test_enrolling_again_never_sets_the_tag_key(served: Daemon) -> None:
    bob = invited(served)
    served.open(bob.enroll())
    before = (served.context.root / "store/users/bob/account.json").read_bytes()
    assert refusal(served, bob.enroll(tag_key=b"t" * 32)).code == "token"
    assert (served.context.root / "store/users/bob/account.json").read_bytes() == before
    user = served.context.users.find("bob")
    assert user is not None
    assert user.account.value.tag_key == bob.tag_key


def test_the_tag_key_is_in_no_repr_and_not_in_the_log(served: Daemon) -> None:
    bob = invited(served)
    message = bob.enroll()
    served.open(message)
    for text in (repr(bob.tag_key), bob.tag_key.hex()):
        assert text not in repr(message)
    lines = b"".join(served.context.journal.lines())
    for secret in (bob.tag_key.hex(), to_text(bob.tag_key)):
        assert secret.encode() not in lines
    for name in ("account.json", "tag.key"):
        path = served.context.root / "store/users/bob" / name
        assert path.stat().st_mode & 0o077 == 0
