"""A file that the system cannot examine is not taken for a missing one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.buffers.file_status import exists, file_status, is_file, is_folder

QUESTIONS = [file_status, exists, is_file, is_folder]


@pytest.mark.parametrize("ask", QUESTIONS)
def test_missing_files(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"")
    for missing in (tmp_path / "no", tmp_path / "no" / "more", tmp_path / "file" / "below"):
        assert not ask(missing)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("ask", QUESTIONS)
def test_every_other_error_is_raised(tmp_path: Path, ask: Callable[[Path], object]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for unknown in (tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(OSError) as raised:
            ask(unknown)
        assert not isinstance(raised.value, FileNotFoundError | NotADirectoryError)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_kinds_of_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("no")
    assert [exists(tmp_path / one) for one in (".", "file", "link", "broken")] == [
        True,
        True,
        True,
        False,
    ]
    assert [is_file(tmp_path / one) for one in (".", "link")] == [False, True]
    assert [is_folder(tmp_path / one) for one in (".", "link")] == [True, False]
    broken = file_status(tmp_path / "broken", follow=False)
    assert broken is not None
    assert not is_file(tmp_path / "broken")
