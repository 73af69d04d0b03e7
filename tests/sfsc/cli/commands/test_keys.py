"""`sfsc device`: labels, kinds and logins of an account's devices."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell

OPEN = "--no-passphrase"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("keys") / "lying") as served:
        yield served


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFSC_AUTO_ROTATE", "0")
    monkeypatch.setattr(socket, "gethostname", lambda: "desk")


@pytest.mark.usefixtures("quiet")
def test_devices_have_labels_on_all_machines(
    server: LyingServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = int(time.time())
    one = Shell(server.enrol("ada", key_type="x25519"), tmp_path, capsys)
    (first,) = one.json("device", "list")
    assert list(first) == ["device", "label", "kind", "since", "last_login", "here"]
    assert (first["label"], first["kind"], first["here"]) == ("desk", "machine", True)
    assert before <= first["last_login"] <= time.time()

    one.run("key", "backup", tmp_path / "backup", OPEN)
    (_, backup) = one.json("device", "list")
    assert (backup["label"], backup["kind"]) == ("desk backup", "backup")
    assert (backup["last_login"], backup["here"]) == (None, False)
    two = Shell(tmp_path / "two", tmp_path, capsys)
    two.run("key", "restore", tmp_path / "backup", OPEN)
    assert [row["last_login"] is None for row in one.json("device", "list")] == [False] * 3

    # Each machine learns what the other has changed, and keeps it in what it signs later.
    refused = one.run("device", "label", "desk", "laptop", code=3)[1]
    assert f"desk may be {first['device'][:8]}, " in refused
    named = two.json("device", "list")[2]
    two.run("device", "label", named["device"][:8], "laptop", "--json")
    one.run("device", "label", "desk", "tower \N{LATIN SMALL LETTER E WITH ACUTE}")
    assert one.json("device", "label", "laptop", "old") == [
        {"device": named["device"], "label": "old"}
    ]
    for shell in (one, two):
        labels = [row["label"] for row in shell.json("device", "list")]
        assert labels == ["tower \N{LATIN SMALL LETTER E WITH ACUTE}", "desk backup", "old"]
    for label in ("", "a\nb", "x" * 65):
        one.run("device", "label", "old", label, code=2)
    account = server.root / "store" / "users" / "ada"
    for path in (account / "statements.json", account / "bundle"):
        assert b"tower" not in path.read_bytes()

    lines = one.run("device", "list")[0].splitlines()
    day = time.strftime("%Y-%m-%d", time.gmtime(first["since"]))
    assert f"  this machine  since {day}  login 20" in lines[0]
    assert max(map(len, lines)) <= 80

    code = one.json("key", "recovery")[0]["code"]
    recovery = one.json("device", "list")[3]
    assert (recovery["kind"], recovery["label"]) == ("recovery", "recovery code")
    assert "key recovery" in one.run("device", "drop", "recovery code", code=2)[1]
    one.run("device", "drop", "old")
    assert [row["kind"] for row in one.json("device", "list")] == ["machine", "backup", "recovery"]
    assert one.json("device", "list")[0]["label"].startswith("tower")
    assert code
