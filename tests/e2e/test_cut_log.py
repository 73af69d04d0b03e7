"""The end of the log is gone: the way on, for the operator and for each user."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest

import sfsc
from tests.e2e.accounts import enrolled
from tests.harness import Client, CommandFailed, Daemon


def entries(daemon: Daemon) -> int:
    return int(json.loads(daemon.run("status", "--json").text)["log_size"])


def cut(daemon: Daemon, count: int) -> str:
    """Cut the log to `count` entries and a half; return the command that the start names."""
    log = daemon.root / "logs" / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert count < len(lines)
    os.truncate(log, sum(map(len, lines[:count])) + 10)
    with pytest.raises(CommandFailed) as refused:
        daemon.start()
    named = re.search(r"run `sfsd (fsck --cut-log \d+)`", str(refused.value))
    assert named, refused.value
    return named[1]


def accepted(client: Client) -> None:
    client.run("ls", code=5)
    client.run("audit", "accept", "--yes")


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    """Return a user with files that two others may read."""
    alice = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    for name in ("bob", "carol"):
        enrolled(daemon, name, tmp_path / name, "x25519")
    with sfsc.connect(alice.home) as store:
        for name in ("dir/shared", "dir/deleted", "dir/moved", "dir/purged", "dir/new version"):
            store.put(io.BytesIO(b"old"), name=name)
    alice.run("share", "-r", "dir", "bob", "--trust-first-use")
    alice.run("share", "-r", "dir", "carol", "--trust-first-use")
    return alice


def test_everyone_goes_on(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    bob, carol = Client(tmp_path / "bob"), Client(tmp_path / "carol")
    carol.run("put", "-", "--name", "own", stdin=b"own")
    carol.run("inbox")
    kept = entries(daemon)
    alice.run("put", "-", "--name", "dir/new version", stdin=b"new")
    alice.run("put", "-", "--name", "forgotten", stdin=b"new")
    alice.run("rm", "dir/deleted")
    alice.run("mv", "dir/moved", "elsewhere")
    alice.run("rm", "--purge", "dir/purged")
    alice.run("unshare", "dir/shared", "bob")
    enrolled(daemon, "dave", tmp_path / "dave", "x25519")
    daemon.stop()

    named = cut(daemon, kept)
    daemon.run("fsck", "--cut-log", str(kept + 1), code=2)
    daemon.run(*named.split())
    daemon.run(*named.split(), code=2)
    daemon.run("fsck", "--read-data")
    daemon.run("audit", "verify")
    with daemon:
        assert "run `sfsc audit accept`" in daemon.run("status").text
        assert carol.run("cat", "own").stdout == b"own"  # has seen nothing that is gone
        accepted(alice)
        told = alice.run("ls", "-R", code=5)
        assert told.lines == ["dir/deleted", "dir/moved", "dir/new version", "dir/shared"]
        assert told.stderr.count("is not on the server any more") == 1
        for name in told.lines:
            assert alice.run("cat", name).stdout == b"old"
        alice.run("rm", "--purge", "--damaged", "dir/purged")
        alice.run("put", "-", "--name", "dir/new version", stdin=b"again")
        alice.run("put", "-", "--name", "forgotten", stdin=b"again")
        alice.run("put", "-", "--name", "dir/purged", stdin=b"again")
        alice.run("share", "-r", "dir", "bob", "--trust-first-use")
        alice.run("rotate")
        alice.run("verify-rotation")
        alice.run("audit", "verify")
        for name, content in (("shared", b"old"), ("new version", b"again")):
            for reader in (bob, carol):
                told = reader.run("cat", f"alice:dir/{name}", "--trust-first-use")
                assert told.stdout == content
        again = enrolled(daemon, "dave", tmp_path / "dave again", "x25519")
        again.run("put", "-", "--name", "x", stdin=b"x")
    daemon.run("fsck", "--read-data")
    assert b"forgotten" not in (daemon.root / "logs" / f"cut-{kept}.jsonl").read_bytes()
    assert (daemon.root / "logs" / f"cut-{kept}.jsonl").stat().st_size == 10


@pytest.mark.parametrize("how", ["rotate twice", "recovery"])
def test_keys_that_are_newer_than_the_log(daemon: Daemon, alice: Client, how: str) -> None:
    alice.run("rotate")
    kept = entries(daemon)
    if how == "recovery":
        alice.run("key", "recovery")
    else:
        alice.run("rotate")
        alice.run("rotate")
    daemon.stop()
    daemon.run(*cut(daemon, kept).split())
    with daemon:
        alice.run("audit", "accept", "--yes")
        assert alice.run("cat", "dir/shared").stdout == b"old"
        alice.run("put", "-", "--name", "new", stdin=b"new")
        alice.run("verify-rotation")
        alice.run("audit", "verify")
        assert len(alice.run("ls", "-R").lines) == 6


def test_a_damaged_entry_ends_the_log(daemon: Daemon, alice: Client) -> None:
    kept = entries(daemon)
    alice.run("put", "-", "--name", "one", stdin=b"x")
    alice.run("put", "-", "--name", "two", stdin=b"x")
    daemon.kill()
    shutil.rmtree(daemon.root / "logs" / "tree")
    log = daemon.root / "logs" / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[kept] = lines[kept].replace(b'"put"', b'"pat"').replace(b"alice", b"alicf")
    log.write_bytes(b"".join(lines))
    with pytest.raises(CommandFailed, match=f"--cut-log {kept}`"):
        daemon.start()
    daemon.run("fsck", "--cut-log", str(kept))
    daemon.run("fsck", "--read-data")
    assert (daemon.root / f"logs/cut-{kept}.jsonl").read_bytes() == b"".join(lines[kept:])
    with daemon:
        accepted(alice)
        assert "one" not in alice.run("ls", "-R").lines
        alice.run("put", "-", "--name", "one", stdin=b"x")


def test_an_interrupted_cut_is_continued(daemon: Daemon, alice: Client) -> None:
    kept = entries(daemon)
    alice.run("share", "dir/shared", "bob", "--expires", "30d")
    daemon.stop()
    named = cut(daemon, kept)
    stray = daemon.root / "stray"
    stray.write_bytes(b"")  # nothing can be moved there
    (daemon.root / "store/users/alice/files/00").mkdir(exist_ok=True)
    (daemon.root / "store/users/alice/files/00" / ("0" * 32 + ".1.ct")).write_bytes(b"unknown")
    daemon.run(*named.split(), code=1)
    with pytest.raises(CommandFailed, match="--cut-log"):
        daemon.start()
    stray.unlink()
    daemon.run("fsck", "--cut-log", str(kept - 1), code=5)
    daemon.run(*named.split())
    with daemon:
        accepted(alice)
        assert alice.run("cat", "dir/shared").stdout == b"old"
