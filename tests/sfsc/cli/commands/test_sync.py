"""`sfsc sync`: what each direction does; tests/e2e/test_sync_model.py has random changes."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.wire.messages import Message
from protocol.wire.messages.changes import Commit
from sfsc.files import sync_memory
from sfsc.files.sync_memory import FOLDER_NAME
from sfsd.rules.context import Principal
from tests.lying_server import LyingServer
from tests.sfsc.cli.shell import Shell

TOTALS = "{} stored, {} fetched, {} deleted, {} conflict, {} unchanged, {} skipped"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("sync") / "lying") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada", key_type="x25519")


def write(path: str, content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)


def held(folder: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


class Elsewhere:
    """Another machine, which changes the store."""

    def __init__(self, shell: Shell) -> None:
        self.home = shell.home

    def stored(self, prefix: str) -> dict[str, str]:
        with sfsc.connect(self.home, auto_rotate=False) as store:
            return {
                entry.name.removeprefix(f"{prefix}/"): store.open(entry.name).read().decode()
                for entry in store.ls(f"{prefix}/")
                if entry.kind == "file"
            }

    def put(self, name: str, content: str) -> None:
        with sfsc.connect(self.home, auto_rotate=False) as store:
            store.put(io.BytesIO(content.encode()), name=name)

    def rm(self, name: str) -> None:
        with sfsc.connect(self.home, auto_rotate=False) as store:
            store.rm(name)


@pytest.fixture
def elsewhere(shell: Shell) -> Elsewhere:
    return Elsewhere(shell)


def test_only_what_changed_moves(shell: Shell, elsewhere: Elsewhere, server: LyingServer) -> None:
    for name in ("a", "b", "deep/c", "deep/d", ".sfsignore"):
        write(f"one/{name}", name)
    write("one/.sfsignore", "*.tmp\n")
    write("one/x.tmp", "left out")
    Path("one/empty").mkdir()
    _, err = shell.run("sync", "one", "p")
    assert err.splitlines()[-1] == TOTALS.format(6, 0, 0, 0, 0, 0)
    assert elsewhere.stored("p") == {
        name: text for name, text in held("one").items() if "tmp" not in name
    }
    assert {path.name for path in shell.folder.iterdir()} == {"one"}
    write("one/a", "A")
    write("one/new", "new")
    sent: list[int] = []

    def count(_who: Principal | None, request: Message, reply: Message) -> Message:
        if isinstance(request, Commit):
            sent.append(len(request.changes))
        return reply

    server.tamper = count
    told = shell.statuses("sync", "one", "p")
    server.honest()
    assert sum(sent) == 2
    assert {name: one for name, one in told.items() if one[0] != "unchanged"} == {
        "p/a": ("stored", 2),
        "p/new": ("stored", 1),
    }
    assert len(told) == 7
    # Another folder of this machine, and the first one again.
    _, err = shell.run("sync", "--down", "p", "two")
    assert err.splitlines()[-1] == TOTALS.format(0, 7, 0, 0, 0, 0)
    assert held("two") == {name: text for name, text in held("one").items() if "tmp" not in name}
    assert Path("two/empty").is_dir()
    write("two/b", "B")
    shell.run("sync", "two", "p")
    told = shell.statuses("sync", "--down", "p", "one")
    assert {name for name, (status, _) in told.items() if status == "fetched"} == {"p/b"}
    assert Path("one/b").read_text() == "B"
    assert Path("one/x.tmp").exists()
    kept = list((shell.home / FOLDER_NAME).glob("*"))
    assert kept
    assert not any(b"deep" in path.read_bytes() for path in kept)


def test_deletions_are_copied_if_asked_for(shell: Shell, elsewhere: Elsewhere) -> None:
    for name in ("a", "b", "c", "sub/d"):
        write(f"del/{name}", name)
    shell.run("sync", "del")
    elsewhere.put("del/theirs", "new in the store")
    os.unlink("del/a")
    os.unlink("del/b")
    elsewhere.put("del/b", "changed there")
    shutil.rmtree("del/sub")
    assert shell.statuses("sync", "del") == {"del/c": ("unchanged", 1)}
    planned = shell.statuses("sync", "del", "--delete", "--dry-run")
    assert planned == {
        "del/a": ("deleted", 1),
        "del/sub/d": ("deleted", 1),
        "del/c": ("unchanged", 1),
    }
    assert len(elsewhere.stored("del")) == 5
    assert shell.statuses("sync", "del", "--delete") == planned
    assert elsewhere.stored("del") == {
        "b": "changed there",
        "c": "c",
        "theirs": "new in the store",
    }
    elsewhere.rm("del/c")
    told = shell.statuses("sync", "--down", "del", "del")
    assert told == {"del/b": ("fetched", 2), "del/theirs": ("fetched", 1)}
    assert shell.statuses("sync", "--down", "--delete", "del", "del")["del/c"] == ("deleted", 0)
    assert held("del") == {"b": "changed there", "theirs": "new in the store"}
    # What only the target has lost is copied again.
    os.unlink("del/b")
    assert shell.statuses("sync", "--down", "del", "del")["del/b"] == ("fetched", 2)
    elsewhere.rm("del/b")
    assert shell.statuses("sync", "del")["del/b"] == ("stored", 3)


@pytest.mark.parametrize("down", [False, True])
def test_a_file_that_changed_on_both_sides_is_kept_twice(
    shell: Shell, elsewhere: Elsewhere, *, down: bool
) -> None:
    folder = f"both-{down}"
    write(f"{folder}/x.txt", "first")
    write(f"{folder}/same", "first")
    shell.run("sync", folder)
    write(f"{folder}/x.txt", "here")
    elsewhere.put(f"{folder}/x.txt", "there")
    write(f"{folder}/same", "equal")
    elsewhere.put(f"{folder}/same", "equal")
    words = ("--down", folder, folder) if down else (folder,)
    (told,) = (one for one in shell.json("sync", *words) if one["status"] != "unchanged")
    assert (told["name"], told["status"]) == (f"{folder}/x.txt", "conflict")
    other = told["conflict_name"].removeprefix(f"{folder}/")
    assert re.fullmatch(r"x \(conflict \d{4}-\d\d-\d\d \d{6}\)\.txt", other)
    both = {"x.txt": "there", other: "here"} if down else {"x.txt": "here", other: "there"}
    changed = held(folder) if down else elsewhere.stored(folder)
    assert changed == both | {"same": "equal"}
    # The other direction makes both sides the same.
    shell.run("sync", *(folder,) if down else ("--down", folder, folder))
    assert held(folder) == elsewhere.stored(folder) == both | {"same": "equal"}


def test_one_side_that_changed_in_the_target_stays(shell: Shell, elsewhere: Elsewhere) -> None:
    for name in ("a", "b"):
        write(f"stay/{name}", name)
    shell.run("sync", "stay")
    elsewhere.put("stay/a", "there")
    (told,) = (one for one in shell.json("sync", "stay") if one["status"] == "skipped")
    assert told["cause"] == "it was changed in the store since the last sync"
    write("stay/b", "here")
    told = shell.statuses("sync", "--down", "stay", "stay")
    assert told == {"stay/a": ("fetched", 2), "stay/b": ("skipped", 1)}
    assert held("stay") == {"a": "there", "b": "here"}


def test_a_file_in_the_place_of_a_folder(shell: Shell, elsewhere: Elsewhere) -> None:
    write("swap/x", "file")
    write("swap/y/inside", "in the folder")
    shell.run("sync", "swap")
    os.unlink("swap/x")
    write("swap/x/inside", "now a folder")
    shutil.rmtree("swap/y")
    write("swap/y", "now a file")
    shell.run("sync", "--delete", "swap")
    assert elsewhere.stored("swap") == held("swap")
    shell.run("sync", "--down", "swap", "other")
    assert held("other") == held("swap")
    # The reverse, without --delete, and with something that the other side has added.
    shutil.rmtree("swap/x")
    write("swap/x", "a file again")
    shell.run("sync", "swap")
    write("other/x/mine", "new")
    told = {one["name"]: one for one in shell.json("sync", "--down", "swap", "other")}
    kept = told["swap/x/"]["conflict_name"].removeprefix("swap/")
    assert Path("other", "x").read_text() == "a file again"
    assert Path("other", kept, "mine").read_text() == "new"


def test_a_change_of_another_machine_at_the_same_moment(
    shell: Shell, elsewhere: Elsewhere, server: LyingServer, tmp_path: Path
) -> None:
    write("race/x", "first")
    write("race/y", "first")
    shell.run("sync", "race")
    write("race/x", "here")
    os.unlink("race/y")
    machine = Elsewhere(shell)
    machine.home = server.copied(shell.home, "race")
    calls: list[Principal | None] = []

    def change_first(who: Principal | None, request: Message) -> None:
        if isinstance(request, Commit) and not calls:
            calls.append(who)
            machine.put("race/x", "there")
            machine.put("race/y", "there")

    server.intercept = change_first
    told = shell.json("sync", "--delete", "race")
    server.honest()
    assert calls
    assert [one["status"] for one in told if one["name"] == "race/x"] == ["conflict"]
    assert sorted(elsewhere.stored("race").values()) == ["here", "there", "there"]


def test_a_file_that_changes_while_it_is_fetched(
    shell: Shell, elsewhere: Elsewhere, server: LyingServer
) -> None:
    write("late/x", "first")
    shell.run("sync", "late")
    elsewhere.put("late/x", "there")

    def edit(_who: Principal | None, request: Message, reply: Message) -> Message:
        if type(request).__name__ == "Open":
            write("late/x", "edited")
        return reply

    server.tamper = edit
    _, err = shell.run("sync", "--down", "late", "late", code=6)
    server.honest()
    assert "was changed meanwhile" in err
    assert held("late") == {"x": "edited"}
    shell.run("sync", "--down", "late", "late")
    assert sorted(held("late").values()) == ["edited", "there"]


def test_nothing_is_deleted_where_one_side_cannot_be_read(
    shell: Shell, elsewhere: Elsewhere
) -> None:
    for name in ("a", "b"):
        write(f"doubt/{name}", name)
    shell.run("sync", "doubt")
    os.unlink("doubt/a")
    os.mkfifo("doubt/a")
    assert shell.statuses("sync", "--delete", "doubt") == {
        "doubt/b": ("unchanged", 1),
        "doubt/a": ("skipped", None),
    }
    assert elsewhere.stored("doubt") == {"a": "a", "b": "b"}
    os.unlink("doubt/a")
    write("doubt/.sfsignore", "!\n")
    _, err = shell.run("sync", "--delete", "doubt", code=1)
    assert "is malformed" in err
    assert elsewhere.stored("doubt") == {"a": "a", "b": "b"}


def test_after_put_and_get_of_the_folder(shell: Shell, elsewhere: Elsewhere) -> None:
    """What they have made equal is remembered, so that a change since is no conflict."""
    for name in ("a", "b", "deep/c"):
        write(f"mixed/{name}", name)
    shell.run("put", "-r", "mixed")
    write("mixed/a", "here")
    elsewhere.put("mixed/b", "there")
    told = shell.statuses("sync", "mixed")
    assert told == {
        "mixed/a": ("stored", 2),
        "mixed/b": ("skipped", 2),
        "mixed/deep/c": ("unchanged", 1),
    }
    shell.run("get", "-r", "mixed", "-o", "copy")
    write("copy/mixed/a", "in the copy")
    os.unlink("copy/mixed/b")
    told = shell.statuses("sync", "--delete", "copy/mixed", "mixed")
    assert told == {
        "mixed/a": ("stored", 3),
        "mixed/b": ("deleted", 2),
        "mixed/deep/c": ("unchanged", 1),
    }


def test_a_folder_that_was_put_and_emptied(shell: Shell, elsewhere: Elsewhere) -> None:
    write("emptied/a", "a")
    shell.run("put", "-r", "emptied")
    os.unlink("emptied/a")
    assert shell.statuses("sync", "--delete", "emptied") == {"emptied/a": ("deleted", 1)}
    assert elsewhere.stored("emptied") == {}


def test_only_the_latest_folders_are_remembered(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_memory, "MAX_PAIRS", 3)
    for number in range(5):
        write(f"pairs-{number}/a", "a")
        shell.run("put", "-r", f"pairs-{number}")
    kept = [path for path in (shell.home / FOLDER_NAME).iterdir() if not path.suffix]
    assert len(kept) == 3


def test_the_keys_stay_here(
    server: LyingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    home = server.enrol("ben", key_type="x25519")
    shutil.copytree(home, "all/keys")
    write("all/file", "content")
    shell = Shell(Path("all/keys"), tmp_path, capsys)
    for stored in (1, 0):
        _, err = shell.run("sync", "all")
        assert err.splitlines()[-1] == TOTALS.format(stored, 0, 0, 0, 1 - stored, 0)


def test_what_sync_refuses(shell: Shell, elsewhere: Elsewhere) -> None:
    assert "is not a folder" in shell.run("sync", "none", code=1)[1]
    assert "there is no file in none" in shell.run("sync", "--down", "none", "x", code=3)[1]
    assert "--down needs PREFIX and DIR" in shell.run("sync", "--down", "x", code=2)[1]
    write("disk/a", "a")
    shell.run("sync", "disk")
    # An empty folder in its place, as when a disk is not mounted.
    os.rename("disk", "elsewhere")
    Path("disk").mkdir()
    assert "is its disk mounted?" in shell.run("sync", "--delete", "disk", code=1)[1]
    assert elsewhere.stored("disk") == {"a": "a"}
