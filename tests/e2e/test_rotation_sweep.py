"""SIGKILL of client, daemon or both at steps of a rotation; running it again completes it.

A test run has 24 points, SFS_ROTATION=full (`make rotation-sweep`) 192, spread over all kinds of
steps (see `tests.e2e.killed`). One account goes through all of them: each point starts from the
account that the one before has recovered.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from sfsc.keys.bundle import private_keys
from sfsc.keys.home import unlock_home
from sfsc.keys.keyring import Keyring
from tests.e2e.accounts import enrolled, new_root
from tests.e2e.test_rotation import count_wraps_opened
from tests.harness import Daemon, environment

FULL = os.environ.get("SFS_ROTATION") == "full"
MOST = 8 if FULL else 1
"""Factor for the number of points in a test run."""
SEED = 6
SECONDS = 300 if FULL else 60
"""Time limit of one rotation. After a theft each version gets another record, which every later
rotation endorses: the last rotations of a full run have hundreds of records."""
NAMES = [f"{number:02}" for number in range(8)]
LARGE = "large"
"""Content longer than one request can carry."""
DAEMON = {"prepare", "prepared", "append", "appended", "publish", "published", "signed"} | {
    "settle",
    "settled",
}


class Swept:
    """A daemon that kills itself at a given step, and an account with files in every state."""

    def __init__(self, folder: Path) -> None:
        self.point = folder / "point"
        program = (sys.executable, "-m", "tests.e2e.killed", str(self.point))
        root = new_root(folder / "root").root
        (root / "sfsd.toml").write_text("[limits]\nrotations = 1000\n")  # more than needed
        self.daemon = Daemon(root, program=program).start()
        self.alice = enrolled(self.daemon, "alice", folder / "alice", "x25519")
        self.contents: dict[tuple[str, int | None], bytes] = {}
        self._fill(folder)
        self.wraps = self._check()

    def _fill(self, folder: Path) -> None:
        """Create versions, deleted files, a purged version, a purged file and a renamed file."""
        with sfsc.connect(self.alice.home) as store:
            for name in (*NAMES, LARGE):
                content = name.encode() * (100_000 if name == LARGE else 50)
                (folder / name).write_bytes(content)
                store.put(folder / name, name=name)
                self.contents[name, None] = content
            for name in NAMES[:4]:
                store.put(folder / name, name=name)
                self.contents[name, 1] = self.contents[name, None]
            store.rm(NAMES[0])
            self.contents[NAMES[0], 2] = self.contents.pop((NAMES[0], None))
            store.prune(NAMES[1], keep=1)
            del self.contents[NAMES[1], 1]
            store.mv(NAMES[2], "renamed")
            self.contents["renamed", None] = self.contents.pop((NAMES[2], None))
            del self.contents[NAMES[2], 1]  # reached through the renamed file's history
            store.rm(NAMES[7])
            store.purge(NAMES[7])
            del self.contents[NAMES[7], None]

    def _check(self) -> int:
        """Check that every file opens and no older key is used; return the number of wraps."""
        with sfsc.connect(self.alice.home, auto_rotate=False) as store:
            wraps = store.verify_rotation().files
            for (name, version), content in self.contents.items():
                with store.open(name, version=version) as file:
                    assert file.read() == content, (name, version)
        return wraps

    @property
    def keyring(self) -> Keyring:
        return unlock_home(self.alice.home, None).contents

    def _start(self, *, compromised: bool) -> subprocess.Popen[bytes]:
        how = ["compromised"] if compromised else []
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.killed", self.point, "rotate", self.alice.home, *how],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment({}),
        )

    def count(self, *, compromised: bool) -> Counter[str]:
        """Count how often each step occurs in a complete rotation."""
        self.point.with_suffix(".next").write_text("count")
        done, stderr = self._start(compromised=compromised).communicate(timeout=SECONDS)
        assert done == b"done\n", stderr.decode()
        self.point.unlink()
        return Counter(self.point.with_suffix(".seen").read_text().split())

    def kill(self, kind: str, number: int, *, compromised: bool, both: bool) -> None:
        """Rotate up to a step at which its process is killed.

        If that is the daemon, the client is killed too (`both`) or must survive and finish.
        """
        self.point.with_suffix(".next").write_text(f"{kind} {number}")
        process = self._start(compromised=compromised)
        if kind in DAEMON:
            assert self.daemon.wait(SECONDS) == -signal.SIGKILL
            if both:
                process.kill()
            self.point.unlink()
            self.daemon.start()
        done, stderr = process.communicate(timeout=SECONDS)
        if kind not in DAEMON or both:
            assert process.returncode == -signal.SIGKILL, (done, stderr.decode())
            self.point.unlink(missing_ok=True)
            if both and kind not in DAEMON:
                self.daemon.kill()
                self.daemon.start()
        else:
            assert done == b"done\n", stderr.decode()

    def finish(self, *, compromised: bool, asked: bool) -> None:
        """Complete the rotation, on request (`asked`) or automatically, and check the account."""
        before = self.keyring
        with sfsc.connect(self.alice.home) as store:
            if asked:
                store.rotate(compromised=compromised)
        after = self.keyring
        assert self._check() == self.wraps
        assert len(after.generations) == 1
        assert after.pending is None
        old = [one for one in before.generations if one not in after.generations]
        if asked:
            assert old
            assert count_wraps_opened(self.daemon, before, private_keys(tuple(old))) == (
                self.wraps,
                0,
            )


@pytest.fixture
def swept(tmp_path: Path) -> Iterator[Swept]:
    swept = Swept(tmp_path)
    with swept.daemon:
        yield swept


def spread(counted: Counter[str], most: int) -> list[tuple[str, int]]:
    """Return at most `most` points, equally many random ones of each kind."""
    chance = random.Random(SEED)
    left = {kind: chance.sample(range(1, n + 1), n) for kind, n in sorted(counted.items())}
    chosen: list[tuple[str, int]] = []
    while len(chosen) < most and any(left.values()):
        for kind, numbers in left.items():
            if numbers and len(chosen) < most:
                chosen.append((kind, numbers.pop()))
    return chosen


@pytest.mark.slow
@pytest.mark.timeout(3600 if FULL else 300)
@pytest.mark.parametrize(
    ("who", "compromised", "most"),
    [("client", False, 8), ("daemon", False, 6), ("client", True, 5), ("daemon", True, 5)],
)
def test_kill_at_each_step(swept: Swept, who: str, most: int, *, compromised: bool) -> None:
    counted = swept.count(compromised=compromised)
    # The number of settles depends on timing; half of it is certain.
    counted["settle"] = counted["settled"] = min(counted["settle"], counted["settled"]) // 2
    steps = {kind: n for kind, n in counted.items() if (kind in DAEMON) == (who == "daemon")}
    points = spread(Counter(steps), most * MOST)
    assert len(points) == min(most * MOST, sum(steps.values()))
    for turn, (kind, number) in enumerate(points):
        swept.kill(kind, number, compromised=compromised, both=turn % 2 == 0)
        swept.finish(compromised=compromised, asked=turn % 3 != 0)
    swept.alice.run("audit", "verify")
    assert swept.daemon.stop() == 0
    swept.daemon.run("audit", "verify")
    swept.daemon.run("fsck", "--read-data")
