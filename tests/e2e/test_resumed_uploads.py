"""Uploads that were cut: resumed by the next put, and never with two segments under one nonce."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from protocol.wire.messages import Reply, Request
from protocol.wire.messages.uploads import Data, PutOpen, PutResume
from sfsc.crypto.segments import HEADER_SIZE
from sfsc.session.limits import MAX_WINDOW
from sfsd.rules.context import Principal
from tests.harness import Client, command, environment
from tests.lying_server import DropConnection, LyingServer
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows keeps no journals")
MIB = 1 << 20
SIZE = 12 * MIB + 77


def arguments(source: Path) -> tuple[str | Path, ...]:
    return ("put", *(["-r"] if source.is_dir() else []), source, "--name", "big")


class Wire:
    """Sees what clients send, and kills the running one at a given piece."""

    def __init__(self, server: LyingServer, home: Path) -> None:
        self.server = server
        self.client = Client(home)
        self.sent: list[tuple[bytes, int, bytes]] = []  # upload, offset, SHA-256 of the piece
        self.headers: dict[bytes, bytes] = {}  # of each upload: salt and nonce prefix
        self.asked: list[Request] = []
        self.kill_at: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        server.intercept = self._see

    def _see(self, who: Principal, request: Request) -> Reply | None:
        if isinstance(request, Data):
            piece = bytes(request.data)
            self.sent.append((request.upload, request.offset, hashlib.sha256(piece).digest()))
            if not request.offset:
                self.headers[request.upload] = piece[:HEADER_SIZE]
            if self.process is not None and len(self.sent) == self.kill_at:
                self.process.send_signal(self.number)
                if self.number == signal.SIGKILL:
                    raise DropConnection
        else:
            self.asked.append(request)
        return None

    def killed(self, source: Path, pieces: int, number: int = signal.SIGKILL) -> None:
        """Put `source` in a process that gets a signal when the server gets so many more pieces."""
        self.kill_at, self.number = len(self.sent) + pieces, number
        with subprocess.Popen(
            [*command("sfsc"), *arguments(source)],
            env=environment(self.client.variables),
            stderr=subprocess.DEVNULL,
        ) as self.process:
            assert self.process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        self.kill_at = self.process = None

    def put(self, source: Path) -> list[int]:
        """Put `source`. Return the offsets of the pieces that were sent."""
        before = len(self.sent)
        self.client.run(*arguments(source))
        return sorted({offset // MIB for _, offset, _ in self.sent[before:]})

    def check(self, source: Path, back: Path) -> None:
        """Check what is stored, that nothing is left, and that no key and nonce was used twice."""
        self.client.run("get", "big", "-o", back)
        assert back.read_bytes() == source.read_bytes()
        assert self.journals() == []
        self.check_nonces()

    def check_nonces(self) -> None:
        # The server moves a content to its place after the reply.
        until(lambda: list((self.server.root / "staging").glob("*.ct")) == [])
        hashes = defaultdict[tuple[bytes, int], set[bytes]](set)
        for upload, offset, digest in self.sent:
            hashes[self.headers[upload], offset].add(digest)
        assert {len(found) for found in hashes.values()} == {1}
        assert len(set(self.headers.values())) == len(self.headers)

    def journals(self) -> list[Path]:
        folder = self.client.home / "uploads"
        return sorted(folder.iterdir()) if folder.exists() else []

    def used(self) -> int:
        return int(json.loads(self.client.run("--json", "status").stdout)["used"])

    def count(self, kind: type[Request]) -> int:
        return sum(isinstance(one, kind) for one in self.asked)


@pytest.fixture
def wire(lying_server: LyingServer) -> Wire:
    return Wire(lying_server, lying_server.enrol("resumes"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(SIZE))
    return path


def test_a_killed_put_is_resumed(wire: Wire, source: Path, tmp_path: Path) -> None:
    """The upload is kept, counts as quota, and no piece that the server has is sent again; but a
    source that has changed is never sent under the same key."""
    wire.killed(source, 5)
    assert wire.used() >= SIZE
    (journal,) = wire.journals()
    assert journal.stat().st_mode & 0o777 == 0o600
    assert journal.parent.stat().st_mode & 0o777 == 0o700
    wire.killed(source, 4)
    assert wire.put(source)[0] >= 3
    assert len(wire.headers) == wire.count(PutOpen) == 1
    assert wire.count(PutResume) == 2
    assert wire.used() < SIZE + 10_000
    wire.check(source, tmp_path / "back")
    # Interrupted, it is dropped on both sides.
    # All of `source` may be on its way by then, followed by its record.
    longer = tmp_path / "longer"
    with longer.open("wb") as file:
        file.truncate(3 * MAX_WINDOW)
    wire.killed(longer, 6, signal.SIGTERM)
    assert wire.journals() == []
    assert wire.used() < SIZE + 10_000
    wire.killed(source, 6)
    before = source.stat()
    with source.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"!")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert wire.put(source)[0] == 0
    assert len(wire.headers) == 4
    assert wire.used() < 2 * SIZE + 20_000
    wire.check(source, tmp_path / "back")


def test_put_r_resumes_each_large_file(wire: Wire, tmp_path: Path) -> None:
    tree = tmp_path / "t"
    tree.mkdir()
    for name in ("a", "b", "c"):
        (tree / name).write_bytes(os.urandom(SIZE if name != "b" else 1000))
    wire.killed(tree, 20)
    wire.put(tree)
    assert wire.count(PutResume) == 1
    wire.client.run("get", "-r", "big", "-o", tmp_path / "out")
    for name in ("a", "b", "c"):
        assert (tmp_path / "out" / "big" / name).read_bytes() == (tree / name).read_bytes()
    wire.check_nonces()
