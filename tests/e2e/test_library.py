"""`import sfsc` in a script, against a real daemon."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import sfsc
from protocol.records.records import FileRecord
from sfsc.crypto.envelope import ContentKey, Metadata
from sfsc.store import Store
from sfsc.transfer.reader import Reader
from tests.e2e.accounts import enrolled
from tests.harness import PASSPHRASE, REPOSITORY, Client, Daemon

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

MEBIBYTE = 1 << 20


@pytest.fixture
def alice(daemon: Daemon, tmp_path: Path) -> Client:
    return enrolled(daemon, "alice", tmp_path / "alice", passphrase=PASSPHRASE)


@pytest.fixture
def store(alice: Client) -> Iterator[Store]:
    with sfsc.connect(alice.home, passphrase=PASSPHRASE) as opened:
        yield opened


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere its temporary file stays")
def test_a_killed_download_leaves_no_file(alice: Client, store: Store, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(20 * MEBIBYTE)
    store.put(io.BytesIO(content), name="file")
    target = tmp_path / "folder" / "file"
    target.parent.mkdir()
    program = f"""
import os, signal, sfsc
from sfsc.transfer.local_io import LargeFileWriter

class Killing(LargeFileWriter):
    def write(self, data):
        if self._written > {8 * MEBIBYTE}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)

import sfsc.transfer.destination
sfsc.transfer.destination.LargeFileWriter = Killing
with sfsc.connect({str(alice.home)!r}, passphrase={PASSPHRASE!r}) as store:
    store.get("file", {str(target)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(target.parent.iterdir()) == []
    store.get("file", target)
    assert target.read_bytes() == content


def test_typical_use_in_a_script(daemon: Daemon, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "report.pdf"
    path.write_bytes(b"version one")
    done = store.put(path, name="docs/report.pdf")
    assert (done.version, done.size) == (1, 11)
    assert done.receipt is not None
    path.write_bytes(bytes(3_000_000))
    assert store.put(str(path), name="docs/report.pdf").version == 2
    assert store.put(io.BytesIO(b""), name="empty").version == 1
    assert [entry.name for entry in store.ls()] == ["docs/report.pdf", "empty"]
    assert [entry.name for entry in store.ls("docs/")] == ["docs/report.pdf"]
    got = store.get("docs/report.pdf", tmp_path / "copy.pdf", version=1)
    assert (got.version, (tmp_path / "copy.pdf").read_bytes()) == (1, b"version one")
    stream = io.BytesIO()
    store.get("docs/report.pdf", stream)
    assert stream.getvalue() == bytes(3_000_000)
    status = store.status()
    assert (status.files, status.quota) == (2, 0)
    assert status.used >= 3_000_011
    deleted = store.rm("empty")
    assert deleted.name == "empty"
    with pytest.raises(sfsc.NotFound):
        store.stat("empty")
    assert store.status().files == 1


def test_a_tree_of_small_files(store: Store, tmp_path: Path) -> None:
    files = {f"tree/{i % 7}/{i}": b"%d" % i * (i % 400) for i in range(300)}
    done = list(store.put_many((io.BytesIO(data), name) for name, data in files.items()))
    assert [put.name for put in done] == list(files)
    assert sorted(files) == [entry.name for entry in store.ls("tree/")]
    for name in list(files)[::37]:
        stream = io.BytesIO()
        store.get(name, stream)
        assert stream.getvalue() == files[name]


def test_a_second_listing_opens_no_metadata(
    alice: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine the first listing opens the metadata of every file."""
    list(store.put_many((io.BytesIO(b""), f"f{i}") for i in range(200)))
    elsewhere = alice.home.with_name("elsewhere")
    elsewhere.mkdir()
    (elsewhere / "keyring").write_bytes((alice.home / "keyring").read_bytes())
    opened: list[int] = []
    open_metadata = ContentKey.open_metadata

    def counting(key: ContentKey, record: FileRecord, sealed: bytes) -> Metadata:
        opened[-1] += 1
        return open_metadata(key, record, sealed)

    monkeypatch.setattr(ContentKey, "open_metadata", counting)
    with sfsc.connect(elsewhere, passphrase=PASSPHRASE) as other:
        for _ in range(3):
            opened.append(0)
            assert len(list(other.ls())) == 200
    assert opened[0] >= 200
    assert opened[1:] == [0, 0]


def test_purge_of_a_file_with_many_versions(daemon: Daemon, store: Store) -> None:
    """The file has more versions than fit in a log line."""
    versions = 300
    for number in range(versions):
        store.put(io.BytesIO(b"%d" % number), name="file")
    store.rm("file")
    assert store.purge("file") == list(range(1, versions + 1))
    assert not list((daemon.root / "store" / "users" / "alice" / "files").rglob("*.ct"))


def test_a_daemon_restart_under_an_open_store(daemon: Daemon, store: Store) -> None:
    store.put(io.BytesIO(b"before"), name="file")
    daemon.kill()
    daemon.start()
    assert store.stat("file").size == 6
    assert store.put(io.BytesIO(b"afterwards"), name="file").version == 2
    stream = io.BytesIO()
    store.get("file", stream)
    assert stream.getvalue() == b"afterwards"


class Restarting(io.BytesIO):
    """A file object that cleanly restarts the daemon once, half way through."""

    def __init__(self, daemon: Daemon, content: bytes = b"") -> None:
        super().__init__(content)
        self._daemon: Daemon | None = daemon

    def _pass(self) -> None:
        if self._daemon is not None and self.tell() >= 24 * MEBIBYTE:
            self._daemon.stop()
            self._daemon.start()
            self._daemon = None

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._pass()
        return super().readinto(buffer)

    def write(self, data: ReadableBuffer, /) -> int:
        self._pass()
        return super().write(data)


def test_a_daemon_restart_during_a_large_file(daemon: Daemon, store: Store) -> None:
    content = random.Random(7).randbytes(48 * MEBIBYTE)
    assert store.put(Restarting(daemon, content), name="large").version == 1
    arrived = Restarting(daemon)
    store.get("large", arrived)
    assert arrived.getvalue() == content


def test_a_stopped_daemon(daemon: Daemon, alice: Client) -> None:
    daemon.stop()
    with pytest.raises(sfsc.NetworkError):
        sfsc.connect(alice.home, passphrase=PASSPHRASE)


def test_put_with_an_expected_version(alice: Client, store: Store) -> None:
    with sfsc.connect(alice.home, passphrase=PASSPHRASE) as other:
        store.put(io.BytesIO(b"one"), name="file", expected=0)
        other.put(io.BytesIO(b"two"), name="file", expected=1)
        with pytest.raises(sfsc.ConflictError):
            store.put(io.BytesIO(b"three"), name="file", expected=1)
        assert store.put(io.BytesIO(b"three"), name="file", expected=2).version == 3


def test_a_server_restored_from_a_backup_is_refused(
    daemon: Daemon, alice: Client, tmp_path: Path
) -> None:
    """The operator restores an older backup; users who connected since then refuse it."""
    alice.run("put", "-", "--name", "file", stdin=b"one")
    daemon.stop()
    backup = tmp_path / "backup"
    shutil.copytree(daemon.root, backup)
    daemon.start()
    alice.run("put", "-", "--name", "file", stdin=b"two")
    daemon.stop()
    shutil.rmtree(daemon.root)
    shutil.copytree(backup, daemon.root)
    daemon.start()
    with pytest.raises(sfsc.IntegrityError):
        sfsc.connect(alice.home, passphrase=PASSPHRASE)
    alice.run("ls", code=5)


def test_each_thread_has_a_connection_of_its_own(alice: Client, store: Store) -> None:
    """Mixed-up replies look like those of a lying server, and were once kept as evidence."""

    def work(number: int) -> int:
        for count in range(20):
            assert store.write_bytes(f"{number}/{count}", b"%d" % count).version == 1
            assert store.read_bytes(f"{number}/{count}") == b"%d" % count
        return id(store.for_thread())

    with ThreadPoolExecutor(4) as pool:
        used = set(pool.map(work, range(8)))
    assert 1 <= len(used) <= 4
    assert id(store) not in used
    assert store.for_thread() is store
    assert len(list(store.ls())) == 8 * 20
    assert not (alice.home / "evidence").exists()
    # A pipe between two calls, which would wait for each other over one connection.
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb") as target, ThreadPoolExecutor(1) as one:
        piped = one.submit(store.put, source, name="copy")
        store.get("1/7", target)
        target.close()
        assert piped.result(60).size == 1
    store.close()
    with pytest.raises(sfsc.UsageError, match="closed"):
        store.stat("copy")
    with ThreadPoolExecutor(1) as one, pytest.raises(sfsc.UsageError, match="closed"):
        one.submit(store.stat, "copy").result(60)


def test_what_belongs_to_one_thread_is_refused_while_that_is_busy(store: Store) -> None:
    store.write_bytes("file", bytes(MEBIBYTE))
    with (
        store.open("file") as file,
        concurrent(file),
        pytest.raises(sfsc.UsageError, match="connection"),
    ):
        store.stat("file")


@contextlib.contextmanager
def concurrent(file: io.BufferedReader) -> Iterator[None]:
    """Keep another thread inside a read of `file`, whose connection is that of this thread."""
    began, go_on = threading.Event(), threading.Event()
    guard = cast(Reader, file.raw)._session.thread_guard

    def read() -> None:
        with guard:
            began.set()
            go_on.wait(60)
            file.read()

    thread = threading.Thread(target=read)
    thread.start()
    began.wait(60)
    try:
        yield
    finally:
        go_on.set()
        thread.join()
