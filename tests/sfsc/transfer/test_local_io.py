"""Large files that are written through: byte for byte, and with nothing reserved behind them."""

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


def land(path: Path, content: bytes, size: int, step: int) -> None:
    with LargeFileWriter(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), size) as file:
        for start in range(0, len(content), step):
            view = memoryview(content)[start : start + step]
            while view:
                view = view[file.write(view) :]
        file.flush()


@pytest.mark.parametrize("way", ["past the cache", "through it"])
@pytest.mark.parametrize("size", [0, 3, 9 * MIB, LARGE + MIB + 5])
def test_what_was_written_is_there(
    tmp_path: Path, size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "through it":
        monkeypatch.setattr(largefiles, "open_direct", lambda _, writing: None)
    content = os.urandom(size)
    land(tmp_path / "a", content, size, MIB - 16)
    assert (tmp_path / "a").read_bytes() == content


def test_only_what_is_large_goes_past_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = list[int]()

    def noted(descriptor: int, *, writing: bool) -> int | None:
        beside.append(descriptor)
        return os.dup(descriptor) if writing else None

    monkeypatch.setattr(largefiles, "open_direct", noted)
    for size in (LARGE - 1, LARGE):
        descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT, 0o600)
        with LargeFileWriter(descriptor, size) as file:
            assert (file.room is not None) == (size == LARGE)
        assert beside == ([descriptor] if size == LARGE else [])


def test_what_was_not_flushed_is_not_waited_for(tmp_path: Path) -> None:
    file = LargeFileWriter(os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT, 0o600), LARGE)
    file.write(bytes(MIB))
    file.close()
    file.close()
    assert file.closed


@pytest.mark.skipif(sys.platform != "linux", reason="reserves on Linux")
def test_reserves_a_stretch_at_a_time_and_never_past_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = largefiles.reserve

    def reserve(descriptor: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return real(descriptor, offset, length)

    monkeypatch.setattr(largefiles, "reserve", reserve)
    monkeypatch.setattr(local_io, "_AHEAD", 4 * MIB)
    size = 9 * MIB + 7
    content = os.urandom(size)
    land(tmp_path / "a", content, size, MIB)
    stretches = [(0, 4 * MIB), (4 * MIB, 4 * MIB), (8 * MIB, MIB + 7)]
    assert asked[: len(stretches)] in (stretches, stretches[:1])  # one: the file system cannot
    assert len(asked) <= len(stretches)
    assert (tmp_path / "a").read_bytes() == content


def test_a_disk_that_reserves_nothing_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largefiles, "reserve", lambda *_: False)
    content = os.urandom(9 * MIB)
    land(tmp_path / "a", content, len(content), MIB)
    assert (tmp_path / "a").read_bytes() == content
