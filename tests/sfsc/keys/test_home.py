"""Location of the keyring, and how it is unlocked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.codec.values import changed
from protocol.records.records import WRAP_ALGORITHMS, record_hash
from sfsc.errors import KeyringError, KeyringMissing, LocalError, UsageError, WrongPassphrase
from sfsc.keys.home import (
    PASSPHRASE_VARIABLES,
    find_passphrase,
    home_folder,
    keyring_path,
    require_passphrase,
    resolve_min_wrap_alg,
    unlock_home,
    unlock_keyring,
)
from sfsc.keys.keyring import DeviceKey, Keyring, KeyringFile
from sfsc.trust.state import open_client_state

KEYRING = Keyring(
    server_id=bytes(32),
    addresses=("localhost:1",),
    user="ada",
    first=record_hash(b""),
    statements=(),
    generations=(),
    name_keys=(bytes(32),),
    tag_key=b"t" * 32,
    device=DeviceKey(bytes(16), bytes(32), bytes(32)),
    pending=None,
    pins=(),
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PASSPHRASE_VARIABLES, "SFSC_HOME", "SFSC_MIN_WRAP_ALG", "SFSC_AGENT"):
        monkeypatch.delenv(name, raising=False)


def make_keyring(home: Path, passphrase: str | None) -> None:
    KeyringFile.create(keyring_path(home), KEYRING, passphrase)


def test_home_folder_from_argument_environment_or_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = home_folder(None)
    assert usual.is_absolute()
    assert usual.name == "sfsc"
    monkeypatch.setenv("SFSC_HOME", str(tmp_path))
    assert home_folder(None) == tmp_path
    assert home_folder("elsewhere") == Path("elsewhere")


def test_passphrase_from_argument_prompt_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_passphrase(None) is None
    monkeypatch.setenv("SFSC_PASSPHRASE_COMMAND", "echo of a command")
    assert find_passphrase(None) == "of a command"
    file = tmp_path / "passphrase"
    file.write_bytes(b" from a file \r\n")
    monkeypatch.setenv("SFSC_PASSPHRASE_FILE", str(file))
    assert find_passphrase(None) == " from a file "
    monkeypatch.setenv("SFSC_PASSPHRASE", "named")
    assert find_passphrase(None) == "named"
    assert find_passphrase(lambda: "asked") == "asked"
    assert find_passphrase("given") == "given"


@pytest.mark.skipif(os.name != "posix", reason="commands of a POSIX shell")
def test_the_passphrase_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = {
        "printf ' two words \\r\\n'": " two words ",
        "cat; echo first; echo second": "first\nsecond",  # its stdin is empty
        "echo ${SFSC_PASSPHRASE_COMMAND-none}": "none",  # so that `sfsc` in it does not run it
        "true": "",
        "echo secret; exit 3": None,
        "echo secret; kill -9 $$": None,
        "printf '\\377'": None,
        "/nonexistent/command": None,
    }
    for command, passphrase in written.items():
        monkeypatch.setenv("SFSC_PASSPHRASE_COMMAND", command)
        if passphrase is not None:
            assert find_passphrase(None) == passphrase, command
            continue
        with pytest.raises(KeyringError) as caught:
            find_passphrase(None)
        assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("stored", [None, b"\xff\xfe"])
def test_unreadable_passphrase_file_is_a_local_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bytes | None
) -> None:
    file = tmp_path / "passphrase"
    if stored is not None:
        file.write_bytes(stored)
    monkeypatch.setenv("SFSC_PASSPHRASE_FILE", str(file))
    with pytest.raises(LocalError):
        find_passphrase(None)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no file modes")
@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 2), (0o604, 2), (0o700, 0)])
def test_secrets_that_others_may_read_are_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: int,
    warned: int,
) -> None:
    make_keyring(tmp_path, "secret")
    file = tmp_path / "passphrase"
    file.write_text("secret")
    monkeypatch.setenv("SFSC_PASSPHRASE_FILE", str(file))
    for path in (keyring_path(tmp_path), file):
        path.chmod(mode)
    assert unlock_home(tmp_path, None).contents == KEYRING
    assert len(caplog.messages) == warned
    assert [str(tmp_path) in message for message in caplog.messages] == [True] * warned


def test_unlocked_keyring_asks_for_no_passphrase(tmp_path: Path) -> None:
    def ask() -> str:
        raise AssertionError("asked")

    with pytest.raises(KeyringMissing):
        unlock_home(tmp_path, ask)
    make_keyring(tmp_path, None)
    assert unlock_home(tmp_path, ask).contents == KEYRING


def test_a_passphrase_that_an_unlocked_keyring_does_not_need_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have put the keyring of another account in the place of a locked one."""
    make_keyring(tmp_path, None)
    with pytest.raises(WrongPassphrase, match="has no passphrase"):
        unlock_home(tmp_path, "secret")
    file = tmp_path / "passphrase"
    file.write_text("secret")
    file.chmod(0o600)
    for variable, value in (("SFSC_PASSPHRASE", "secret"), ("SFSC_PASSPHRASE_FILE", str(file))):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(WrongPassphrase, match="has no passphrase"):
                unlock_home(tmp_path, None)
            # That is the passphrase of the keyring to be written, not of a backup.
            assert unlock_keyring(keyring_path(tmp_path), None).contents == KEYRING
    with pytest.raises(WrongPassphrase, match="has no passphrase"):
        unlock_keyring(keyring_path(tmp_path), "secret")
    assert unlock_home(tmp_path, None).contents == KEYRING


def test_locked_keyring_needs_a_passphrase(tmp_path: Path) -> None:
    make_keyring(tmp_path, "secret")
    assert unlock_home(tmp_path, lambda: "secret").contents == KEYRING
    for wrong in ("wrong", "", None):
        with pytest.raises(WrongPassphrase):
            unlock_home(tmp_path, wrong)


def test_state_is_beside_the_keyring_and_bound_to_the_account(tmp_path: Path) -> None:
    make_keyring(tmp_path, None)
    file = unlock_home(tmp_path, None)
    open_client_state(tmp_path, file).close()
    assert (tmp_path / "state.sqlite3").is_file()
    file.save(changed(KEYRING, user="eve"))
    with pytest.raises(LocalError):
        open_client_state(tmp_path, file)


def test_min_wrap_alg_from_argument_environment_or_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_min_wrap_alg(None) == WRAP_ALGORITHMS[0]
    monkeypatch.setenv("SFSC_MIN_WRAP_ALG", "xwing")
    assert resolve_min_wrap_alg(None) == "xwing"
    assert resolve_min_wrap_alg("x25519") == "x25519"
    monkeypatch.setenv("SFSC_MIN_WRAP_ALG", "")
    assert resolve_min_wrap_alg(None) == WRAP_ALGORITHMS[0]
    for wrong in ("rot13", "XWING"):
        with pytest.raises(UsageError):
            resolve_min_wrap_alg(wrong)
        monkeypatch.setenv("SFSC_MIN_WRAP_ALG", wrong)
        with pytest.raises(UsageError):
            resolve_min_wrap_alg(None)


def test_new_file_needs_a_passphrase() -> None:
    assert require_passphrase("secret") == require_passphrase(lambda: "secret") == "secret"
    with pytest.raises(UsageError):
        require_passphrase(None)
