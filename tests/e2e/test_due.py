"""Keys that become due, with programs whose clock is set, so that no test waits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfsc.keys.home import unlock_home
from tests.e2e.accounts import enrolled, new_root
from tests.harness import Client, Daemon, environment

DAY = 86_400


@dataclass
class Later:
    """A daemon and alice's client with one adjustable clock."""

    ahead: Path
    daemon: Daemon
    alice: Client

    def at(self, days: float) -> None:
        aside = self.ahead.with_suffix(".next")
        aside.write_text(str(days * DAY))
        aside.replace(self.ahead)

    def sfsc(self, *arguments: str, careful: bool = False, code: int = 0) -> str:
        """Run a command and return its result. `careful` sets SFSC_AUTO_ROTATE=0."""
        own = {"SFSC_HOME": str(self.alice.home), **({"SFSC_AUTO_ROTATE": "0"} if careful else {})}
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.later", str(self.ahead), "sfsc", *arguments],
            input=b"content",
            capture_output=True,
            env=environment(own),
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr.decode()
        return (done.stdout if code == 0 else done.stderr).decode()

    @property
    def generation(self) -> int:
        (only,) = unlock_home(self.alice.home, None).contents.generations
        return only.generation


@pytest.fixture
def later(tmp_path: Path) -> Iterator[Later]:
    ahead = tmp_path / "ahead"
    ahead.write_text("0")
    program = (sys.executable, "-m", "tests.e2e.later", str(ahead), "sfsd")
    daemon = Daemon(new_root(tmp_path / "root").root, program=program)
    with daemon:
        later = Later(ahead, daemon, enrolled(daemon, "alice", tmp_path / "alice", "x25519"))
        later.sfsc("put", "-", "--name", "kept")
        yield later


def test_keys_become_due_and_then_overdue(later: Later) -> None:
    later.at(80)
    assert json.loads(later.sfsc("--json", "rotate", "--if-due")) == {"due": False}
    later.sfsc("ls")
    assert later.generation == 1
    later.at(91)  # due: a rotation is not forced on the user
    later.sfsc("put", "-", "--name", "kept", careful=True)
    assert later.generation == 1
    later.sfsc("ls")
    assert later.generation == 2
    later.sfsc("put", "-", "--name", "dropped")
    later.at(91 + 80)
    assert json.loads(later.sfsc("--json", "rotate", "--if-due", careful=True)) == {"due": False}
    later.at(91 + 121)  # after due and grace: only reads and rotation
    assert "rotat" in later.sfsc("put", "-", "--name", "kept", careful=True, code=4)
    later.sfsc("mv", "kept", "moved", careful=True, code=4)
    assert later.sfsc("cat", "kept", careful=True) == "content"
    later.sfsc("rm", "--purge", "dropped", careful=True)  # it makes room
    assert later.generation == 2
    rotated = json.loads(later.sfsc("--json", "rotate", "--if-due", careful=True))
    assert rotated["generation"] == later.generation == 3
    later.sfsc("put", "-", "--name", "kept", careful=True)
    later.at(91 + 121 + 121)  # automatic rotation happens before a put that would be refused
    later.sfsc("put", "-", "--name", "kept")
    assert later.generation == 4
    later.sfsc("verify-rotation")


def test_automatic_rotation_obeys_the_server_once_a_day(later: Later) -> None:
    for days, generation in ((0.0, 2), (0.9, 2), (1.1, 3), (1.2, 3)):
        later.at(days)
        later.daemon.run("rotate", "alice")
        later.sfsc("put", "-", "--name", "x", careful=True, code=4)  # applies at once
        later.sfsc("cat", "kept")
        assert later.generation == generation, days
    assert "rotat" in later.sfsc("put", "-", "--name", "x", code=4)
    later.sfsc("rotate")  # on request, at any time
    later.sfsc("put", "-", "--name", "x")
