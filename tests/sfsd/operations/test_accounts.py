"""Usage, and the operator's requests for accounts."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from protocol.wire.messages.accounts import (
    AccountsPage,
    Status,
    StatusAnswer,
    Usage,
    UsageAnswer,
    UserAccess,
    UserAdd,
    UserList,
    UserQuota,
    UserShow,
)
from protocol.wire.messages.downloads import OpenedVersion
from sfsd.settings.kinds import DAY
from tests.opens import open_one
from tests.sfsd.builders import Daemon, Person, check_receipt, daemon, done, file_id, refused


def test_usage_is_that_of_the_session_user(served: Daemon) -> None:
    ada, bob = served.person("ada", quota=5000), served.person("bob")
    ada.put(file_id(1), bytes(100))
    ada.put(file_id(2), bytes(200))
    ada.delete(file_id(2))
    assert ada.ask(Usage()) == UsageAnswer(ada.stored(), 5000, 1)
    assert ada.stored() > 300
    assert bob.ask(Usage()) == UsageAnswer(0, 0, 0)


def test_an_invitation_is_logged_without_its_token(served: Daemon) -> None:
    bob = Person("bob", served)
    entry = check_receipt(done(served.ask(served.operator(), bob.invitation(quota=7))))
    assert (entry.op, entry.actor, entry.owner) == ("user-add", "operator", "bob")
    assert entry.detail["quota"] == 7
    line = served.context.journal.line(entry.seq)
    assert hashlib.sha256(bob.token).hexdigest().encode() not in line


def test_an_enrolled_user_cannot_be_invited_again(served: Daemon) -> None:
    ada = served.person("ada")
    refused(served.ask(served.operator(), ada.invitation()), "conflict")


def test_an_expired_invitation_is_refused(served: Daemon) -> None:
    late = UserAdd("bob", bytes(32), int(served.clock.now), 0)
    refused(served.ask(served.operator(), late), "bad-request")


def test_the_operator_lists_every_account(served: Daemon) -> None:
    ada = served.person("ada", quota=10_000)
    ada.put(file_id(1), bytes(100))
    bob = Person("bob", served)
    operator = served.operator()
    done(served.ask(operator, bob.invitation(lasts=DAY)))
    page = served.ask(operator, UserList(""))
    assert isinstance(page, AccountsPage)
    first, second = page.accounts
    assert (first.user, first.fingerprint, first.wrap_alg) == ("ada", ada.first_hash, "x25519")
    assert (first.generation, first.due, first.expires) == (1, ada.first.due, ada.first.expires)
    assert (first.used, first.quota, first.files, first.invited_until) == (
        ada.stored(),
        10_000,
        1,
        0,
    )
    assert (second.user, second.fingerprint, second.generation) == ("bob", b"", 0)
    assert second.invited_until == int(served.clock.now) + DAY
    assert served.ask(operator, UserShow("ada")) == AccountsPage((first,), "")
    assert served.ask(operator, UserList("ada")) == AccountsPage((second,), "")
    refused(served.ask(operator, UserShow("eve")), "not-found")


def test_a_disabled_user_keeps_their_files(served: Daemon) -> None:
    ada = served.person("ada")
    ada.put(file_id(1), b"kept")
    operator = served.operator()
    entry = check_receipt(
        done(served.ask(operator, UserAccess("ada", disabled=True, reason="left the lab")))
    )
    assert (entry.op, entry.detail["reason"]) == ("user-access", "left the lab")
    refused(ada.ask(ada.version(file_id(1), b"more").small()), "denied")
    done(served.ask(operator, UserAccess("ada", disabled=False, reason="")))
    ada.who = ada.log_in()
    opened = ada.ask(open_one("ada", file_id(1), 0))
    assert isinstance(opened, OpenedVersion)
    assert opened.data == b"kept"


def test_status_reports_counters_and_failure(served: Daemon) -> None:
    served.person("ada")
    served.context.metrics.address = "127.0.0.1:7373"
    answer = served.ask(served.operator(), Status())
    assert isinstance(answer, StatusAnswer)
    assert answer.log_size == served.context.journal.size
    assert (answer.users, answer.failed, answer.address) == (1, "", "127.0.0.1:7373")
    assert answer.disk_free > 0
    assert answer.version


def test_a_user_is_cached_until_their_account_or_chain_changes(served: Daemon) -> None:
    served.person("ada")
    accounts = served.context.users
    known = accounts.find("ada")
    assert known is not None
    assert accounts.find("ada") is known
    assert accounts.chain("ada") == (known.chain, known.expect["ada/statements.json"])
    done(served.ask(served.operator(), UserAccess("ada", disabled=True, reason="left")))
    found = accounts.find("ada")
    assert found is not None
    assert found.account.value.disabled
    assert found.expect != known.expect
    assert accounts.find("nobody") is None
    assert accounts.chain("nobody") is None


def test_a_new_quota_applies_to_later_uploads(served: Daemon) -> None:
    ada = served.person("ada", quota=10_000)
    ada.put(file_id(1), bytes(600))
    operator = served.operator()
    entry = check_receipt(done(served.ask(operator, UserQuota("ada", 500))))
    assert (entry.op, entry.owner, entry.detail["quota"], entry.detail["before"]) == (
        "user-quota",
        "ada",
        500,
        10_000,
    )
    refused(ada.ask(ada.version(file_id(2), bytes(10)).small()), "quota")
    ada.delete(file_id(1))  # stored files stay, and can be deleted
    done(served.ask(operator, UserQuota("ada", 0)))
    ada.put(file_id(2), bytes(5000))
    refused(served.ask(operator, UserQuota("eve", 1)), "not-found")


def test_a_name_that_was_used_is_never_used_again(tmp_path: Path) -> None:
    """Its entries are counted, and others have pinned that user, even if its files are gone."""
    with daemon(tmp_path) as served:
        bob = served.person("bob")
    shutil.rmtree(tmp_path / "store/users/bob")
    with daemon(tmp_path) as served:
        refused(served.ask(served.operator(), bob.invitation()), "damaged")
        served.person("carol")
