"""What a spool keeps, and that it is encrypted."""

from __future__ import annotations

import io
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sfsc.errors import Tampered
from sfsc.filesystem.spool import Spool

BLOCK = 1 << 20


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_what_was_appended_is_read_from_any_position(size: int) -> None:
    content, chance = random.Random(1).randbytes(size), random.Random(2)
    with Spool() as written:
        start = 0
        while start < size:
            end = start + chance.choice([1, 1000, BLOCK, 2 * BLOCK])
            written.write(content[start:end])
            start = end
        assert written.size == size
        with written.open() as stream:
            assert stream.read() == content
            for _ in range(20):
                position = chance.randrange(size + 1)
                stream.seek(position)
                assert stream.read(100) == content[position : position + 100]
            assert stream.seek(-1, io.SEEK_CUR) >= 0
            assert stream.seek(0, io.SEEK_END) == size
            assert stream.read(1) == b""


def test_a_long_content_is_on_the_disk_encrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    kept: Any = tempfile.SpooledTemporaryFile

    def noted(max_size: int) -> Any:
        assert max_size == BLOCK
        file = kept(max_size=0, dir=tmp_path)
        file.rollover()
        seen.append(file._file)
        return file

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", noted)
    with Spool() as written:
        written.write(b"secret! " * (2 * BLOCK // 8))
        on_disk = os.pread(seen[0].fileno(), 1 << 30, 0)
        assert len(on_disk) == 2 * (BLOCK + 16)
        assert b"secret! " not in on_disk
        assert on_disk[:BLOCK] != on_disk[BLOCK + 16 :][:BLOCK]  # each block has a nonce of its own
        os.pwrite(seen[0].fileno(), on_disk[BLOCK + 16 :], 0)  # blocks change places
        with written.open() as stream, pytest.raises(Tampered):
            stream.read(1)
