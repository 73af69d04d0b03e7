"""Sources of plaintext: paths, streams, and pipes with short reads."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path, PurePath
from typing import BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfsc.errors import LocalError, UsageError
from sfsc.session.session import Session
from sfsc.transfer.remote_version import RemoteVersion
from sfsc.transfer.source import SMALL, Source, SourceReader, default_name, open_source
from sfsc.transfer.upload import Uploads


class Trickle(io.RawIOBase):
    """Returns at most a few bytes at a time, as a pipe may."""

    def __init__(self, content: bytes, step: int) -> None:
        self._rest = content
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = min(len(buffer), self._step, len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def all_of(source: SourceReader) -> bytes:
    buffer, whole = memoryview(bytearray(100_000)), b""
    while count := source.readinto(buffer):
        whole += buffer[:count]
    return whole


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL])
def test_a_small_source_is_read_whole(size: int) -> None:
    content = os.urandom(size)
    with open_source(io.BytesIO(content)) as source:
        assert source.read_small() == content
        assert source.count == size


@pytest.mark.parametrize("size", [SMALL + 1, SMALL + 2, 3 * SMALL])
def test_read_small_loses_nothing_of_a_large_source(size: int) -> None:
    content = os.urandom(size)
    with open_source(io.BytesIO(content)) as source:
        assert source.read_small() is None
        assert all_of(source) == content
        assert source.count == size


@given(st.binary(max_size=3000), st.integers(1, 700))
def test_short_reads_give_the_same_bytes(content: bytes, step: int) -> None:
    with open_source(cast("BinaryIO", Trickle(content, step))) as source:
        assert source.read_small() == content
        assert not source.rewind()


def test_rewind_goes_back_to_the_start_offset() -> None:
    content = os.urandom(2 * SMALL)
    file = io.BytesIO(b"ahead" + content)
    file.seek(5)
    with open_source(file) as source:
        source.read_small()
        source.readinto(memoryview(bytearray(1000)))
        assert source.rewind()
        assert source.count == 0
        assert all_of(source) == content


def test_a_pipe_cannot_rewind() -> None:
    reading, writing = os.pipe()
    content = os.urandom(2 * SMALL)

    def feed() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(reading, "rb", buffering=0) as pipe, open_source(pipe) as source:
        assert source.read_small() is None
        assert all_of(source) == content
        assert not source.rewind()
    feeder.join()


def test_a_path_knows_its_size_time_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o600)
    os.utime(path, ns=(1, 2))
    for source in (path, str(path)):
        with open_source(source) as ready:
            assert (ready.size, ready.mtime) == (7, 2)
            assert os.name != "posix" or ready.mode == 0o600
            assert ready.read_small() == b"content"


def test_a_stream_has_no_size_time_or_mode() -> None:
    with open_source(io.BytesIO(b"")) as source:
        assert (source.size, source.mode) == (None, None)
        assert (source.mtime or 0) > 1_700_000_000_000_000_000


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="devices")
def test_a_device_has_no_size() -> None:
    with open_source("/dev/null") as source:
        assert (source.size, source.read_small()) == (None, b"")


def test_unreadable_sources_are_local_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(LocalError) as caught, open_source(path) as source:
            source.read_small()
        assert str(path) in caught.value.cause


def test_a_nonblocking_source_is_rejected() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as pipe, open_source(pipe) as source:
        with pytest.raises(LocalError):
            source.read_small()
        os.close(writing)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("docs/report.pdf", "docs/report.pdf"),
        ("./docs//report.pdf", "docs/report.pdf"),
        ("../docs/report.pdf", "report.pdf"),
        ("docs/../report.pdf", "report.pdf"),
        ("/etc/passwd", "passwd"),
        (PurePath("a", "b"), "a/b"),
        ("A\u030a", "\u00c5"),
    ],
)
def test_the_default_name(source: Source, name: str) -> None:
    assert default_name(source) == name
    assert default_name(io.BytesIO()) is None


def test_keep_open_outlasts_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with open_source(path) as source:
        source.keep_open = True
    assert source.read_small() == b"content"
    assert source.rewind()
    assert source.read_small() == b"content"
    for _ in range(2):
        source.close()
    with open_source(path) as other:
        pass
    for closed in (source, other):
        with pytest.raises(ValueError):
            closed.readinto(memoryview(bytearray(1)))
    stream = io.BytesIO(b"mine")
    with open_source(stream):
        pass
    assert not stream.closed


@pytest.mark.parametrize("source", [b"bytes", io.StringIO("text"), 5])
def test_other_types_are_rejected(source: object) -> None:
    with pytest.raises(UsageError, match="expected a path or a binary file object"):
        open_source(cast("Source", source))


@pytest.mark.parametrize(
    ("mtime", "said"), [(-(10**18), -(10**18)), (9 * 10**18, 9 * 10**18), (10**19, None)]
)
def test_a_modification_time_out_of_range(
    tmp_path: Path, session: Session, mtime: int, said: int | None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    try:
        os.utime(path, ns=(mtime, mtime))
    except OverflowError:
        pytest.skip("this system has no such time")
    if path.stat().st_mtime_ns != mtime:
        pytest.skip("this file system has no such time")
    with open_source(path) as source:
        assert source.mtime == said
    Uploads(session).put(path, "file")
    assert RemoteVersion.open_own(session, "file", 0).metadata.mtime == said
