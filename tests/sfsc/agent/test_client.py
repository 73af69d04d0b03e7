"""Asking the agent: settings, and what is refused before anything is sent."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from sfsc.agent import client
from sfsc.agent.place import socket_path
from sfsc.errors import AgentUnavailable, UsageError

ID = b"i" * 32


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("15m", 900), ("15 min", 900), ("8h", 28_800), ("7d", 604_800)],
)
def test_time_outs(text: str, seconds: int) -> None:
    assert client.parse_timeout(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "15", "8d", "7d 1s", "2w"])
def test_other_time_outs_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        client.parse_timeout(text)


def test_the_environment_sets_the_time_out(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.is_dir()
    assert client.default_timeout() == 900
    monkeypatch.setenv("SFSC_AGENT_TIMEOUT", "2h")
    assert client.default_timeout() == 7200


def test_a_dead_socket_is_no_agent_and_is_replaced(home: Path) -> None:
    path = socket_path(home)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert client.find_key(home, ID) is None
    assert client.start(home)


@pytest.mark.parametrize("mode", [0o701, 0o750, 0o777])
def test_a_folder_that_others_may_enter_is_refused(home: Path, mode: int) -> None:
    path = socket_path(home)
    path.parent.mkdir()
    path.touch()
    path.parent.chmod(mode)
    for ask in (lambda: client.find_key(home, ID), lambda: client.start(home)):
        with pytest.raises(AgentUnavailable, match="not a private folder"):
            ask()
    path.parent.chmod(0o700)
    path.unlink()


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", b"\0\0\0\x05"])
def test_a_wrong_answer_is_an_error(home: Path, answer: bytes) -> None:
    path = socket_path(home)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(AgentUnavailable, match="does not answer"):
            client.find_key(home, ID)
        thread.join()
    path.unlink()


def test_a_process_of_another_user_is_sent_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the user of the command is said to be another one than the agent's."""
    client.start(home)
    path = socket_path(home)
    with monkeypatch.context() as patch:
        patch.setattr("sfsc.agent.place.own_uid", lambda: os.geteuid() + 1)
        patch.setattr("sfsc.agent.client.check_folder", lambda _path: None)
        patch.setattr("sfsc.agent.client.socket_path", lambda _home: path)
        with pytest.raises(AgentUnavailable, match="another user"):
            client.find_key(home, ID)


def test_the_socket_is_in_a_private_runtime_folder_or_in_the_home(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert socket_path(tmp_path).parent == runtime / "sfsc"
    assert socket_path(tmp_path / "x" / "..") == socket_path(tmp_path)
    assert socket_path(tmp_path / "x") != socket_path(tmp_path)
    for wrong in (runtime / "missing", Path("relative")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(wrong))
        assert socket_path(tmp_path) == tmp_path / "agent" / "socket"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    runtime.chmod(0o755)
    assert socket_path(tmp_path) == tmp_path / "agent" / "socket"


def test_a_path_that_is_too_long_is_refused(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "missing"))
    far = tmp_path / ("x" * 100)
    assert client.find_key(far, ID) is None
    with pytest.raises(AgentUnavailable, match="103 bytes"):
        client.start(far)


def test_a_system_without_unix_sockets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfsc.agent.place.SUPPORTED", False)
    assert client.find_key(home, ID) is None
    with pytest.raises(AgentUnavailable, match="no Unix sockets"):
        client.start(home)
