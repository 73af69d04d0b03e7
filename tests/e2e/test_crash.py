"""SIGKILL at random moments of uploads: acknowledged files open, partial files are never visible.

SFS_CRASH_POINTS=full kills ten times as often (`make crash-sweep`).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

import sfsc
from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon

KILLS = 60 if os.environ.get("SFS_CRASH_POINTS") == "full" else 4
SEED = int(os.environ.get("SFS_CRASH_SEED", "7"))


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    """Return a folder on the disk: what is killed has waited for it."""
    return disk_folder


def make_files(folder: Path, chance: random.Random) -> dict[str, bytes]:
    """Create 80 small files and 20 of 1 to 12 MiB; return {name: SHA-256 of the content}."""
    hashes = {}
    for number in range(100):
        large = number % 5 == 4
        size = chance.randrange(1 << 20, 12 << 20) if large else chance.randrange(0, 200_000)
        content = chance.randbytes(size)
        name = f"{'large' if large else 'small'}-{number:03}"
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).digest()
    return hashes


def put_until_killed(
    daemon: Daemon, client: Client, folder: Path, names: list[str], seconds: float, *, both: bool
) -> set[str]:
    """Put `names` while the daemon is killed after `seconds` and restarted; return stored names.

    With `both` the client is killed too; otherwise it must complete.
    """
    log = daemon.root / "logs" / "audit.jsonl"
    before = log.stat().st_size
    process = client.start("--json", "put", *names, cwd=folder)
    # A client without a daemon fails at once, so the seconds count from the start of a session.
    awaited = b'"op":"login"' if both else b'"op":"upload"'
    while awaited not in log.read_bytes()[before:] and process.poll() is None:
        time.sleep(0.01)

    def kill() -> None:
        daemon.kill()
        if both:
            process.kill()
        daemon.start()

    killer = threading.Timer(seconds, kill)
    killer.start()
    stdout, stderr = process.communicate(timeout=100)
    killer.join()
    assert b"Traceback" not in stderr, stderr.decode()
    assert process.returncode == 0 or (both and process.returncode == -signal.SIGKILL), stderr
    acknowledged = {json.loads(line)["name"] for line in stdout.splitlines()}
    assert process.returncode != 0 or acknowledged == set(names)
    return acknowledged


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return {relative path: SHA-256} of all files below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(3600 if KILLS > 4 else 500)
def test_kill_at_random_moments_during_uploads(daemon: Daemon, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    alice = enrolled(daemon, "alice", tmp_path / "alice")
    source = tmp_path / "source"
    source.mkdir()
    hashes = make_files(source, chance)
    acknowledged: set[str] = set()
    for turn in range(KILLS):
        rest = [name for name in hashes if name not in acknowledged] or list(hashes)
        chance.shuffle(rest)
        names, seconds = rest[: 1 + len(rest) * 2 // KILLS], chance.uniform(0.0, 1.2)
        acknowledged |= put_until_killed(daemon, alice, source, names, seconds, both=turn % 2 == 0)
        daemon.run("audit", "verify")
        listed = set(alice.run("ls").lines)
        assert acknowledged <= listed <= set(hashes), f"after kill {turn + 1}, seed {SEED}"
    rest = [name for name in hashes if name not in acknowledged]
    alice.run("put", *rest, cwd=source) if rest else None
    check_every_file(alice, hashes, tmp_path)
    check_second_start(daemon)


def check_every_file(client: Client, hashes: dict[str, bytes], scratch: Path) -> None:
    """Check all files in one library session: starting a hundred commands would take minutes."""
    target = scratch / "got"
    with sfsc.connect(client.home) as store:
        assert {entry.name for entry in store.ls()} == set(hashes)
        for name, expected in hashes.items():
            store.get(name, target)
            assert hashlib.sha256(target.read_bytes()).digest() == expected, name


def check_second_start(daemon: Daemon) -> None:
    """Check that a clean stop and start change nothing in the store and are logged."""
    daemon.stop()
    store, log = tree_of(daemon.root / "store"), daemon.root / "logs" / "audit.jsonl"
    before = log.read_bytes()
    assert {path.name for path in (daemon.root / "staging").iterdir()} <= {"applied", ".spare"}
    daemon.start()
    daemon.stop()
    assert tree_of(daemon.root / "store") == store
    after = log.read_bytes()
    assert after.startswith(before)
    added = [json.loads(line)["op"] for line in after[len(before) :].splitlines()]
    assert added == ["start", "stop"]
    daemon.start()
    daemon.run("audit", "verify")


SET = 20
"""Files of each atomic set, one of which is uploaded before its record."""


@pytest.mark.slow
@pytest.mark.timeout(3600 if KILLS > 4 else 500)
def test_kill_at_random_moments_of_an_atomic_set(daemon: Daemon, tmp_path: Path) -> None:
    """Every file of the set is of the same turn, whenever the daemon is killed, and the client."""
    chance = random.Random(SEED)
    alice = enrolled(daemon, "alice", tmp_path / "alice", "x25519")
    names = [f"{number:02}" for number in range(SET)]
    changes = [{"op": "put", "name": name, "source": name} for name in names]
    (tmp_path / "changes").write_text("".join(json.dumps(one) + "\n" for one in changes))
    log, turn_of = daemon.root / "logs" / "audit.jsonl", -1
    for turn in range(KILLS):
        for name in names:
            size = 300_000 if name == names[0] else 40
            (tmp_path / name).write_bytes(b"%04d" % turn * (size // 4))
        before = log.stat().st_size
        process = alice.start("batch", "changes", cwd=tmp_path)
        while b'"op":"login"' not in log.read_bytes()[before:] and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.25))
        daemon.kill()
        if turn % 2:
            process.kill()
        daemon.start()
        _, stderr = process.communicate(timeout=100)
        assert b"Traceback" not in stderr, stderr.decode()
        with sfsc.connect(alice.home) as store:
            found = {entry.name: store.open(entry.name).read(4) for entry in store.ls()}
        turns = {int(content) for content in found.values()} or {-1}
        assert len(turns) == 1, f"a part of a set, seed {SEED}: {found}"
        assert turns == {turn} if process.returncode == 0 else turns <= {turn, turn_of}
        [turn_of] = turns
    daemon.run("audit", "verify", "--strict")
    daemon.stop()
    daemon.run("fsck", "--read-data")
    daemon.start()


@pytest.mark.slow
def test_kill_right_after_a_reply(daemon: Daemon, tmp_path: Path) -> None:
    """The daemon is killed at the moment a client learns that its file is stored."""
    alice = enrolled(daemon, "alice", tmp_path / "alice")
    for turn in range(3):
        for size in (10, 2_000_000):
            name = f"f{turn}-{size}"
            (tmp_path / name).write_bytes(os.urandom(size))
            alice.run("put", name, cwd=tmp_path)
            daemon.kill()
            daemon.start()
            alice.run("get", name, "-o", tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == (tmp_path / name).read_bytes()
    daemon.run("audit", "verify")
