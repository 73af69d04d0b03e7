"""Padded contents: the server sees the padded size, and everybody else the content alone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import sfsc
from protocol.codec.values import changed
from sfsc.crypto.envelope import ContentKey, Metadata
from sfsc.crypto.padding import padded_size
from sfsc.crypto.segments import ciphertext_size
from sfsc.errors import BadRecord
from sfsc.transfer.source import SMALL
from sfsc.transfer.upload_journal import RESUMABLE
from tests.lying_server import LyingServer

MEBIBYTE = 1 << 20
SIZES = (0, 1, 9, 1001, SMALL - 1, SMALL, SMALL + 1, MEBIBYTE - 55, 3 * MEBIBYTE + 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    with LyingServer(tmp_path_factory.mktemp("padded") / "root") as served:
        yield served


@pytest.fixture(scope="module")
def home(server: LyingServer) -> Path:
    return server.enrol("ada", key_type="x25519")


@pytest.fixture
def store(home: Path) -> Iterator[sfsc.Store]:
    with sfsc.connect(home) as opened:
        yield opened


def is_padded(entry: sfsc.Entry) -> bool:
    assert entry.ciphertext_size in (
        ciphertext_size(entry.size),
        ciphertext_size(padded_size(entry.size)),
    )
    return entry.ciphertext_size > ciphertext_size(entry.size)


@pytest.mark.parametrize("size", SIZES)
def test_a_padded_content_is_read_without_its_padding(
    store: sfsc.Store, tmp_path: Path, size: int
) -> None:
    content, name = os.urandom(size), f"size/{size}"
    assert store.put(io.BytesIO(content), name=name, pad=True).size == size
    entry = store.stat(name)
    assert (entry.size, entry.ciphertext_size) == (size, ciphertext_size(padded_size(size)))
    assert store.read_bytes(name) == content
    (got,) = store.get_many([name], tmp_path)
    assert got.path is not None
    assert (got.size, got.path.read_bytes()) == (size, content)
    with store.open(name) as file:
        assert file.read() == content
        assert file.seek(-min(size, 5), io.SEEK_END) == size - min(size, 5)
        assert file.read() == content[max(0, size - 5) :]


def test_whole_segments_of_padding_are_left_out(store: sfsc.Store, tmp_path: Path) -> None:
    size = 64 * MEBIBYTE + 1
    assert padded_size(size) > size + MEBIBYTE
    (tmp_path / "large").write_bytes(bytes(size - 1) + b"x")
    store.put(tmp_path / "large", name="large", pad=True)
    got = store.get("large", tmp_path / "copy")
    assert (got.size, (tmp_path / "copy").stat().st_size) == (size, size)
    with (tmp_path / "copy").open("rb") as copy:
        copy.seek(-2, io.SEEK_END)
        assert copy.read() == b"\0x"


def test_padding_stays_with_the_content(server: LyingServer, store: sfsc.Store) -> None:
    bob = server.enrol("bob", key_type="x25519")
    for name, size in {"stays/small": 1001, "stays/large": MEBIBYTE + 1}.items():
        content = os.urandom(size)
        store.put(io.BytesIO(content), name=name, pad=True)
        store.share(name, "bob", trust_first_use=True)
        with sfsc.connect(bob) as reader:
            shared, target = reader.stat_shared("ada", name), io.BytesIO()
            reader.get_shared("ada", name, target, trust_first_use=True)
            assert target.getvalue() == content
            assert is_padded(shared.entry)
        store.unshare(name, "bob", reencrypt=True)
        assert store.read_bytes(name) == content
        assert is_padded(store.stat(name))
        moved = store.mv(name, f"{name}-moved")
        assert is_padded(moved)
        store.rm(moved.name)
        assert is_padded(store.restore(moved.name))
        assert store.read_bytes(moved.name) == content


def test_the_setting_holds_for_every_machine_and_way_to_store(
    server: LyingServer, store: sfsc.Store, home: Path, tmp_path: Path
) -> None:
    source = tmp_path / "set"
    (source / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (source / name).write_bytes(bytes(1001))
    assert not store.padding()
    store.put(source / "a", name="set/before")
    assert not is_padded(store.stat("set/before"))
    store.set_padding(True)
    with sfsc.connect(server.copied(home, "other")) as other:
        assert other.padding()
        other.put(source / "a", name="set/one")
        list(other.put_many([(source / "a", "set/many")]))
        list(other.put_tree(source, name="set/tree"))
        list(other.sync(source, "set/synced"))
        other.put_command(["head", "-c", "1001", "/dev/zero"], "set/command")
        with other.transaction() as change:
            change.put("set/transaction", source / "a")
        stored = {one.name for one in other.ls("set/") if is_padded(one)}
        assert stored == {
            *("set/one", "set/many", "set/tree/a", "set/tree/deep/b", "set/synced/a"),
            *("set/synced/deep/b", "set/command", "set/transaction"),
        }
        other.put(source / "a", name="set/one", pad=False)
        assert not is_padded(other.stat("set/one"))
        statuses = [one.status for one in other.put_tree(source, name="set/tree")]
        assert statuses == ["unchanged", "unchanged"]
    store.share_tree("set", "bob")  # the other settings stay
    store.set_padding(False)
    store.put(source / "a", name="set/after")
    assert not is_padded(store.stat("set/after"))


def test_a_cut_upload_is_not_resumed_with_other_padding(
    server: LyingServer, home: Path, tmp_path: Path
) -> None:
    size = RESUMABLE + MEBIBYTE + 1
    source = tmp_path / "cut"
    source.write_bytes(os.urandom(size))

    class Cut(Exception):
        pass

    class Cutting(sfsc.Progress):
        def expect(self, size: int) -> None:
            pass

        def advance(self, size: int) -> None:
            raise Cut

    for pad in (True, False):
        with pytest.raises(Cut), sfsc.connect(home, progress=Cutting()) as cut:
            cut.put(source, name="cut", pad=not pad)
        with sfsc.connect(home) as store:
            store.put(source, name="cut", pad=pad)
            assert is_padded(store.stat("cut")) == pad
            assert store.read_bytes("cut") == source.read_bytes()


@pytest.mark.parametrize("size", [9, 1001, 3 * MEBIBYTE + 1])
def test_a_proof_is_of_the_content_without_its_padding(
    store: sfsc.Store, home: Path, size: int
) -> None:
    content = os.urandom(size)
    put = store.put(io.BytesIO(content), name=f"proof/{size}", pad=True)
    proof = sfsc.check_proof(store.proof_of(put), home=home)
    store.check_content(proof, io.BytesIO(content))
    padded = content.ljust(padded_size(size), b"\0")
    for other in (padded, content + b"\0", content[:-1], padded + b"\0"):
        with pytest.raises(sfsc.BadReceipt):
            store.check_content(proof, io.BytesIO(other))


@pytest.mark.parametrize(("size", "stored", "allowed"), [(9, 10, True), (8, 10, False)])
def test_only_the_right_padding_is_accepted(
    monkeypatch: pytest.MonkeyPatch, store: sfsc.Store, size: int, stored: int, allowed: bool
) -> None:
    """A user who shares a file must not choose which size others see for it."""
    seal = ContentKey.seal_metadata

    def false(key: ContentKey, metadata: Metadata) -> bytes:
        return seal(key, changed(metadata, size=size))

    monkeypatch.setattr(ContentKey, "seal_metadata", false)
    store.put(io.BytesIO(bytes(stored)), name=f"false/{size}")
    if allowed:
        assert store.read_bytes(f"false/{size}") == bytes(size)
    else:
        with pytest.raises(BadRecord, match="size"):
            store.read_bytes(f"false/{size}")
