"""A disk that another program keeps full: its bytes, or the number of its files."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounts import enrolled, new_root
from tests.e2e.test_main_job import through


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system at `folder`; skip the test if this process may not."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("this process may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Greedy:
    """Another program that takes everything that is free, again and again."""

    def __init__(self, folder: Path, *, files: bool) -> None:
        self._folder = folder
        self._files = files
        self._stop = threading.Event()
        self.full = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Greedy:
        self._folder.mkdir()
        self._thread.start()
        assert self.full.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with (self._folder / "bytes").open("wb", buffering=0) as file:
            while not self._stop.is_set():
                number += 1
                try:
                    if self._files:
                        (self._folder / str(number)).touch()
                    else:
                        file.write(bytes(4096 if self.full.is_set() else 1 << 20))
                except OSError as exc:
                    if exc.errno != errno.ENOSPC:
                        raise
                    if self.full.is_set():
                        self._stop.wait(0.002)
                    self.full.set()


@pytest.mark.parametrize(
    ("options", "files"), [("size=110m", False), ("size=110m,nr_inodes=500", True)]
)
def test_reads_deletes_purges_and_logins_go_on(
    tmp_path: Path, options: str, *, files: bool
) -> None:
    with small_disk(tmp_path / "disk", options) as disk, new_root(disk / "root") as daemon:
        alice = enrolled(daemon, "alice", tmp_path / "alice")
        alice.run("put", "-", "--name", "large", stdin=os.urandom(2 << 20))
        for name in ("one", "two"):
            alice.run("put", "-", "--name", name, stdin=name.encode())
        with Greedy(disk / "other", files=files):
            assert alice.run("cat", "one").stdout == b"one"
            assert "full" in alice.run("put", "-", "--name", "new", stdin=b"x", code=7).stderr
            alice.run("rm", "two")
            alice.run("rm", "--purge", "large")
            daemon.kill()
            daemon.start()
            alice = through(daemon.address, alice, tmp_path / "killed")
            assert alice.run("cat", "one").stdout == b"one"
            assert alice.run("ls").lines == ["one"]
            for _ in range(5):
                daemon.kill()
                daemon.start()
            assert alice.run("cat", "one").stdout == b"one"
            assert "FAILED" not in daemon.run("status").text
            alice.run("rm", "--purge", "one")
        for path in (disk / "other").iterdir():
            path.unlink()
        alice.run("put", "-", "--name", "new", stdin=b"x")
        daemon.stop()
        daemon.run("fsck", "--read-data")
        daemon.start()
