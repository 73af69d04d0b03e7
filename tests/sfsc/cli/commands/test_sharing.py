"""Confirmation of a key that nobody has compared yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfsc.cli import terminal
from sfsc.cli.commands.sharing import confirm_trust
from sfsc.errors import Untrusted
from sfsc.keys.pgp_words import pgp_words
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell
from tests.terminal import converse

PAIR = ("ada", "bob")


def need_trust(first_use: bool) -> str:
    if not first_use:
        raise Untrusted("bob was never verified")
    return "shared"


@pytest.mark.parametrize(
    ("said", "trusted"),
    [("y", True), ("yes", True), (" YES ", True), ("", False), ("no", False), ("yesterday", False)],
)
def test_the_user_confirms_with_yes(
    monkeypatch: pytest.MonkeyPatch, said: str, *, trusted: bool
) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: True)
    monkeypatch.setattr(terminal, "ask_user", lambda _prompt: said)
    if trusted:
        assert confirm_trust(need_trust, first_use=False) == "shared"
    else:
        with pytest.raises(Untrusted):
            confirm_trust(need_trust, first_use=False)


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_interactive", lambda: False)
    with pytest.raises(Untrusted):
        confirm_trust(need_trust, first_use=False)
    assert confirm_trust(need_trust, first_use=True) == "shared"


def test_people_and_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SFSC_AUTO_ROTATE", "0")
    monkeypatch.chdir(tmp_path)
    with LyingServer(tmp_path / "lying") as server:
        ada, bob = (Shell(server.enrol(one, key_type="x25519"), tmp_path, capsys) for one in PAIR)
        (shown,) = bob.json("key", "show")
        words = str(shown["words"]).split()
        assert ada.run("people") == ada.run("shares") == ("", "")
        for typed, said in (
            (words[:-1], "32 words, not 31"),
            ([*words[:4], "zzz", *words[5:]], "word 5 is no word: zzz"),
            ([words[0], words[0], *words[2:]], "word 2 is at a wrong place"),
            (["12ab"], "word 1 is no word"),
        ):
            assert said in ada.run("key", "verify", "bob", *typed, code=2)[1]
        other = pgp_words(bytes(32))
        assert "is not that of bob" in ada.run("key", "verify", "bob", *other, code=5)[1]
        assert ada.json("key", "verify", "bob", " ".join(words).upper())[0]["verified"]
        (bob_,) = ada.json("people")
        assert bob_ == {"user": "bob"} | {key: shown[key] for key in ("fingerprint", "words")}
        assert ada.run("people")[0] == f"bob\t{shown['fingerprint']}\n"

        for name in ("d/a", "d/b", "c"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(name.encode())
        ada.run("put", "d/a", "d/b", "c")
        ada.run("share", "-r", "d", "bob")
        ada.run("share", "d/b", "bob", "--expires", "2099-12-31")
        ends = [("d/", "folder", 0), ("d/a", "file", 0), ("d/b", "file", 4_102_444_800)]
        found = ada.json("shares")
        assert [(one["name"], one["kind"], one["expires"]) for one in found] == ends
        assert {one["user"] for one in found} == {"bob"}
        assert ada.run("shares")[0].splitlines()[2] == "bob\t2100-01-01 00:00:00Z\td/b"
        ada.run("unshare", "d/b", "bob")
        assert [one["name"] for one in ada.json("shares")] == ["d/", "d/a"]

        # The question shows the words, which can be read aloud.
        bob.run("put", "c")
        question = [("Have you compared", "n")]
        asked = converse(bob.home, "share", "c", "ada", answers=question, stdin=b"", code=4)
        (mine,) = ada.json("key", "show")
        assert all(word in asked.stderr for word in str(mine["words"]).split())
        shared_files_are_read_and_not_changed(ada, bob)


def shared_files_are_read_and_not_changed(ada: Shell, bob: Shell) -> None:
    """`d/a` is shared with bob."""
    (listed,) = bob.json("ls", "ada:d/")
    (shown,) = bob.json("stat", "ada:d/a")
    assert listed == shown
    assert (shown["owner"], shown["name"], shown["size"]) == ("ada", "d/a", 3)
    assert "shared      by ada, unverified\n" in bob.run("stat", "ada:d/a")[0]
    assert bob.run("ls", "ada:")[0] == "ada:d/a\n"
    made, granted = bob.json("history", "ada:d/a")
    assert (made["op"], made["version"], granted["op"]) == ("put", 1, "access")
    assert "ada shares no file c" in bob.run("history", "ada:c", code=3)[1]
    assert "ada shares no file c" in bob.run("stat", "ada:c", code=3)[1]
    Path("changes").write_text('{"op":"rm","name":"ada:d/a"}\n')
    for command in (
        ("rm", "ada:d/a"),
        ("rm", "-r", "ada:d"),
        ("rm", "--purge", "ada:d/a"),
        ("mv", "ada:d/a", "x"),
        ("mv", "c", "ada:d/x"),
        ("put", "c", "--name", "ada:d/a"),
        ("put", "-r", "d", "--name", "ada:d"),
        ("put", "--command", "echo x", "--name", "ada:x"),
        ("restore", "ada:d/a"),
        ("prune", "ada:d/a", "--keep", "1"),
        ("share", "ada:d/a", "carol"),
        ("unshare", "ada:d/a", "bob"),
        ("sync", "d", "ada:d"),
        ("batch", "changes"),
    ):
        assert "only ada can change it" in bob.run(*command, code=2)[1], command
    assert bob.run("ls", "-R")[0] == "c\n"
    # A file of one's own with such a name is written with one's own name in front.
    bob.run("put", "c", "--name", "bob:ada:d/a")
    assert bob.json("stat", "bob:ada:d/a")[0]["name"] == "ada:d/a"
    bob.run("mv", "bob:ada:d/a", "plain")
    assert bob.run("ls", "-R")[0] == "c\nplain\n"
