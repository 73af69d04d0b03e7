"""`sfsc device`, and passphrases: what `init` and `key passphrase` ask."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfsc.keys.checked_groups import to_rows
from sfsc.keys.home import unlock_home
from sfsc.keys.recovery_sheet import read_recovery_sheet
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell
from tests.terminal import converse

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
    assert lines[0].split("\t")[1:3] == ["this machine", day]
    assert [line.split("\t")[4] for line in lines] == ["tower é", "desk backup", "old"]

    assert one.json("status")[0]["recovery"] is False
    one.run("key", "recovery")
    assert one.json("status")[0]["recovery"] is True
    assert two.json("status")[0]["recovery"] is True
    recovery = one.json("device", "list")[3]
    assert (recovery["kind"], recovery["label"]) == ("recovery", "recovery code")
    assert "key recovery" in one.run("device", "drop", "recovery code", code=2)[1]
    one.run("device", "drop", "old")
    assert [row["kind"] for row in one.json("device", "list")] == ["machine", "backup", "recovery"]
    assert one.json("device", "list")[0]["label"].startswith("tower")


def test_passphrases_are_asked_for_on_the_terminal(server: LyingServer, tmp_path: Path) -> None:
    home, invitation = tmp_path / "eve", server.invite("eve")
    new, again = "New passphrase: ", "Repeat the passphrase: "
    # Another server than the invitation names, or none: seen before a passphrase is asked for.
    pin = invitation.partition("?pin=")[2][:64]
    for wrong, code in ((invitation.replace(pin, "0" * 64), 5), ("sfs://nonsense", 2)):
        converse(home, "init", answers=[("Invitation: ", wrong)], code=code)
    answers = [
        ("Invitation: ", invitation),
        *((new, "P@ssw0rd123"), (again, "P@ssw0rd124")),
        *((new, "late moss orbit five"), (again, "late moss orbit five")),
    ]
    enrolled = converse(home, "init", answers=answers)
    assert enrolled.stderr.count("warning: this passphrase is easy to guess") == 1
    assert "the two passphrases differ; type both again" in enrolled.stderr
    assert enrolled.stderr.endswith("make a recovery code now: sfsc key recovery\n")
    assert unlock_home(home, "late moss orbit five").contents.user == "eve"

    answers = [
        ("Present passphrase: ", "late moss orbit five"),
        (new, "tin rye"),
        (again, "tin rye"),
    ]
    before = (home / "keyring").read_bytes()
    changed = converse(home, "key", "passphrase", answers=answers)
    assert changed.stderr.endswith("the passphrase was changed\n")
    assert unlock_home(home, "tin rye").contents.user == "eve"
    assert (home / "keyring").read_bytes()[30:46] != before[30:46]  # another salt


def test_recovery_from_paper_at_a_terminal(server: LyingServer, tmp_path: Path) -> None:
    """Each row is checked as it is typed, and the code is hidden until the user wants to see it."""
    home, sheet = server.enrol("dora", key_type="x25519"), tmp_path / "sheet"
    made = converse(home, "key", "recovery", "--output", sheet)
    assert made.stdout == ""
    assert sheet.stat().st_mode & 0o777 == 0o600
    account, code = read_recovery_sheet(sheet.read_text())
    rows = to_rows(account.split(), 1)
    first, second = to_rows(code.split("-"), 7)
    wrong = first[:-1] + ("A" if first[-1] != "A" else "B")
    hidden = "Recovery code, row {} (not shown; Enter alone shows it): "
    answers = [
        *((f"Account, row {number}: ", row) for number, row in enumerate(rows, 1)),
        (hidden.format(1), wrong),
        (hidden.format(1), first),
        (hidden.format(2), ""),
        ("Recovery code, row 2: ", second),
    ]
    fresh = converse(tmp_path / "fresh", "init", "--recovery", OPEN, answers=answers)
    assert "the recovery code is mistyped in group 7\n" in fresh.stderr
    assert fresh.screen.count(first[:5]) == 0
    assert fresh.screen.count(second) == 1

    shown = [("Current recovery code, row 1: ", f"{first} {second}")]
    again = converse(home, "key", "recovery", "--show-code", answers=shown)
    assert first in again.screen
    old = converse(home, "key", "recovery", "--from", sheet, code=4)
    assert "an older one" in old.stderr
    assert not old.stdout
    written = tmp_path / "stdout"
    written.write_text(again.stdout)
    image = tmp_path / "code.png"
    converse(home, "key", "recovery", "--from", written, "--output", image)
    assert image.read_bytes().startswith(b"\x89PNG")
    converse(home, "key", "recovery", "--from", image, code=2)


def test_recovery_options_need_recovery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(tmp_path / "none", tmp_path, capsys)
    for command in (("init", "--show-code"), ("rotate", "--show-code"), ("rotate", "--from", "-")):
        assert "--show-code" in shell.run(*command, code=2)[1]
