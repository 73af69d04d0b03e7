"""Large files are written byte for byte, and no blocks stay reserved beyond their end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from protocol.buffers import largefiles
from protocol.buffers.largefiles import LARGE
from sfsc.transfer import local_io
from sfsc.transfer.local_io import LargeFileWriter

MIB = 1 << 20


def write_file(path: Path, content: bytes, size: int, step: int) -> None:
    with LargeFileWriter(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), size) as file:
        for start in range(0, len(content), step):
            view = memoryview(content)[start : start + step]
            while view:
                view = view[file.write(view) :]
        file.flush()


@pytest.mark.parametrize("way", ["direct", "cached"])
@pytest.mark.parametrize("size", [0, 3, 9 * MIB, LARGE + MIB + 5])
def test_the_file_has_the_bytes_written(
    tmp_path: Path, size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "cached":
        monkeypatch.setattr(largefiles, "open_direct", lambda _, writing: None)
    content = os.urandom(size)
    write_file(tmp_path / "a", content, size, MIB - 16)
    assert (tmp_path / "a").read_bytes() == content


def test_only_large_files_use_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = list[int]()

    def noted(descriptor: int, *, writing: bool) -> int | None:
        direct.append(descriptor)
        return os.dup(descriptor) if writing else None

    monkeypatch.setattr(largefiles, "open_direct", noted)
    for size in (LARGE - 1, LARGE):
        descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT, 0o600)
        with LargeFileWriter(descriptor, size) as file:
            assert (file.allocate is not None) == (size == LARGE)
        assert direct == ([descriptor] if size == LARGE else [])


def test_close_does_not_wait_for_unflushed_bytes(tmp_path: Path) -> None:
    file = LargeFileWriter(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT, 0o600), LARGE)
    file.write(bytes(MIB))
    file.close()
    file.close()
    assert file.closed


@pytest.mark.skipif(sys.platform != "linux", reason="reserves on Linux")
def test_blocks_are_reserved_in_steps_and_never_beyond_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = largefiles.reserve

    def reserve(descriptor: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return real(descriptor, offset, length)

    monkeypatch.setattr(largefiles, "reserve", reserve)
    monkeypatch.setattr(local_io, "_RESERVE", 4 * MIB)
    size = 9 * MIB + 7
    content = os.urandom(size)
    write_file(tmp_path / "a", content, size, MIB)
    steps = [(0, 4 * MIB), (4 * MIB, 4 * MIB), (8 * MIB, MIB + 7)]
    assert asked[: len(steps)] in (steps, steps[:1])  # one: the file system cannot reserve
    assert len(asked) <= len(steps)
    assert (tmp_path / "a").read_bytes() == content


def test_a_file_system_that_cannot_reserve_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largefiles, "reserve", lambda *_: False)
    content = os.urandom(9 * MIB)
    write_file(tmp_path / "a", content, len(content), MIB)
    assert (tmp_path / "a").read_bytes() == content
