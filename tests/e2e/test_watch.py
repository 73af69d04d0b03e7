"""`sfsc watch` stores what changes in a folder, also through lost connections and restarts.

`make sync-model` makes 1,000 edits (SYNC_EDITS).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import sfsc
from tests.e2e.accounts import enrolled
from tests.harness import Client, Daemon
from tests.waiting import until

EDITS = int(os.environ.get("SYNC_EDITS", "40"))
SECONDS = 60.0


class Stored:
    """What the store holds; the content of each version is fetched once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._contents: dict[tuple[str, int], bytes] = {}

    def files(self) -> dict[str, bytes]:
        time.sleep(0.2)  # for the watcher
        found = {}
        with sfsc.connect(self._client.home, auto_rotate=False) as store:
            for entry in store.ls("kept/"):
                version = entry.name, entry.version
                if entry.kind == "file":
                    with contextlib.suppress(sfsc.NotFound):  # deleted since it was listed
                        if version not in self._contents:
                            self._contents[version] = store.open(entry.name).read()
                        found[entry.name.removeprefix("kept/")] = self._contents[version]
        return found


def held(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edit(folder: Path, chosen: random.Random, number: int) -> None:
    path = folder / f"{chosen.randrange(4)}" / f"{chosen.randrange(50):02}"
    path.parent.mkdir(exist_ok=True)
    if path.exists() and chosen.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(b"edit %d" % number)


def start(client: Client, folder: Path) -> subprocess.Popen[bytes]:
    return client.start("--json", "watch", "--delete", folder, "kept")


def test_watch_through_a_restart(daemon: Daemon, tmp_path: Path) -> None:
    client, folder = enrolled(daemon, "alice", tmp_path / "alice", "x25519"), tmp_path / "folder"
    folder.mkdir()
    (folder / "before").write_bytes(b"before")
    chosen, stored = random.Random(1), Stored(client)
    process = start(client, folder)
    try:
        until(lambda: "before" in stored.files())
        for number in range(EDITS):
            edit(folder, chosen, number)
            if number == EDITS // 3:
                daemon.kill()
            if number == EDITS // 2:
                daemon.start()
            time.sleep(0.002)
        until(lambda: stored.files() == held(folder))
        # A watcher that is killed goes on where it was.
        process.kill()
        process.communicate()
        edit(folder, chosen, EDITS)
        (folder / "while it was dead").write_bytes(b"new")
        process = start(client, folder)
        until(lambda: stored.files() == held(folder))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert b"while it was dead" in out
        assert b"before" not in out  # nothing is stored twice
    finally:
        process.kill()
        process.communicate()
    daemon.stop()
    daemon.run("audit", "verify")
