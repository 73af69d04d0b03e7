"""Folders on their way up; what becomes of them is tested with the programs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sfsc.errors import SfscError, UnreadableSource
from sfsc.files import tree
from sfsc.files.tree import Trees
from sfsc.session.session import Session


def test_a_file_that_cannot_be_looked_at(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file system does not say with a name what it is of, and will not say it then."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"")
    looked_at = tree._kind

    def kind(item: os.DirEntry[str]) -> tuple[bool, bool]:
        if item.name == "b":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return looked_at(item)

    monkeypatch.setattr(tree, "_kind", kind)
    told: list[tuple[str, SfscError]] = []
    stored = Trees(session).put(folder, "d", lambda what, why: told.append((what, why)))
    assert [one.name for one in stored] == ["d/a", "d/c"]
    assert [what for what, _ in told] == [str(folder / "b")]
    assert isinstance(told[0][1], UnreadableSource)
