"""Long runs: many files, large files, and connections that break repeatedly.

`make test` runs a sample of each, `make soak` all of it, by the same code.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import sfsc
from protocol.codec.encoding import Buffer
from protocol.records.records import FileRecord
from sfsc.crypto import primitives, segments
from sfsc.crypto.envelope import ContentKey, Metadata
from tests.e2e.proxy import proxied
from tests.e2e.test_main_job import peak, through
from tests.harness import Client, Daemon

FULL = os.environ.get("SFS_SOAK") == "full"
MIB = 1024 * 1024
FILES = 5_000 if FULL else 100
NAMES = 10_000 if FULL else 120
LARGE = 4096 * MIB if FULL else 64 * MIB
UPLOAD, CUTS = (256 * MIB, 50) if FULL else (24 * MIB, 5)
SEED = 20_261_125


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    """Return a folder on the disk: large files are read and written past its cache."""
    return disk_folder


def fill(path: Path, size: int, seed: int = SEED) -> None:
    """Write `size` bytes that do not repeat and are cheap to generate."""
    block = bytearray(random.Random(seed).randbytes(MIB))
    with path.open("wb") as file:
        for number in range(0, size, MIB):
            block[:8] = number.to_bytes(8, "big")
            file.write(block[: min(MIB, size - number)])


def same(first: Path, second: Path) -> bool:
    return subprocess.run(["diff", "-r", "-q", first, second], check=False).returncode == 0


def test_real_files(alice: Client, tmp_path: Path) -> None:
    """Store files of /usr/share up to the wanted number, and generated files for the rest."""
    source = tmp_path / "tree"
    copied = 0
    for folder, _, names in os.walk("/usr/share"):
        for name in names:
            path = Path(folder) / name
            if copied < FILES and path.is_file() and not path.is_symlink():
                target = source / path.relative_to("/usr/share")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                copied += 1
    for number in range(copied, FILES):
        fill(source / f"own {number}", number % 9000, number)
    stored = alice.run("put", "-r", "tree", cwd=tmp_path, seconds=900)
    assert stored.stderr.splitlines()[-1] == f"{FILES} stored, 0 unchanged, 0 skipped"
    alice.run("get", "-r", "tree", "-o", tmp_path / "out", seconds=900)
    assert same(source, tmp_path / "out" / "tree")


def test_a_large_file_uses_constant_memory(alice: Client, tmp_path: Path) -> None:
    fill(tmp_path / "large", LARGE)
    fill(tmp_path / "small", 10)
    base_up, base_down = peak(alice, "put", "small", cwd=tmp_path), 0
    assert peak(alice, "put", "large", cwd=tmp_path) - base_up < 48 * MIB
    base_down = peak(alice, "get", "small", "-o", "small.back", cwd=tmp_path)
    assert peak(alice, "get", "large", "-o", "large.back", cwd=tmp_path) - base_down < 48 * MIB
    assert same(tmp_path / "large", tmp_path / "large.back")


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Record (hash of the key, nonce) of everything that is encrypted by `Aead.seal_into`."""
    seen: list[tuple[bytes, bytes]] = []
    names: dict[int, bytes] = {}
    build, seal = primitives.Aead.__init__, primitives.Aead.seal_into

    def building(aead: primitives.Aead, key: bytes) -> None:
        build(aead, key)
        names[id(aead)] = hashlib.sha256(key).digest()

    def sealing(aead: primitives.Aead, nonce: bytes, plaintext: Buffer, out: Buffer) -> None:
        seen.append((names[id(aead)], nonce))
        seal(aead, nonce, plaintext, out)

    monkeypatch.setattr(primitives.Aead, "__init__", building)
    monkeypatch.setattr(primitives.Aead, "seal_into", sealing)
    return seen


def test_a_repeatedly_interrupted_upload(
    daemon: Daemon, alice: Client, tmp_path: Path, sealed: list[tuple[bytes, bytes]]
) -> None:
    """The file arrives complete, and no key and nonce pair is used for two segments."""
    fill(tmp_path / "file", UPLOAD)
    chance = random.Random(SEED)
    moments = [chance.randrange(20_000, 2 * UPLOAD // CUTS) for _ in range(CUTS)]
    with proxied(daemon.address, moments) as (proxy, address):
        client = through(address, alice, tmp_path / "proxied")
        with sfsc.connect(client.home) as store:
            put = store.put(tmp_path / "file", name="file")
        assert put.version == 1
        assert proxy.accepted > CUTS // 2
    # Each segment, and its hash in the upload's journal.
    count = segments.segment_count(segments.ciphertext_size(UPLOAD))
    assert len(sealed) == len(set(sealed)) == 2 * count
    alice.run("get", "file", "-o", tmp_path / "back", seconds=600)
    assert same(tmp_path / "file", tmp_path / "back")


def test_a_repeatedly_interrupted_download(daemon: Daemon, alice: Client, tmp_path: Path) -> None:
    fill(tmp_path / "file", UPLOAD)
    alice.run("put", "file", cwd=tmp_path, seconds=600)
    chance = random.Random(SEED)
    moments = [chance.randrange(20_000, 2 * UPLOAD // CUTS) for _ in range(CUTS)]
    with proxied(daemon.address, moments, downwards=True) as (proxy, address):
        client = through(address, alice, tmp_path / "proxied")
        with sfsc.connect(client.home) as store:
            store.get("file", tmp_path / "back")
        assert proxy.accepted > CUTS // 2
    assert same(tmp_path / "file", tmp_path / "back")


def test_a_second_listing_unwraps_no_keys(
    alice: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names").mkdir()
    for number in range(NAMES):
        (tmp_path / "names" / f"{number:05}").write_bytes(b"%d" % number)
    alice.run("put", "-r", "names", cwd=tmp_path, seconds=900)
    (alice.home / "state.sqlite3").unlink()
    opened: list[bytes] = []
    open_metadata = ContentKey.open_metadata

    def counting(key: ContentKey, record: FileRecord, sealed: bytes) -> Metadata:
        opened.append(sealed)
        return open_metadata(key, record, sealed)

    # Counts the calls and passes them on.
    monkeypatch.setattr(ContentKey, "open_metadata", counting)
    for calls in (NAMES + 1, 0, 0):  # also of the folder itself
        with sfsc.connect(alice.home) as store:
            assert len(list(store.ls())) == NAMES
        assert len(opened) == calls
        opened.clear()
