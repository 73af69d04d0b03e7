"""`sfsd fsck` on a used root: all damage is reported, and derived data is repaired."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled, new_root
from tests.e2e.test_main_job import through
from tests.harness import Client, Daemon

MIB = 1024 * 1024


@dataclass
class Served:
    """A cleanly stopped root, and the home of its only user."""

    root: Path
    home: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    daemon = new_root(folder / "root")
    with daemon:
        alice = enrolled(daemon, "alice", folder / "home")
        for number in range(3):
            alice.run("put", "-", "--name", "a", stdin=b"%d" % number * 1000)
        (folder / "big").write_bytes(os.urandom(70 * MIB))
        alice.run("put", "big", cwd=folder)
        alice.run("mv", "a", "b")
        alice.run("put", "-", "--name", "gone", stdin=b"x" * 500)
        alice.run("rm", "--purge", "gone")
        alice.run("key", "recovery")
    return Served(folder / "root", folder / "home")


@pytest.fixture
def daemon(served: Served, tmp_path: Path) -> Daemon:
    shutil.copytree(served.root, tmp_path / "root", copy_function=shutil.copy2)
    return Daemon(tmp_path / "root")


def users(daemon: Daemon) -> Path:
    return daemon.root / "store" / "users" / "alice"


def named(daemon: Daemon, suffix: str) -> Path:
    """Return the largest file of the store with this suffix."""
    return max(users(daemon).rglob(f"*{suffix}"), key=lambda path: path.stat().st_size)


def found(daemon: Daemon, *options: str, code: int = 5) -> list[tuple[str, str, bool]]:
    told = daemon.run("fsck", "--json", *options, code=code)
    return [
        (one["kind"], Path(one["path"]).name, one["repaired"])
        for one in map(json.loads, told.lines)
    ]


def test_an_undamaged_root(daemon: Daemon) -> None:
    assert found(daemon, code=0) == []
    assert found(daemon, "--read-data", "--repair", code=0) == []
    assert " files checked, no damage left (0 reported above)" in daemon.run("fsck").text


def test_fsck_is_refused_while_the_daemon_runs(daemon: Daemon) -> None:
    with daemon.start():
        daemon.run("fsck", code=1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def remove(path: Path) -> None:
    path.unlink()


def make_unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)  # opening it fails: too many levels of symbolic links


KINDS: dict[Callable[[Path], None], str] = {remove: "missing", make_unreadable: "unreadable"}


@pytest.mark.parametrize("harm", [flip, cut, lengthen, remove, make_unreadable])
@pytest.mark.parametrize("suffix", [".json", ".ct", ".leaves", "bundle", "account.json"])
def test_damage_in_every_file_is_found(
    daemon: Daemon, harm: Callable[[Path], None], suffix: str
) -> None:
    path = named(daemon, suffix)
    harm(path)
    kind = KINDS.get(harm, "changed")
    assert found(daemon, "--read-data") == [(kind, path.name, False)]
    # A changed ciphertext of the same size is found only by reading everything.
    if suffix == ".ct" and harm is flip:
        assert found(daemon, code=0) == []
    else:
        assert found(daemon) == [(kind, path.name, False)]


@pytest.mark.parametrize("harm", [flip, cut, remove, make_unreadable])
@pytest.mark.parametrize("suffix", [".leaves", "statements.json"])
def test_derived_files_are_rebuilt(
    daemon: Daemon, harm: Callable[[Path], None], suffix: str
) -> None:
    path = named(daemon, suffix)
    before = path.read_bytes()
    harm(path)
    ((kind, name, repaired),) = found(daemon, "--repair", code=0)
    assert (kind, name, repaired) == (KINDS.get(harm, "changed"), path.name, True)
    assert path.read_bytes() == before
    assert found(daemon, "--read-data", code=0) == []


def test_a_ciphertext_is_repaired_from_its_copy(daemon: Daemon) -> None:
    """After the move `a` and `b` have the same content, so either one repairs the other."""
    by_inode: dict[bytes, list[Path]] = {}
    for path in users(daemon).rglob("*.ct"):
        by_inode.setdefault(path.read_bytes()[:100], []).append(path)
    first, second = max(by_inode.values(), key=len)[:2]
    first.unlink()
    assert found(daemon, "--repair", code=0) == [("missing", first.name, True)]
    assert first.samefile(second)


def test_unlogged_files_are_quarantined(daemon: Daemon) -> None:
    stray = users(daemon) / "files" / "ab" / ("0" * 32 + ".1.ct")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"whose is it?")
    left = users(daemon) / "files" / ".x.tmp"
    left.write_bytes(b"")
    assert {(kind, repaired) for kind, _, repaired in found(daemon)} == {("stray", False)}
    assert {(kind, repaired) for kind, _, repaired in found(daemon, "--repair", code=0)} == {
        ("stray", True)
    }
    assert not stray.exists()
    aside = daemon.root / "stray" / "alice" / "files" / "ab" / stray.name
    assert aside.read_bytes() == b"whose is it?"
    assert found(daemon, code=0) == []


def test_a_changed_log_is_reported(daemon: Daemon) -> None:
    path = daemon.root / "logs" / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"actor"', b'"Actor"', 1)
    path.write_bytes(b"".join(lines))
    told = daemon.run("fsck", "--json", code=5)
    (one,) = map(json.loads, told.lines)
    assert (one["kind"], one["seq"]) == ("log", 5)


def test_a_wrong_tree_cache_is_rebuilt(daemon: Daemon) -> None:
    nodes = daemon.root / "logs" / "tree" / "nodes"
    data = bytearray(nodes.read_bytes())
    data[40] ^= 1
    nodes.write_bytes(data)
    assert found(daemon) == [("cache", "tree", False)]
    assert found(daemon, "--repair", code=0) == [("cache", "tree", True)]
    daemon.run("audit", "verify")
    with daemon.start():
        pass
    assert found(daemon, code=0) == []


def test_changes_pending_after_a_kill_are_not_damage(tmp_path: Path) -> None:
    daemon = new_root(tmp_path / "root")
    daemon.start()
    alice = enrolled(daemon, "alice", tmp_path / "home")
    for number in range(3):
        alice.run("put", "-", "--name", f"{number}", stdin=b"x" * 1000)
    daemon.kill()
    assert {kind for kind, _, _ in found(daemon, code=0)} <= {"waiting"}
    daemon.start()
    daemon.stop()
    assert found(daemon, "--read-data", code=0) == []


def test_a_repaired_user_is_served_again(daemon: Daemon, served: Served, tmp_path: Path) -> None:
    for suffix in (".leaves", "statements.json"):
        remove(named(daemon, suffix))
    daemon.run("fsck", "--repair")
    shutil.copytree(served.home, tmp_path / "home")
    (tmp_path / "home" / "state.sqlite3").unlink(missing_ok=True)
    with daemon.start():
        client = through(daemon.address, Client(tmp_path / "home"), tmp_path / "here")
        assert client.run("ls").lines == ["b", "big"]
        client.run("get", "big", "-o", tmp_path / "big")
        assert (tmp_path / "big").stat().st_size == 70 * MIB


def test_pending_changes_are_found_in_staging(daemon: Daemon) -> None:
    """Without the mark all entries may be pending, except those neither in place nor staged."""
    (daemon.root / "staging" / "applied").unlink()
    assert found(daemon, "--read-data", code=0) == []
    lost, changed = named(daemon, ".ct"), named(daemon, "1.json")
    remove(lost)
    flip(changed)
    assert set(found(daemon)) == {("missing", lost.name, False), ("changed", changed.name, False)}


def test_a_lost_version_stops_neither_the_daemon_nor_other_files(tmp_path: Path) -> None:
    """The bytes of a change are gone before they were installed durably."""
    daemon = new_root(tmp_path / "root")
    with daemon:
        alice = enrolled(daemon, "alice", tmp_path / "home")
        alice.run("put", "-", "--name", "good", stdin=b"good")
    applied = (daemon.root / "staging" / "applied").read_bytes()
    with daemon.start():
        alice = through(daemon.address, alice, tmp_path / "proxy")
        before = {path.name for path in users(daemon).rglob("*.ct")}
        alice.run("put", "-", "--name", "bad", stdin=os.urandom(3 * MIB))
    (daemon.root / "staging" / "applied").write_bytes(applied)
    [lost] = [path for path in users(daemon).rglob("*.ct") if path.name not in before]
    remove(lost)
    with daemon.start():
        alice = through(daemon.address, alice, tmp_path / "proxy2")
        assert alice.run("cat", "good").stdout == b"good"
        for command in (["cat", "bad"], ["get", "bad", "-o", str(tmp_path / "bad")]):
            assert "damaged" in alice.run(*command, code=5).stderr
        assert alice.run("ls", code=5).lines == ["good"]
        daemon.stop()
        assert [kind for kind, _, _ in found(daemon, "--read-data", code=0)] == ["lost"]
        daemon.start()
        alice = through(daemon.address, alice, tmp_path / "proxy3")
        alice.run("rm", "--purge", "--damaged", "bad")
        assert alice.run("ls").lines == ["good"]
        alice.run("put", "-", "--name", "bad", stdin=b"again")
        assert alice.run("cat", "bad").stdout == b"again"
        alice.run("audit", "verify")
    assert found(daemon, "--read-data", code=0) == []


def test_a_damaged_account_blocks_no_other_user(daemon: Daemon, served: Served) -> None:
    with daemon.start():
        daemon.run("user", "add", "bob")
    flip(named(daemon, "account.json"))
    with daemon.start():
        listed = daemon.run("user", "list", code=5)
        assert [line.split()[0] for line in listed.lines] == ["bob"]
        assert "damaged accounts, not listed: alice" in listed.stderr
        alice = through(daemon.address, Client(served.home), daemon.root.parent / "here")
        assert "not what the log says" in alice.run("ls", code=5).stderr
    daemon.run("fsck", "--repair")
    with daemon.start():
        assert len(daemon.run("user", "list").lines) == 2
        alice = through(daemon.address, Client(served.home), daemon.root.parent / "again")
        assert alice.run("ls").lines == ["b", "big"]
