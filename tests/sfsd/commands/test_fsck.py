"""`sfsd fsck --cut-log`: only where the log is damaged, and never halfway. The table of the log."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from sfsd.errors import CommandError
from sfsd.fs.files import Files
from sfsd.log.cut import begin_cut
from tests.sfsd.commands.conftest import Sfsd
from tests.sfsd.journals import set_after


@pytest.fixture
def lines(root: Path, sfsd: Sfsd) -> list[bytes]:
    """Return the lines of a log, the last of which adds a user."""
    for name in ("ada", "bea", "cleo"):
        sfsd("user", "add", name)
    return (root / "logs" / "audit.jsonl").read_bytes().splitlines(keepends=True)


def keep(root: Path, lines: list[bytes], count: int) -> None:
    os.truncate(root / "logs" / "audit.jsonl", sum(map(len, lines[:count])))


@pytest.mark.parametrize("also", [(), ("checkpoint",), ("tree/mark",), ("checkpoint", "tree/mark")])
def test_the_log_is_cut_where_its_end_is_missing(
    root: Path, sfsd: Sfsd, lines: list[bytes], also: tuple[str, ...]
) -> None:
    """Each of checkpoint, mark and staging/applied alone says that there was more."""
    for name in also:
        (root / "logs" / name).unlink()
    count = len(lines) - 1
    keep(root, lines, count)
    told = sfsd("user", "list", code=5)
    assert f"`sfsd fsck --cut-log {count}`" in told.err
    for wrong in (count - 1, count + 1):
        assert f"--cut-log {count}" in sfsd("fsck", "--cut-log", str(wrong), code=2).err
    sfsd("fsck", "--cut-log", str(count))
    sfsd("fsck", "--read-data")
    sfsd("audit", "verify")
    shown = [line.split()[0] for line in sfsd("user", "list").lines]
    assert shown == ["ada", "bea"]
    (warning,) = json.loads(sfsd("status", "--json").out)["warnings"]
    assert warning.endswith(f"logs/cut-{count}.jsonl")
    if "checkpoint" not in also:
        assert (root / "logs" / f"cut-{count}.checkpoint").exists()
    [cut] = [
        one
        for one in map(json.loads, sfsd("audit", "log", "--json").lines)
        if one["op"] == "lost" and one.get("owner") is None
    ]
    assert (cut["actor"], cut["detail"]["entries"]) == ("server", [count])


def test_an_intact_log_is_not_cut(root: Path, sfsd: Sfsd, lines: list[bytes]) -> None:
    sfsd("fsck", "--cut-log", str(len(lines)), code=2)
    sfsd("fsck", "--cut-log", "3", code=2)
    assert (root / "logs" / "audit.jsonl").read_bytes() == b"".join(lines)
    assert len(sfsd("user", "list").lines) == 3


def test_a_cut_that_was_interrupted_is_continued(
    root: Path, sfsd: Sfsd, lines: list[bytes]
) -> None:
    count = len(lines) - 2
    keep(root, lines, count)
    begin_cut(root, count, len(lines) - 1, Files())
    assert f"`sfsd fsck --cut-log {count}`" in sfsd("user", "list", code=5).err
    assert f"--cut-log {count}" in sfsd("fsck", "--cut-log", str(count - 1), code=5).err
    pending = root / "logs" / "cut-pending"
    for _ in range(2):  # as if the end of the command were not reached the first time
        sfsd("fsck", "--cut-log", str(count))
        assert not pending.exists()
        pending.write_text(f"{count}\n")
    pending.write_text("x")
    assert "logs/cut-pending" in sfsd("user", "list", code=5).err
    pending.write_text(f"{count}\n")
    sfsd("fsck", "--cut-log", str(count))
    sfsd("fsck", "--read-data")
    assert (root / "logs" / f"cut-{count}.jsonl").read_bytes() == b""


@pytest.mark.parametrize("how", ["changed", "malformed"])
def test_a_wrong_table_of_newest_files_is_found_and_made_again(
    root: Path, sfsd: Sfsd, lines: list[bytes], how: str
) -> None:
    sfsd("fsck")
    table = root / "logs" / "tree" / "paths"
    if how == "malformed":
        table.write_bytes(b"nothing that SQLite wrote" * 100)
    else:
        database = sqlite3.connect(table)
        with database:
            assert database.execute("DELETE FROM paths WHERE path LIKE 'bea/%'").rowcount
        database.close()
    assert "cache: logs/tree/paths" in sfsd("fsck", code=5).out
    key = (root / "keys" / "log.key").rename(root / "log.key")
    assert "repaired cache: logs/tree/paths" in sfsd("fsck", "--repair").out
    assert not table.exists()
    key.rename(root / "keys" / "log.key")
    sfsd("fsck", "--repair")  # with the key, as a start does
    assert table.stat().st_size
    sfsd("fsck")
    sfsd("audit", "verify")


@pytest.mark.parametrize("there", [1, 2])
def test_a_log_is_not_cut_within_an_atomic_set(
    root: Path, sfsd: Sfsd, lines: list[bytes], there: int
) -> None:
    """Only the first entries of a set are left: they do not count, so the set is cut completely."""
    made = set_after(lines[-1].rstrip(b"\n"), len(lines), "test", "server")
    added = [line + b"\n" for line in made]
    (root / "logs" / "audit.jsonl").write_bytes(b"".join([*lines, *added[:there]]))
    with pytest.raises(CommandError, match=f"{len(lines)} valid entries of {len(lines) + 3}"):
        begin_cut(root, len(lines) + there, len(lines) + 2, Files())
    begin_cut(root, len(lines), len(lines) + 2, Files())
    assert (root / "logs" / "audit.jsonl").read_bytes() == b"".join(lines)
    assert (root / "logs" / f"cut-{len(lines)}.jsonl").read_bytes() == b"".join(added[:there])
