"""Direct I/O descriptors and reserved blocks, or a report that they are not supported."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.buffers import largefiles
from protocol.buffers.pool import PAGE, BufferPool

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture
def tmp_path(disk_folder: Path) -> Path:
    """Return a folder on the disk: direct I/O to memory has no rules to keep."""
    return disk_folder


@linux
@pytest.mark.parametrize(
    ("code", "told"),
    [(errno.EINVAL, False), (errno.ENOENT, False), (errno.EOPNOTSUPP, False), (errno.EMFILE, True)],
)
def test_unsupported_direct_io_returns_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: bool
) -> None:
    real: Callable[..., int] = os.open

    def failing(path: str, flags: int, mode: int = 0o777) -> int:
        if sys.platform == "linux" and flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, mode)

    with (tmp_path / "x").open("wb") as file:
        monkeypatch.setattr(os, "open", failing)
        if told:
            with pytest.raises(OSError):
                largefiles.open_direct(file.fileno(), writing=True)
        else:
            assert largefiles.open_direct(file.fileno(), writing=True) is None


@linux
def test_open_direct_reopens_the_file_even_if_its_path_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes([1]) * PAGE)
    with path.open("rb") as file:
        (tmp_path / "y").write_bytes(bytes([2]) * PAGE)
        (tmp_path / "y").replace(path)
        direct = largefiles.open_direct(file.fileno(), writing=False)
        if direct is None:
            pytest.skip("not supported by the file system")
        memory = BufferPool(PAGE, keep=1).acquire()
        with open(direct, "rb", buffering=0) as same:
            assert same.readinto(memory) == PAGE
        assert bytes(memory) == bytes([1]) * PAGE


@linux
def test_reserve_allocates_blocks_and_keeps_the_size(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        if not largefiles.reserve(file.fileno(), 0, 1 << 20):
            pytest.skip("not supported by the file system")
        status = os.fstat(file.fileno())
        assert (status.st_size, status.st_blocks * 512 >= 1 << 20) == (0, True)


def test_reserve_reports_failure(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        assert not largefiles.reserve(file.fileno(), 0, 0)


@pytest.mark.skipif(sys.platform == "linux", reason="other platforms only")
def test_other_platforms_have_neither_call(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        assert largefiles.open_direct(file.fileno(), writing=True) is None
        assert not largefiles.reserve(file.fileno(), 0, PAGE)
