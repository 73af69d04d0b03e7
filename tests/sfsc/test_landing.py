"""Large files that are written through: byte for byte, and with nothing reserved behind them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sfsc import landing
from sfsc.landing import Landing

MIB = 1 << 20


def land(path: Path, content: bytes, size: int, step: int) -> None:
    with Landing(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), size) as file:
        for start in range(0, len(content), step):
            view = memoryview(content)[start : start + step]
            while view:
                view = view[file.write(view) :]


@pytest.mark.parametrize("size", [0, 3, 9 * MIB, 17 * MIB + 5])
def test_what_was_written_is_there(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    land(tmp_path / "a", content, size, MIB - 16)
    assert (tmp_path / "a").read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="reserves on Linux")
def test_reserves_a_stretch_at_a_time_and_never_past_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    real = landing._fallocate()
    if real is None:
        pytest.skip("a C library without fallocate64")

    def reserve(descriptor: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return real(descriptor, offset, length)

    monkeypatch.setattr(landing, "_fallocate", lambda: reserve)
    monkeypatch.setattr(landing, "_AHEAD", 4 * MIB)
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
    monkeypatch.setattr(landing, "_fallocate", lambda: lambda *_: False)
    content = os.urandom(9 * MIB)
    land(tmp_path / "a", content, len(content), MIB)
    assert (tmp_path / "a").read_bytes() == content
