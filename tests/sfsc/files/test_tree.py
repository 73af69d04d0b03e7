"""Uploads of folders; tests/e2e covers the whole way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sfsc.errors import SfscError, UnreadableSource
from sfsc.files import tree
from sfsc.files.tree import Trees
from sfsc.session.session import Session


def test_entry_whose_kind_is_unknown(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems do not list an entry's kind, and asking for it may fail."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"")
    original_kind = tree._kind

    def kind(item: os.DirEntry[str]) -> tuple[bool, bool]:
        if item.name == "b":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return original_kind(item)

    monkeypatch.setattr(tree, "_kind", kind)
    skipped: list[tuple[str, SfscError]] = []
    stored = Trees(session).put(folder, "d", lambda what, why: skipped.append((what, why)))
    assert [one.name for one in stored] == ["d/a", "d/c"]
    assert [what for what, _ in skipped] == [str(folder / "b")]
    assert isinstance(skipped[0][1], UnreadableSource)
