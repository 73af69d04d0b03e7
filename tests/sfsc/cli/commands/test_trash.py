"""Trash, old versions and whole folders, by the commands of `sfsc`."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages import Request
from sfsc.cli import terminal
from sfsc.transfer.source import name_for
from sfsd.rules.context import Principal
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell
from tests.terminal import converse

DAY = 86_400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("trash") / "lying") as server:
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the client's clock ahead by some seconds."""
    real = time.time

    def advance(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return advance


_USERS = itertools.count()


@pytest.fixture
def home(server: LyingServer) -> Path:
    """Return the home of a new user."""
    return server.enrol(f"ada{next(_USERS)}", key_type="x25519")


def test_deleted_files_are_found_and_restored(shell: Shell, server: LyingServer) -> None:
    shell.put(a__x="one", a__y="two!", b="three", gone="moved")
    shell.run("mv", "gone", "kept")
    shell.put(a__x="one again")
    shell.run("rm", "-r", "a")
    found = shell.json("ls", "--deleted")
    shown = [(one["name"], one["version"], one["size"], one["versions"]) for one in found]
    assert shown == [("a/x", 2, 9, 2), ("a/y", 1, 4, 1)]
    assert all(abs(one["deleted"] - time.time()) < 60 for one in found)
    assert shell.run("ls", "--deleted", "a/y")[0] == "a/y\n"
    assert shell.run("ls", "--deleted", "-l")[0].startswith("2\t9 B\t")
    elsewhere = Shell(server.copied(shell.home, "elsewhere"), shell.folder, shell._capsys)
    assert elsewhere.json("ls", "--deleted") == found
    assert elsewhere.json("ls", "--deleted") == found  # its names are remembered
    restored = shell.json("restore", "-r", "a")
    assert [(one["name"], one["version"], one["status"]) for one in restored] == [
        ("a/x", 3, "restored"),
        ("a/y", 2, "restored"),
    ]
    assert shell.text("a/x") == "one again"
    assert shell.json("ls", "--deleted") == []
    told = shell.run("restore", "-r", "nowhere", "a", code=3)[1]
    assert "there is no file in nowhere" in told
    assert "nothing to restore in a\n" in told


def test_a_folder_becomes_what_it_was(shell: Shell, clock: Callable[[float], None]) -> None:
    shell.put(a__same="same", a__changed="old", a__deleted="back", a__moved="here", b="outside")
    clock(2 * DAY)
    shell.put(a__changed="new", a__later="later", b="changed")
    shell.run("rm", "a/deleted")
    shell.run("mv", "a/moved", "elsewhere")
    shell.put(a__deleted="other")
    shell.run("rm", "a/deleted")
    clock(3 * DAY)
    found = {one["name"]: one["status"] for one in shell.json("restore", "-r", "a", "--at", "2d")}
    assert found == {
        "a/changed": "restored",
        "a/deleted": "restored",
        "a/moved": "restored",
        "a/later": "deleted",
    }
    assert [name for name in shell.names() if name.startswith("a/")] == [
        "a/changed",
        "a/deleted",
        "a/moved",
        "a/same",
    ]
    texts = [shell.text(f"a/{name}") for name in ("changed", "deleted", "moved", "same")]
    assert texts == ["old", "back", "here", "same"]
    assert (shell.text("b"), shell.text("elsewhere")) == ("changed", "here")
    assert shell.json("restore", "-r", "a", "--at", "2d") == []  # it is so already
    assert "no file in it at that time" in shell.run("restore", "-r", "a", "--at", "4d", code=3)[1]
    shell.run("restore", "-r", "a", "--at", "2100-01-01", code=2)
    assert len(shell.names()) == 6
    assert [one["name"] for one in shell.json("ls", "--deleted")] == ["a/later"]


def test_several_names(shell: Shell) -> None:
    """What fails is reported, the rest is done, and the exit code is that of the failure."""
    shell.put(a="1", b="2", d__c="3", e="4")
    _, told = shell.run("rm", "a", "none", "b", code=3)
    assert "deleted a\n" in told
    assert "sfsc: no such file: none\n" in told
    assert "deleted b\n" in told
    assert "1 item failed, the others were done" in told
    told = shell.run("restore", "a", "none", "e", "b", code=3)[1]
    assert "e: the file is not deleted" in told
    assert shell.names() == ["a", "b", "d/c", "e"]
    told = shell.run("get", "a", "none", "d/c", "-o", "out", code=3)[1]
    assert "no such file: none" in told
    assert sorted(path.name for path in (shell.folder / "out").iterdir()) == ["a", "c"]
    shell.run("rm", "--purge", "a", "none", "b", code=3)
    assert shell.json("ls", "--deleted") == []
    assert shell.run("get", "e", "d/c", "x/e", code=2)[1].startswith("sfsc: e and x/e would both")


def test_a_folder_is_purged_with_its_trash(shell: Shell) -> None:
    shell.put(a__x="1", a__y="2", ab="3")
    shell.put(a__x="11")
    shell.run("rm", "a/y")
    shown = shell.json("rm", "-r", "--purge", "a")
    assert shown == [
        {"name": "a/y", "deleted": True, "purged": [1]},
        {"name": "a/x", "deleted": True, "purged": [1, 2]},
    ]
    assert shell.names() == ["ab"]
    assert shell.json("ls", "--deleted") == []
    assert shell.json("du")[0]["total"] == 1
    told = shell.run("rm", "-r", "--purge", "nowhere", code=3)[1]
    assert told.startswith("sfsc: there is no file in nowhere\nhint: ")
    assert "1 item failed" in shell.run("rm", "-r", "nowhere", "ab", code=3)[1]
    assert shell.names() == []


def test_trash_is_purged_by_age(
    shell: Shell, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.put(old="1", new="2", left="3", old_name="4")
    shell.run("mv", "old_name", "new_name")
    shell.run("rm", "old")
    clock(31 * DAY)
    shell.run("rm", "new")
    monkeypatch.setattr(terminal, "is_interactive", lambda: False)
    for arguments in (["purge", "--trash"], ["rm", "-r", "/"], ["share", "-r", "/", "bob"]):
        told = shell.run(*arguments, code=2)[1]
        assert "use --yes" in told
    shell.run("purge", code=2)
    shell.run("purge", "--trash", "--older-than", "soon", "--yes", code=2)
    shown = shell.json("purge", "--trash", "--older-than", "30d", "--yes")
    assert shown == [{"name": "old", "purged": [1]}]
    assert [one["name"] for one in shell.json("ls", "--deleted")] == ["new"]
    question = "Permanently remove 1 deleted file, 1 B in their last versions? Type yes to do it: "
    done = converse(shell.home, "purge", "--trash", answers=[(question, "no")], code=2)
    assert "nothing was done" in done.stderr
    done = converse(shell.home, "purge", "--trash", answers=[(question, "yes")])
    assert "removed the content of 1 version of 1 file" in done.stderr
    assert shell.run("purge", "--trash", "--yes")[1] == "the trash is empty\n"
    assert shell.run("history", "old_name")[0].count("content removed") == 0  # it was renamed
    converse(shell.home, "rm", "-r", "/", answers=[("Delete every file? ", "yes")])
    assert shell.names() == []


def test_old_versions_are_pruned(shell: Shell) -> None:
    for text in ("1", "22", "333"):
        shell.put(a__x=text, a__gone=text, b=text)
    shell.run("rm", "a/gone")
    assert shell.json("prune", "b", "--keep", "2") == [{"name": "b", "purged": [1]}]
    assert shell.json("prune", "-r", "a/", "--keep", "1") == [
        {"name": "a/gone", "purged": [1, 2]},
        {"name": "a/x", "purged": [1, 2]},
    ]
    assert shell.json("prune", "-r", "a", "--keep", "1") == []
    shell.run("get", "a/x", "--version", "2", code=3)
    shell.run("get", "b", "--version", "2", "-o", "second")
    assert shell.json("restore", "a/gone")[0]["version"] == 4
    shell.run("prune", "none", "--keep", "1", code=3)
    shell.run("prune", "-r", "none", "--keep", "1", code=3)
    shell.run("prune", "b", "--keep", "0", code=2)
    shell.run("history", "b", "--prune", "1", code=2)


def test_room_is_split(shell: Shell) -> None:
    shell.put(a__x="12345", a__gone="1234567", b="1")
    shell.put(a__x="123")
    shell.run("rm", "a/gone")
    shell.run("mv", "b", "c")
    (shown,) = shell.json("du")
    assert shown == {
        "prefix": "",
        "files": 2,
        "deleted": 1,
        "live": 4,
        "versions": 5,
        "trash": 7,
        "total": 16,
    }
    (shown,) = shell.json("du", "a/")
    assert (shown["files"], shown["live"], shown["versions"], shown["trash"]) == (1, 3, 5, 7)
    (shown,) = shell.json("du", "a/x")
    assert (shown["live"], shown["versions"], shown["trash"]) == (3, 5, 0)
    assert shell.run("du")[0].splitlines() == [
        "live\t4 B\t2",
        "versions\t5 B\t",
        "trash\t7 B\t1",
        "total\t16 B\t",
    ]
    (status,) = shell.json("status")
    assert (status["live"], status["versions"], status["trash"]) == (4, 5, 7)
    assert "7 B in the trash" in shell.run("status")[0]


def test_folders_are_renamed_and_entered(shell: Shell) -> None:
    shell.put(a__x="1", a__s__y="2", b__z="3", f="4", g="5")
    shown = shell.json("mv", "a", "new")
    renamed = [(one["before"], one["name"]) for one in shown]
    assert renamed == [("a/s/y", "new/s/y"), ("a/x", "new/x")]
    assert "renamed new/x to b/new/x\n" in shell.run("mv", "new", "b")[1]
    shell.run("mv", "f", "b/")
    shell.run("mv", "g", "b/z", "top/")
    assert shell.names() == ["b/f", "b/new/s/y", "b/new/x", "top/g", "top/z"]
    shell.run("mv", "b/new/", "/")
    shell.run("mv", "b/f", "b/new", "top", code=3)
    assert shell.names() == ["b/f", "new/s/y", "new/x", "top/g", "top/z"]
    assert "cannot be moved into itself" in shell.run("mv", "new", "new/sub/", code=2)[1]
    assert "is a file" in shell.run("mv", "top/g/", "h", code=2)[1]
    shell.run("mv", "new", "top/g", code=6)
    told = shell.run("mv", "top/g", "top/z", code=6)[1]
    assert told.startswith("sfsc: there is a file top/z already\nhint: ")
    shell.put(top__x="in the way")
    shell.run("mv", "new/x", "new/s", "top", code=6)
    assert shell.names() == ["b/f", "new/x", "top/g", "top/s/y", "top/x", "top/z"]
    assert shell.text("top/s/y") == "2"


def test_stored_folders_go_with_what_is_in_them(shell: Shell) -> None:
    """What is done to a folder that is stored for its mode is not reported, unless it is empty."""
    (shell.folder / "t" / "empty").mkdir(parents=True)
    (shell.folder / "t" / "x").write_text("x")
    shell.run("put", "-r", "t")
    assert [one["name"] for one in shell.json("mv", "t", "u")] == ["u/empty/", "u/x"]
    assert [one["name"] for one in shell.json("rm", "-r", "u")] == ["u/empty/", "u/x"]
    assert [one["name"] for one in shell.json("ls", "--deleted")] == ["u/empty/", "u/x"]
    assert [one["name"] for one in shell.json("restore", "-r", "u/")] == ["u/empty/", "u/x"]
    assert shell.json("du")[0]["files"] == 2
    shell.run("get", "-r", "u")
    assert sorted(path.name for path in (shell.folder / "u").iterdir()) == ["empty", "x"]
    purged = shell.json("rm", "-r", "--purge", "u")
    assert sorted(one["name"] for one in purged) == ["u/empty/", "u/x"]
    assert shell.names() == []


def test_a_file_and_a_folder_of_one_name(shell: Shell) -> None:
    shell.put(x="file", x__y="in the folder")
    for arguments in (["rm", "-r", "x"], ["get", "-r", "x"], ["mv", "x", "z"]):
        assert "x is a file and a folder" in shell.run(*arguments, code=2)[1]
    for command in ("get", "cat", "rm", "restore", "stat", "history"):
        assert "x/ is a folder" in shell.run(command, "x/", code=2)[1]
    for command in ("share", "unshare"):
        assert "x/ is a folder" in shell.run(command, "x/", "bob", code=2)[1]
    shell.run("mv", "x/", "z")
    shell.run("get", "-r", "x")
    assert (shell.folder / "x").read_text() == "file"
    shell.run("rm", "-r", "x")
    shell.run("put", "x", "--name", "z/")
    assert shell.names() == ["z/x", "z/y"]
    with pytest.raises(sfsc.UsageError):
        name_for(io.BytesIO(), "z/")


def test_many_files_are_changed_together(shell: Shell, server: LyingServer) -> None:
    """Nothing is asked for each file that is deleted, pruned, purged or counted."""
    for text in ("1", "2"):
        shell.put(**{f"a__{number}": f"{number}.{text}" for number in range(40)})
    asked = list[str]()

    def note(_who: Principal, request: Request) -> None:
        asked.append(type(request).__name__)

    server.intercept = note
    together = {
        ("prune", "-r", "a", "--keep", "1"): (0, 1),
        ("du", "a"): (0, 0),
        ("mv", "a", "b"): (41, 1),  # one is of the settings, which name shared folders
        ("rm", "-r", "b"): (0, 1),
        ("ls", "--deleted", "b/"): (0, 0),
        ("restore", "-r", "b"): (41, 1),
        ("rm", "-r", "--purge", "b"): (0, 2),
    }
    for arguments, (stats, commits) in together.items():
        asked.clear()
        shell.run(*arguments)
        assert (asked.count("Stat"), asked.count("Commit")) == (stats, commits), arguments
        assert asked.count("History") + asked.count("Open") == 0
    server.honest()


def test_one_damaged_file_does_not_keep_the_others(shell: Shell, server: LyingServer) -> None:
    """Restored, purged or renamed with a file whose sidecar the server has lost."""
    names = [f"d/{number}" for number in range(6)]
    shell.put(**{name.replace("/", "__"): name for name in names})
    user = sfsc.whoami(shell.home).user
    shell.run("rm", "-r", "d")
    with sfsc.connect(shell.home) as store:
        victim = store._session.account.file_id("d/3")
    (sidecar,) = (server.root / f"store/users/{user}/files").glob(f"*/{victim}.1.json")
    server.stop()
    sidecar.write_bytes(b"{}")
    server.start()
    assert "d/3" in shell.run("restore", "-r", "d", code=5)[1]
    assert shell.names(lambda _name, _error: None) == [name for name in names if name != "d/3"]
    assert "d/3" in shell.run("rm", "-r", "--purge", "d", code=5)[1]
    assert shell.names(lambda _name, _error: None) == []
