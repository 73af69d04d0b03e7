"""What one user can do to another by sharing files, if the server is honest."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

import pytest

import sfsc
from sfsc.errors import BadDestination, SfscError
from sfsc.store import Store
from tests.lying_server import LyingServer


def connect(home: Path) -> Store:
    return sfsc.connect(home, auto_rotate=False)


HIDDEN = "team/invoice\u202efdp.exe"


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_fetched_files_of_a_sharer_have_plain_names_and_modes_within_the_umask(
    lying_server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = lying_server.enrol("ada"), lying_server.enrol("bob")
    open_to_all = tmp_path / "open"
    open_to_all.write_bytes(b"1")
    open_to_all.chmod(0o777)
    with connect(ada) as store:
        for name in ("team/a", HIDDEN, "team/z"):
            store.put(open_to_all, name=name)
        list(store.share_tree("team", "bob", trust_first_use=True))
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o027)
    try:
        skipped: list[tuple[str, SfscError]] = []
        with connect(bob) as store:
            got = store.get_tree(
                "team",
                tmp_path / "out",
                "ada",
                skip=lambda *one: skipped.append(one),
                trust_first_use=True,
            )
            assert [one.name for one in got] == ["team/a", "team/z"]
            for target in (None, tmp_path / "out"):
                with pytest.raises(BadDestination):
                    store.get_shared("ada", HIDDEN, target)
            store.get_shared("ada", HIDDEN, tmp_path / "named")
            into = io.BytesIO()
            store.get_shared("ada", HIDDEN, into)
            assert into.getvalue() == b"1"
        with connect(ada) as store:  # the mode and the name are the user's own choice
            store.get(HIDDEN, tmp_path / "own")
    finally:
        os.umask(before)
    assert [(name, type(error)) for name, error in skipped] == [(HIDDEN, BadDestination)]
    assert sorted(os.listdir(tmp_path / "out/team")) == ["a", "z"]

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert [mode(tmp_path / name) for name in ("out/team/a", "named", "own")] == [
        0o750,
        0o750,
        0o777,
    ]
