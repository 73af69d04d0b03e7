"""Accounts that the operator removes or whose devices the operator revokes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from protocol.records.records import RecoveryKey
from protocol.records.signatures import Label, SigningKey
from protocol.wire.messages import Request
from protocol.wire.messages.accounts import (
    Account,
    AccountsPage,
    ForceRotation,
    UserAccess,
    UserErase,
    UserErased,
    UserRemove,
    UserRevoke,
    UserShow,
)
from protocol.wire.messages.downloads import OpenedVersion
from protocol.wire.messages.sharing import Identity, Lookup
from sfsd.errors import Refused
from sfsd.operations import accounts
from sfsd.rules.context import Access
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, check_tags, daemon, done, file_id, login, refused
from tests.sfsd.jobs.test_retention import run
from tests.sfsd.operations.test_login import refusal
from tests.sfsd.operations.test_sharing import F, reader, received, shared, wrap_owners
from tests.sfsd.storage.test_set_aside import damage


def account(served: Daemon, user: str) -> Account:
    page = served.ask(served.operator(), UserShow(user))
    assert isinstance(page, AccountsPage)
    return page.accounts[0]


def remove(served: Daemon, user: str, days: int = 0) -> None:
    due = int(served.clock.now) + days * DAY
    done(served.ask(served.operator(), UserRemove(user, due, "left the lab")))


def erase(served: Daemon, user: str) -> int:
    """Remove the files of a user; return how many requests that took."""
    after, count = "", 0
    while True:
        count += 1
        reply = served.ask(served.operator(), UserErase(user, after))
        assert isinstance(reply, UserErased), reply
        if reply.done:
            return count
        after = reply.next


def share_both_ways(served: Daemon) -> tuple[Person, Person]:
    """Return ada and bob, each of whom shares the file `F` with the other. Ada has more files."""
    ada, bob = served.person("ada"), served.person("bob")
    for owner, other in ((ada, bob), (bob, ada)):
        for number in range(2):
            owner.put(F, bytes([number]) * 100)
        shared(owner, reader(other), wraps={2: [other.wrap()], 1: [other.wrap()]})
    for number in range(10, 13):
        ada.put(file_id(number), b"more")
    ada.delete(file_id(12))
    return ada, bob


@pytest.mark.parametrize("seconds", [2.0, -1.0])
def test_files_wraps_and_notes_of_a_removed_account_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """In one request, or in many that are each cut after one change."""
    monkeypatch.setattr(accounts, "ERASE_SECONDS", seconds)
    with daemon(tmp_path) as served:
        ada, bob = share_both_ways(served)
        assert received(bob) == [("ada", F, True)]
        remove(served, "ada")
        refused(ada.ask(open_one("ada", F, 0)), "denied")
        assert isinstance(bob.ask(open_one("ada", F, 0)), OpenedVersion)  # until they are removed
        assert (erase(served, "ada") > 1) is (seconds < 0)
        assert account(served, "ada").removed
        assert erase(served, "ada") == 1
        folder = served.context.store.users / "ada"
        left = {path.name.rpartition(".")[2] for path in folder.rglob("*") if path.is_file()}
        assert left == {"json", "key"}  # records, settings, chain and tag key
        index = served.context.index.for_user("ada")
        for number in (1, 2):
            sidecar = index.sidecar(F, number).value
            assert (sidecar.metadata, sidecar.wraps) == (None, ())
        # The reader is told, and the user's own wraps in files of others are gone.
        gone = refused(bob.ask(open_one("ada", F, 0)), "not-found")
        assert gone.text == "the account of ada was removed, and its files with it"
        assert received(bob) == []
        assert wrap_owners(served, "bob", 2) == wrap_owners(served, "bob", 1) == {"bob"}
        assert isinstance(bob.ask(open_one("bob", F, 0)), OpenedVersion)
        bob.put(F, b"goes on")
        # Others have pinned the identity, so it and its name stay.
        assert isinstance(bob.ask(Lookup("ada", 1)), Identity)
        again = refused(served.ask(served.operator(), ada.invitation()), "conflict")
        assert again.text == "ada is the name of a removed account"
        bob.put(file_id(2), b"for ada")
        refused(bob.ask(record_of_other(bob, ada)), "share-refused")
        ops = [one.op for one in served.entries() if one.op.startswith(("user-", "retention"))]
        assert ops.count("user-remove") == ops.count("user-erase") == 1
        check_tags(served, {"ada": ada.tag_key, "bob": bob.tag_key})
    assert damage(tmp_path) == set()


def record_of_other(owner: Person, other: Person) -> Request:
    made = owner.signed(
        owner.record(file_id(2), "access", readers=(reader(other),)),
    )
    return made.share({1: [other.wrap()]})


def test_files_are_kept_for_days_and_enabling_ends_the_removal(served: Daemon) -> None:
    ada, _ = share_both_ways(served)
    remove(served, "ada", days=30)
    refused(served.ask(served.operator(), UserErase("ada", "")), "conflict")
    assert account(served, "ada").removal == int(served.clock.now) + 30 * DAY
    done(served.ask(served.operator(), UserAccess("ada", disabled=False, reason="")))
    assert account(served, "ada").removal == 0
    ada.who = ada.log_in()
    assert isinstance(ada.ask(open_one("ada", F, 0)), OpenedVersion)
    remove(served, "ada", days=30)
    served.clock.now += 30 * DAY - 1
    run(served)
    assert not account(served, "ada").removed
    served.clock.now += 1
    run(served)  # the daily job
    assert account(served, "ada").removed
    refused(served.ask(served.operator(), UserAccess("ada", disabled=False, reason="")), "conflict")
    refused(served.ask(served.operator(), UserRemove("ada", 1, "")), "conflict")


def test_name_of_an_unused_invitation_is_free_again(served: Daemon) -> None:
    eve = Person("eve", served)
    done(served.ask(served.operator(), eve.invitation()))
    remove(served, "eve")
    assert refusal(served, eve.enroll()).code == "token"
    erase(served, "eve")
    assert account(served, "eve").removed
    done(served.ask(served.operator(), eve.invitation()))
    assert not account(served, "eve").removed


def test_revoked_devices_are_refused_until_the_account_is_recovered(served: Daemon) -> None:
    code = SigningKey.generate()
    ada = Person("ada", served)
    ada.first = ada.statement(recovery=RecoveryKey(code.public, b"\x09" * 1216))
    done(served.ask(served.operator(), ada.invitation()))
    possession = code.sign(Label.RECOVERY_POSSESSION, ada.first.encode())
    ada.who = served.open(ada.enroll(possession=possession))[0]
    done(served.ask(served.operator(), UserRevoke("ada", "a laptop was stolen")))
    assert account(served, "ada").revoked
    for stolen in (ada.login(), login("ada", ada.key)):
        told = refusal(served, stolen)
        assert told.code == "denied"
        assert "revoked your devices" in told.cause
    # Whoever has no key of the account learns nothing.
    assert refusal(served, login("ada", SigningKey.generate())).code == "refused"
    assert served.open(login("ada", code, generation=0))[0].access is Access.RECOVERY
    done(served.ask(served.operator(), UserAccess("ada", disabled=False, reason="")))
    assert ada.log_in().access is Access.FULL
    refused(served.ask(served.operator(), UserRevoke("eve", "")), "not-found")


@pytest.mark.parametrize(
    ("how", "told"),
    [("disable", "disabled your account"), ("remove", "removed your account")],
)
def test_owner_of_the_key_is_told_why_it_opens_nothing(served: Daemon, how: str, told: str) -> None:
    ada = served.person("ada")
    if how == "remove":
        remove(served, "ada")
    else:
        done(served.ask(served.operator(), UserAccess("ada", disabled=True, reason="")))
    with pytest.raises(Refused, match=told):
        served.open(ada.login())


def test_settings_that_are_made_again_know_of_a_removal(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        for name in ("ada", "bob", "cleo", "dora"):
            served.person(name)
        done(served.ask(served.operator(), UserRevoke("bob", "")))
        done(served.ask(served.operator(), UserRevoke("cleo", "")))
        done(served.ask(served.operator(), UserAccess("cleo", disabled=False, reason="")))
        remove(served, "ada")
        erase(served, "ada")
        remove(served, "dora", days=1)
        wanted = [account(served, name) for name in ("ada", "bob", "cleo", "dora")]
    (tmp_path / "staging" / "applied").unlink()
    for name in ("ada", "bob", "cleo", "dora"):
        (tmp_path / "store" / "users" / name / "account.json").unlink()
    with daemon(tmp_path) as served:
        assert [account(served, name) for name in ("ada", "bob", "cleo", "dora")] == wanted
        assert [one.removed for one in wanted] == [True, False, False, False]


def test_last_login_and_pending_rotation_are_shown(served: Daemon) -> None:
    ada = served.person("ada")
    shown = account(served, "ada")
    entry = served.entries("enrol")[-1]
    assert shown.last_login == int(datetime.fromisoformat(entry.time).timestamp())
    assert (shown.rotation, shown.reason) == ("", "")
    done(served.ask(served.operator(), ForceRotation("ada", "a laptop was stolen")))
    shown = account(served, "ada")
    assert (shown.rotation, shown.reason) == ("forced", "a laptop was stolen")
    ada.log_in()
    later = int(datetime.fromisoformat(served.entries("login")[-2].time).timestamp())
    assert account(served, "ada").last_login >= later
    assert served.context.last_logins.of("eve") == 0


def test_damaged_settings_of_an_account_stop_no_other_user(served: Daemon) -> None:
    """Whether the account was removed is unknown then; everything else goes on."""
    _, bob = share_both_ways(served)
    served.context.store.users.joinpath("ada", "account.json").write_bytes(b"{}")
    served.context.store._digests.clear()
    assert isinstance(bob.ask(Lookup("ada", 1)), Identity)
    refused(bob.ask(open_one("ada", file_id(10), 0)), "not-found")


@pytest.mark.parametrize("message", [UserRevoke("ada", ""), UserRemove("ada", 1, "")])
def test_sessions_end_at_once(served: Daemon, message: UserRevoke | UserRemove) -> None:
    served.person("ada")
    ended = list[str]()
    served.dispatcher.on_revoke = lambda user, _which: ended.append(user)
    done(served.ask(served.operator(), message))
    assert ended == ["ada"]
