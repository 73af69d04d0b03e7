"""`sfsc doctor` on one server: each thing that can be wrong is named, with what to do."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import sfsc
from protocol.codec.values import changed
from protocol.wire.messages.accounts import ForceRotation, UserQuota
from sfsc.keys.home import unlock_home
from sfsc.trust.state import open_client_state
from sfsd.rules.context import Access, Principal
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell

ALL = ["home", "disk", "keyring", "server", "pin", "clock", "log", "rotation", "space", "recovery"]
OPERATOR = Principal("operator", 1, Access.OPERATOR, -1, 0, "127.0.0.1")
_USERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("doctor") / "lying") as server:
        yield server


@pytest.fixture
def user() -> str:
    return f"ada{next(_USERS)}"


@pytest.fixture
def home(server: LyingServer, user: str) -> Path:
    return server.enrol(user, key_type="x25519")


def findings(shell: Shell, code: int) -> dict[str, dict[str, str]]:
    """Return what is not ok, by the check."""
    found = shell.json("doctor", code=code)
    assert [one["check"] for one in found] == sorted((one["check"] for one in found), key=ALL.index)
    return {one["check"]: one for one in found if one["state"] != "ok"}


def set_addresses(home: Path, *addresses: str) -> None:
    unlock_home(home, None).update(lambda keyring: changed(keyring, addresses=addresses))


def test_everything_is_well(shell: Shell) -> None:
    with sfsc.connect(shell.home) as store:
        store.set_recovery(sfsc.new_recovery_code())
    out, err = shell.run("doctor")
    assert [line.split()[:2] for line in out.splitlines()] == [["ok", check] for check in ALL]
    assert err == ""
    assert [one["check"] for one in shell.json("doctor")] == ALL


def test_a_new_account_is_told_to_make_a_recovery_code(shell: Shell) -> None:
    found = findings(shell, 0)
    assert list(found) == ["recovery"]
    assert found["recovery"]["state"] == "warning"
    assert found["recovery"]["hint"] == "run `sfsc key recovery`"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize(
    ("name", "mode", "state"),
    [("", 0o755, "warning"), ("keyring", 0o640, "error"), ("state.sqlite3", 0o644, "")],
)
def test_modes(shell: Shell, name: str, mode: int, state: str) -> None:
    (shell.home / name).chmod(mode)
    found = findings(shell, 1 if state == "error" else 0).get("home", {})
    assert found.get("state", "") == state
    assert found.get("hint", "") == (f"run `chmod -R go= {shell.home}`" if state else "")
    if not state:
        shell.home.chmod(0o711)  # the folder lets others pass to the file
        assert findings(shell, 1)["home"]["state"] == "error"


def test_a_home_that_is_not_there(shell: Shell) -> None:
    shutil.rmtree(shell.home)
    found = findings(shell, 1)
    assert list(found) == ["home", "keyring"]
    assert found["keyring"]["hint"] == "run `sfsc init`"


def test_an_address_that_does_not_answer(shell: Shell, server: LyingServer) -> None:
    set_addresses(shell.home, "127.0.0.1:1", server.address)
    found = findings(shell, 0)
    assert found["server"]["state"] == "warning"
    assert "127.0.0.1:1" in found["server"]["message"]
    assert "`sfsc server set`" in found["server"]["hint"]
    set_addresses(shell.home, "127.0.0.1:1")
    shown = shell.json("doctor", code=1)
    assert [one["check"] for one in shown] == ALL[:4]
    assert shown[-1]["state"] == "error"


def test_another_server(shell: Shell, tmp_path: Path) -> None:
    with LyingServer(tmp_path / "other") as other:
        set_addresses(shell.home, other.address)
        shown = shell.json("doctor", code=1)
    assert [one["check"] for one in shown] == ALL[:5]
    assert shown[-1]["message"] == f"{other.address}: this is not the pinned server"


@pytest.mark.parametrize(
    ("seconds", "state", "side"),
    [(30, "", ""), (205, "warning", "3 min "), (-7200, "error", "behind the server's")],
)
def test_the_clock(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, seconds: int, state: str, side: str
) -> None:
    """The server is in this process, so only the clock of the examination is set."""
    own = SimpleNamespace(time=lambda: time.time() + seconds)
    monkeypatch.setattr("sfsc.diagnosis.time", own)
    found = findings(shell, 1 if state == "error" else 0).get("clock", {})
    assert found.get("state", "") == state
    assert side in found.get("message", "")


def test_a_split_view(shell: Shell) -> None:
    file = unlock_home(shell.home, None)
    with open_client_state(shell.home, file) as state:
        state.distrust("proof")
    found = findings(shell, 1)["log"]
    assert str(shell.home / "evidence" / "proof") in found["hint"]
    assert "`sfsc audit accept`" in found["hint"]


def test_a_log_that_went_back(shell: Shell, user: str, server: LyingServer, tmp_path: Path) -> None:
    server.stop()
    try:
        shutil.copytree(server.root, tmp_path / "backup", symlinks=True)
        server.start()
        shell.put(later="x")
        server.stop()
        shutil.rmtree(server.root)
        shutil.copytree(tmp_path / "backup", server.root, symlinks=True)
    finally:
        server.start()
    found = findings(shell, 1)["log"]
    assert "fewer than" in found["message"]
    assert "`sfsc audit accept`" in found["hint"]


def test_rotation_and_space(shell: Shell, user: str, server: LyingServer) -> None:
    shell.put(big="x" * 100_000)
    server.ask(OPERATOR, UserQuota(user, 110_000))
    server.ask(OPERATOR, ForceRotation(user, "a laptop was stolen"))
    found = findings(shell, 0)
    assert found["rotation"]["message"] == "your keys must be rotated: a laptop was stolen"
    assert found["rotation"]["hint"] == "run `sfsc rotate`"
    assert found["space"]["state"] == "warning"
    server.ask(OPERATOR, UserQuota(user, 50_000))
    assert findings(shell, 1)["space"]["state"] == "error"


def test_a_locked_keyring_that_nobody_opens(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFSC_PASSPHRASE", "a passphrase that the keyring does not have")
    found = findings(shell, 1)
    assert list(found) == ["keyring"]
    assert found["keyring"]["message"] == "the keyring has no passphrase, but one is given"


def test_an_enrolment_with_a_wrong_clock(
    server: LyingServer, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = SimpleNamespace(time=lambda: time.time() + 3 * 86_400)
    monkeypatch.setattr("sfsc.account.enrol.time", own)
    new = Shell(tmp_path / "new", tmp_path, shell._capsys)
    _, err = new.run("init", server.invite("late"), "--no-passphrase", code=4)
    assert err == (
        "sfsc: the clocks of client and server differ by more than a day\n"
        "hint: set this machine's clock: `sfsc doctor` compares it with the server's\n"
    )
