"""What the clients of a user who is removed, revoked or must rotate see, and the operator."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import sfsc
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon

OPEN = "--no-passphrase"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with new_root(tmp_path_factory.mktemp("removed") / "root") as daemon:
        yield daemon


def user(served: Daemon, name: str) -> Client:
    return enrolled(served, name, served.root.with_name(name), "x25519")


def state(served: Daemon, name: str) -> dict[str, object]:
    shown: dict[str, object] = json.loads(served.run("user", "show", name, "--json").stdout)
    return shown


def test_reader_of_a_removed_user_is_told(served: Daemon) -> None:
    ada, bob = user(served, "ada"), user(served, "bob")
    ada.run("put", "-", "--name", "plan", stdin=b"plan")
    bob.run("put", "-", "--name", "notes", stdin=b"notes")
    ada.run("share", "plan", "bob", "--trust-first-use")
    bob.run("share", "notes", "ada", "--trust-first-use")
    with sfsc.connect(bob.home) as store, store.open_shared("ada", "plan") as file:
        assert file.read() == b"plan"
    assert b"removed ada" in served.run("user", "remove", "ada", "--reason", "left").stdout
    assert state(served, "ada")["state"] == "removed"
    assert "the operator has removed your account" in ada.run("ls", code=4).stderr
    with sfsc.connect(bob.home) as store:
        for _ in range(2):
            with pytest.raises(sfsc.NotFound, match="the operator has removed ada"):
                store.open_shared("ada", "plan")
    assert bob.run("inbox").stdout == b""
    assert "removed ada" in bob.run("share", "notes", "ada", code=4).stderr
    # The owner goes on with files that the removed user could read.
    bob.run("put", "-", "--name", "notes", stdin=b"more notes")
    bob.run("unshare", "notes", "ada")
    bob.run("audit", "verify")
    assert "removed account" in served.run("user", "add", "ada", code=6).stderr
    said = served.run("audit", "log", "--user", "ada").text
    assert "removed ada" in said
    assert "left" in said


def test_revoked_user_goes_on_with_the_recovery_code(served: Daemon) -> None:
    cat = user(served, "cat")
    cat.run("put", "-", "--name", "kept", stdin=b"kept")
    code = sfsc.new_recovery_code()
    with sfsc.connect(cat.home) as store:
        store.set_recovery(code)
        account = store.link
    served.run("user", "revoke", "cat", "--reason", "a laptop was stolen")
    assert state(served, "cat")["state"] == "revoked"
    assert "the operator has revoked your devices" in cat.run("ls", code=4).stderr
    again = Client(served.root.with_name("cat again"))
    again.run("init", "--recovery", "--take-back", OPEN, stdin=f"{account}\n{code}\n".encode())
    assert again.run("cat", "kept").stdout == b"kept"
    assert state(served, "cat")["state"] == "enrolled"
    cat.run("ls", code=4)


def test_forced_rotation_is_visible_on_both_sides_until_it_is_done(served: Daemon) -> None:
    dora = user(served, "dora")
    served.run("rotate", "dora", "--reason", "a laptop was stolen")
    assert state(served, "dora")["rotation"] == "forced"
    row = next(one for one in served.run("user", "list").lines if one.startswith("dora"))
    assert row.endswith("\tforced: a laptop was stolen")
    assert "rotation     forced: a laptop was stolen" in served.run("user", "show", "dora").text
    with sfsc.connect(dora.home, auto_rotate=False) as store:
        assert store.status().rotation == "a laptop was stolen"
    dora.run("status")  # rotates
    shown = json.loads(dora.run("status", "--json").stdout)
    assert (shown["rotation"], shown["generation"]) == ("", 2)
    assert "rotation  none pending" in dora.run("status").text
    found = state(served, "dora")
    assert (found["rotation"], found["reason"], found["generation"]) == ("", "", 2)
