"""Questions about local files: an error of the system is reported as such."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sfsc.errors import LocalError
from sfsc.local_files import check_new_file, exists, is_file, is_folder, is_link, mode_of


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("ask", [exists, is_file, is_folder])
def test_what_cannot_be_examined_is_an_error(tmp_path: Path, ask: Callable[[Path], bool]) -> None:
    assert ask(tmp_path / "no") is False
    with pytest.raises(LocalError, match="cannot examine"):
        mode_of(tmp_path / "no")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(LocalError, match="cannot examine"):
        ask(tmp_path / "loop")
    assert is_link(tmp_path / "loop")
    assert not is_link(tmp_path)


def test_a_new_file_is_tried_and_left_to_the_caller(tmp_path: Path) -> None:
    check_new_file(tmp_path / "new", "choose another")
    assert os.listdir(tmp_path) == []
    (tmp_path / "new").write_bytes(b"")
    for path in (tmp_path / "new", tmp_path / "no" / "new", tmp_path / "new" / "below"):
        with pytest.raises(LocalError) as caught:
            check_new_file(path, "choose another")
        assert caught.value.hint == "choose another"
    assert os.listdir(tmp_path) == ["new"]
    check_new_file(tmp_path / "a" / "b" / "new", "", parents=True)
    assert os.listdir(tmp_path / "a" / "b") == []
