"""What the survey of accounts finds: space and quotas, and whose keys are due."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.wire.messages.accounts import ForceRotation, UserAccess
from sfsd.jobs import account_survey
from sfsd.jobs.account_survey import AccountSurvey
from sfsd.settings.kinds import DAY
from tests.sfsd.builders import Daemon, Person, daemon, done, file_id


def keys(served: Daemon) -> dict[str, str]:
    survey = AccountSurvey(served.context)
    served.run(survey.look())
    assert survey.finished == served.context.now
    return {name: one.keys for name, one in survey.accounts.items()}


def test_space_files_and_quota(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.ask(served.operator(), Person("bob", served).invitation(quota=500))
    survey = AccountSurvey(served.context)
    for number in (1, 2):
        ada.put(file_id(number), bytes(5000))
        monkeypatch.setattr(account_survey, "_KEPT_SECONDS", 0.0)
        served.run(survey.look())
        found = survey.accounts["ada"]
        assert (found.used, found.files) == (served.stored_bytes("ada"), number)
    assert survey.accounts["bob"].quota == 500


def test_whose_keys_are_due(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    assert keys(served) == {"ada": "", "bob": ""}
    served.clock.now = ada.first.due
    assert keys(served)["ada"] == "due"
    served.clock.now = ada.first.expires + DAY
    assert keys(served)["ada"] == "overdue"
    done(served.ask(served.operator(), ForceRotation("bob", "a laptop was stolen")))
    done(served.ask(served.operator(), UserAccess("ada", disabled=True, reason="")))
    assert keys(served) == {"ada": "", "bob": "forced"}
    assert bob.first.due


def test_a_damaged_account_hides_no_other(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.person("ada")
        served.person("bob")
    path = served.context.store.users / "ada" / "account.json"
    path.write_bytes(path.read_bytes()[:-1])
    with daemon(tmp_path, served.clock) as again:
        assert keys(again) == {"bob": ""}


def test_the_use_of_an_account_that_is_not_in_memory_is_kept(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading every sidecar of every user for each look would load the disk."""
    ada.put(file_id(1), bytes(100))
    survey = AccountSurvey(served.context)
    served.run(survey.look())
    before = survey.accounts["ada"]
    monkeypatch.setattr(account_survey, "_KEPT_SECONDS", 0.0)
    served.run(survey.look())
    assert survey.accounts["ada"] == before  # the account has no new entry
    monkeypatch.setattr(account_survey, "_KEPT_SECONDS", 60.0)
    ada.put(file_id(2), bytes(100))
    served.run(survey.look())
    assert survey.accounts["ada"] == before  # its versions were read just now
    served.context.index.for_user("ada").loaded_ledger()
    served.run(survey.look())
    assert survey.accounts["ada"].used == served.stored_bytes("ada")
