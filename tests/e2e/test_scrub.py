"""The scrub of a served root: on demand, killed in the middle, and beside users."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.accounts import enrolled, new_root
from tests.harness import Daemon

BOUNDS = '[health]\nfree_space = "1 MiB"\nfree_files = 1\n'


def settings(served: Daemon, scrub: str) -> None:
    (served.root / "sfsd.toml").write_text(f"{BOUNDS}[scrub]\n{scrub}\n")


def state(served: Daemon, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served.run("scrub", "--json", code=code).text)
    return found


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_kill_in_the_middle_of_a_pass(tmp_path: Path) -> None:
    """What it had found is shown after the restart, and the same pass finds the rest."""
    served = new_root(tmp_path / "root")
    settings(served, 'every = "never"\nrate = "3 MiB"')
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}").write_bytes(bytes([number]) * 50_000)
    with served:
        alice = enrolled(served, "alice", tmp_path / "alice")
        alice.run("put", "-r", folder)
    # Only now: a start after a kill would put what was stored just before it in place again.
    ciphertexts = sorted((served.root / "store" / "users").rglob("*.ct"))
    for one in (ciphertexts[0], ciphertexts[-1]):
        with one.open("r+b") as file:
            file.truncate(40_000)
    with served:
        served.run("scrub", "--now")
        note = served.root / "run" / "scrub.json"
        until(note.exists)
        until(lambda: ".ct" in note.read_text())
        served.kill()
    settings(served, 'every = "never"\nrate = "1 GiB"')
    with served:
        found = state(served, code=5)
        assert found["began"]
        assert [one["path"][-34:] for one in found["damaged"]] == [ciphertexts[0].as_posix()[-34:]]
        assert found["last_finished"] == 0
        served.run("scrub", "--now", code=5)
        until(lambda: "pass 1 has read" in served.log_path.read_text())
        ended = state(served, code=5)
        assert ended["last_began"] == found["began"]
        assert ended["damage"] == 2
        check = served.run("status", "--check", code=1).lines
        assert [line.partition(" (")[0] for line in check] == [
            f"damaged file: {one.relative_to(served.root).as_posix()}"
            for one in (ciphertexts[0], ciphertexts[-1])
        ]
        assert "DAMAGED      2 files" in served.run("status").text
        told = served.log_path.read_text()
        assert [told.count(one.name) for one in (ciphertexts[0], ciphertexts[-1])] == [1, 1]
        assert told.count("begins") == 1


def test_now_without_a_daemon(tmp_path: Path) -> None:
    served = new_root(tmp_path / "root")
    assert served.run("scrub").lines == ["last pass  none yet", "running    no"]
    refused = served.run("scrub", "--now", code=7)
    assert "no daemon serves" in refused.stderr
