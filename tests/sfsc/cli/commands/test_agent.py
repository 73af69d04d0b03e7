"""`sfsc agent`, --passphrase-command and `key remember`: who is asked for the passphrase, and when.

`sfsc people` needs the keyring and no server.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsc.agent import client
from sfsc.agent.place import socket_path
from sfsc.keys.home import PASSPHRASE_VARIABLES, keyring_path
from sfsc.keys.keyring import KeyringFile, read_lock_id
from tests.harness import run
from tests.sfsc.cli.shell import Shell
from tests.sfsc.keys.test_home import KEYRING
from tests.terminal import converse

PASSPHRASE = "correct horse"
ASKED = ("Passphrase: ", PASSPHRASE)
needs_unix_sockets = pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a keyring yet, and a place for its agent's socket."""
    for name in (*PASSPHRASE_VARIABLES, "SFSC_AGENT", "SFSC_AGENT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield tmp_path
        client.stop(tmp_path)


@needs_unix_sockets
def test_who_is_asked_at_a_terminal_and_in_a_script(place: Path) -> None:
    KeyringFile.create(keyring_path(place), KEYRING, PASSPHRASE)
    started = converse(place, "agent", "start", "--timeout", "8h", answers=[ASKED])
    assert "unlocked" in started.stderr
    assert "assphrase" not in converse(place, "people").screen
    converse(place, "agent", "lock")
    wanted = {"SFSC_AGENT": "1"}
    converse(place, "people", answers=[ASKED], variables=wanted)
    assert "assphrase" not in converse(place, "people").screen  # it was given the key again
    variables = {"SFSC_HOME": str(place)}
    run("sfsc", ("people",), variables).expect(0)  # without a terminal
    run("sfsc", ("people",), variables | {"SFSC_AGENT": "0"}).expect(8)
    run("sfsc", ("agent", "stop"), variables).expect(0)
    run("sfsc", ("people",), variables).expect(8)
    converse(place, "people", answers=[ASKED], variables=wanted)  # which starts another one
    run("sfsc", ("people",), variables).expect(0)


derived = list[bytes]()
"""The salts for which Argon2id was run."""


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A locked keyring; Argon2id, which takes long, is replaced by one SHA-256 in this process."""

    def derive(passphrase: bytes, salt: bytes, **_cost: int) -> bytes:
        derived.append(salt)
        return hashlib.sha256(salt + passphrase).digest()

    monkeypatch.setattr("sfsc.keys.keyring.argon2id", derive)
    KeyringFile.create(keyring_path(place), KEYRING, PASSPHRASE)
    derived.clear()
    return place


@pytest.fixture
def shell(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.setenv("SFSC_PASSPHRASE", PASSPHRASE)
    return Shell(home, tmp_path, capsys)


@needs_unix_sockets
def test_states_in_json(shell: Shell) -> None:
    place = str(socket_path(shell.home))
    none = {"running": False, "unlocked": False, "holds_key": False, "seconds_left": 0}
    assert shell.json("agent", "status") == [{**none, "pid": None, "memory": None, "socket": place}]
    assert shell.json("agent", "lock") == [{"running": False}]
    assert shell.json("agent", "stop") == [{"stopped": False}]
    (started,) = shell.json("agent", "start", "--timeout", "2h")
    assert started["seconds_left"] in (7199, 7200)
    assert started["unlocked"]
    assert started["memory"] in ("locked", "key-locked", "unlocked")
    shell.run("agent", "lock")
    (locked,) = shell.json("agent", "status")
    assert (locked["running"], locked["unlocked"], locked["seconds_left"]) == (True, False, 0)
    assert shell.json("agent", "stop") == [{"stopped": True}]


@needs_unix_sockets
def test_no_command_derives_the_key_again(shell: Shell) -> None:
    shell.run("agent", "start")
    for _ in range(3):
        shell.run("people")
    shell.run("agent", "start", "--timeout", "1h")
    (status,) = shell.json("agent", "status")
    assert 3590 < status["seconds_left"] <= 3600
    assert len(derived) == 1


@needs_unix_sockets
def test_a_new_passphrase_makes_the_agent_forget(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run("agent", "start")
    old = read_lock_id(keyring_path(shell.home))
    assert old is not None
    monkeypatch.setenv("SFSC_PASSPHRASE", "wrong")  # the agent does not stand in for it
    shell.run("key", "passphrase", "--no-passphrase", code=8)
    assert client.find_key(shell.home, old)
    monkeypatch.setenv("SFSC_PASSPHRASE", PASSPHRASE)
    shell.run("key", "passphrase", "--no-passphrase")
    assert client.find_key(shell.home, old) is None
    monkeypatch.delenv("SFSC_PASSPHRASE")
    shell.run("people")
    _, said = shell.run("agent", "start", code=2)
    assert "no passphrase" in said


@needs_unix_sockets
def test_an_unlocked_keyring_in_place_of_the_agents_is_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.run("agent", "start")
    monkeypatch.delenv("SFSC_PASSPHRASE")
    keyring_path(shell.home).unlink()
    KeyringFile.create(keyring_path(shell.home), KEYRING, None)
    _, said = shell.run("people", code=8)
    assert "replaced" in said
    shell.run("agent", "lock")
    shell.run("people")


@needs_unix_sockets
def test_an_agent_that_fails_costs_a_warning(
    shell: Shell, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = socket_path(shell.home)
    path.parent.mkdir()
    path.parent.chmod(0o777)
    path.touch()
    shell.run("people")
    assert "not a private folder" in caplog.text
    _, said = shell.run("agent", "status", code=1)
    assert "chmod 700" in said
    path.unlink()
    monkeypatch.setattr("sfsc.agent.place.SUPPORTED", False)
    for command in ("start", "lock", "status", "stop"):
        _, said = shell.run("agent", command, code=1)
        assert "no Unix sockets" in said


@pytest.mark.parametrize("time", ["0", "8d", "soon"])
def test_a_wrong_time_out_is_a_usage_error(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, time: str
) -> None:
    shell.run("agent", "start", "--timeout", time, code=2)
    monkeypatch.setenv("SFSC_AGENT_TIMEOUT", time)
    shell.run("agent", "start", code=2)


def test_the_passphrase_of_a_command(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option it counts more than the environment; as a variable, less than the others."""
    write = f"echo {PASSPHRASE}"
    monkeypatch.setenv("SFSC_PASSPHRASE", "wrong")
    monkeypatch.setenv("SFSC_PASSPHRASE_COMMAND", write)
    shell.run("people", code=8)
    shell.run("--passphrase-command", write, "people")


STORE = """
import json, pathlib
import keyring.backend, keyring.errors
class Keyring(keyring.backend.KeyringBackend):
    priority = {priority}
    file = pathlib.Path({file!r})
    def all(self):
        return json.loads(self.file.read_text()) if self.file.exists() else {{}}
    def get_password(self, service, name):
        return self.all().get(service + " " + name)
    def set_password(self, service, name, text):
        self.file.write_text(json.dumps(self.all() | {{service + " " + name: text}}))
    def delete_password(self, service, name):
        left = self.all()
        if left.pop(service + " " + name, None) is None:
            raise keyring.errors.PasswordDeleteError("not found")
        self.file.write_text(json.dumps(left))
"""
"""A store of secrets for the package `keyring`: a file."""


def use_store(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, priority: int) -> Path:
    """Make a file the system's store of secrets, and return its path."""
    import keyring

    file = folder / "store.json"
    folder.joinpath(f"{name}.py").write_text(STORE.format(priority=priority, file=str(file)))
    monkeypatch.syspath_prepend(str(folder))
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.core.load_keyring(f"{name}.Keyring"))
    monkeypatch.setattr("keyring.core._keyring_backend", keyring.get_keyring())
    assert before is not keyring.get_keyring()
    return file


def test_the_systems_store_unlocks_the_keyring_until_it_is_forgotten(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = use_store(shell.folder, monkeypatch, "sfs_test_store", 5)
    assert shell.json("key", "forget") == [{"forgotten": False}]
    assert shell.json("key", "remember") == [{"remembered": True}]
    stored = json.loads(file.read_text())
    assert len(stored) == 1
    assert PASSPHRASE not in file.read_text()
    monkeypatch.delenv("SFSC_PASSPHRASE")
    shell.run("people")
    assert len(derived) == 1
    assert shell.json("key", "forget") == [{"forgotten": True}]
    assert json.loads(file.read_text()) == {}
    shell.run("people", code=8)


def test_a_new_passphrase_is_not_remembered(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    file = use_store(shell.folder, monkeypatch, "sfs_test_other_store", 5)
    shell.run("key", "remember")
    shell.run("key", "passphrase", "--no-passphrase")
    assert json.loads(file.read_text()) == {}


def test_a_store_that_does_not_protect_is_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = use_store(shell.folder, monkeypatch, "sfs_test_plain_store", 0)
    _, said = shell.run("key", "remember", code=1)
    assert "no store of secrets" in said
    assert not file.exists()


def test_without_the_package_the_command_names_it(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    _, said = shell.run("key", "remember", code=2)
    assert "sealed-file-store[keyring]" in said
