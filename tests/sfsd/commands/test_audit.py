"""`sfsd audit`: a valid log, and changed logs, reported by the first wrong entry."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.log import auditlog
from protocol.log.checkpoint import Verifier, verify
from protocol.records.records import ServerStatement
from protocol.wire.messages.accounts import UserAccess, UserAdd
from sfsd import server_keys
from sfsd.commands.operator_client import send_requests
from sfsd.datadir import lock_root
from tests.sfsd.rewritten_log import rewritten

Sfsd = Callable[..., Any]
ADDED = 12


@pytest.fixture
def log(root: Path) -> Path:
    """Return the log of a root with a dozen invited users."""
    names = [f"user{number:02}" for number in range(ADDED)]
    send_requests(root, [UserAdd(name, bytes(32), 2_000_000_000, 0) for name in names])
    return root / "logs" / "audit.jsonl"


def write(log: Path, lines: list[bytes]) -> None:
    log.write_bytes(b"".join(line + b"\n" for line in lines))


def test_valid_log(log: Path, sfsd: Sfsd) -> None:
    people = sfsd("audit", "verify")
    told = json.loads(sfsd("audit", "verify", "--json").out)
    entries = len(log.read_bytes().splitlines())
    assert told["entries"] == told["signed"] == entries
    assert people.lines[1] == f"root {told['root']}"
    assert people.lines[0].startswith(f"{entries} entries")


def table(log: Path) -> Path:
    return log.parent / "tree" / "paths"


def test_the_table_of_newest_files_is_compared(log: Path, sfsd: Sfsd) -> None:
    whole = len(log.read_bytes().splitlines())
    assert f"the table of newest files is that of {whole} entries" in sfsd("audit", "verify").lines
    database = sqlite3.connect(table(log))
    with database:
        changed = "UPDATE paths SET seq = 3, digest = zeroblob(32) WHERE path LIKE 'user05/%'"
        assert database.execute(changed).rowcount == 1
    database.close()
    (seq,) = [seq for seq, line in enumerate(log.read_bytes().splitlines()) if b"user05" in line]
    for option in ((), ("--strict",), ("--json",)):
        told = sfsd("audit", "verify", *option, code=5)
        assert f"differs from the log, first for entry {seq}\n" in told.err
        assert "sfsd serve" in told.err


def test_a_table_that_cannot_be_read_is_reported(log: Path, sfsd: Sfsd) -> None:
    table(log).write_bytes(b"nothing that SQLite wrote" * 100)
    assert "logs/tree/paths cannot be read" in sfsd("audit", "verify", code=5).err
    table(log).unlink()
    assert "a start makes it" in sfsd("audit", "verify").lines[-1]
    table(log).symlink_to("paths")
    assert "logs/tree/paths cannot be read" in sfsd("audit", "verify", code=5).err


def test_the_table_is_not_compared_beside_a_daemon(log: Path, root: Path, sfsd: Sfsd) -> None:
    with lock_root(root):
        assert "was not compared: a daemon uses it" in sfsd("audit", "verify").lines[-1]
        assert json.loads(sfsd("audit", "verify", "--json").out)["table"] is None


def test_log_as_json(log: Path, sfsd: Sfsd) -> None:
    assert sfsd("audit", "log", "--json").out.encode() == log.read_bytes()


def test_log_is_printable(log: Path, root: Path, sfsd: Sfsd) -> None:
    send_requests(root, [UserAccess("user00", True, "left \x1b[2J\u202e")])
    lines = sfsd("audit", "log").lines
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
    assert "server-statement" in lines[0]
    (added,) = [line for line in lines if line.endswith("user07")]
    assert added.split()[2:] == ["user-add", "operator", "user07"]
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert 'reason="left \\u001b[2J\\u202e"' in lines[-1]


def test_log_filters(log: Path, root: Path, sfsd: Sfsd) -> None:
    send_requests(root, [UserAccess("user03", True, "left")])
    entries = [auditlog.parse(line) for line in log.read_bytes().splitlines()]

    def seqs(*options: str) -> list[int]:
        lines = sfsd("audit", "log", "--json", *options).lines
        people = sfsd("audit", "log", *options).lines
        found = [auditlog.parse(line.encode()).seq for line in lines]
        assert [int(line.split()[0]) for line in people] == found
        return found

    every = list(range(len(entries)))
    assert seqs("--op", "user-access") == every[-1:]
    assert seqs("--op", "user-access", "--op", "server-statement") == [0, every[-1]]
    assert seqs("--user", "user03") == [e.seq for e in entries if e.owner == "user03"]
    assert len(seqs("--user", "user03")) == 2
    assert seqs("--user", "user03", "--op", "user-access") == every[-1:]
    assert seqs("--user", "operator") == every[1:]
    assert seqs("--file", "0" * 32) == []
    middle = entries[5].time
    assert seqs("--since", middle) == [e.seq for e in entries if e.time >= middle]
    assert seqs("--until", middle) == [e.seq for e in entries if e.time < middle]
    assert seqs("--since", "2001-01-01", "--until", "9999-01-01T00:00+02:00") == every
    assert "2026-11-24" in sfsd("audit", "log", "--since", "yesterday", code=2).err


def test_log_follow(log: Path, root: Path) -> None:
    """Print the present lines, then each new line once it is complete."""
    words = ["audit", "log", "--root", str(root), "--op", "user-access", "--follow"]
    send_requests(root, [UserAccess("user01", True, "first")])
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys, sfsd.cli; sys.exit(sfsd.cli.main({words!r}))"],
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        try:
            assert following.stdout is not None
            assert 'reason="first"' in following.stdout.readline()
            with log.open("ab") as file:
                file.write(b'{"seq":99')  # torn: the next start truncates it
            send_requests(root, [UserAccess("user01", False, "second")])
            assert 'reason="second"' in following.stdout.readline()
        finally:
            following.terminate()


def test_checkpoint(log: Path, root: Path, sfsd: Sfsd) -> None:
    note = sfsd("audit", "checkpoint").out.encode()
    told = json.loads(sfsd("audit", "verify", "--json").out)
    statement = server_keys.read_server_statement(root / "keys")[0]
    verifier = Verifier.parse(ServerStatement.parse(statement).log_vkey)
    point = verify(note, verifier)
    assert (point.size, point.root.hex()) == (told["entries"], told["root"])
    assert (log.parent / "checkpoint").read_bytes() == note


@pytest.mark.parametrize("seq", [0, 5, ADDED])
def test_changed_byte(log: Path, sfsd: Sfsd, seq: int) -> None:
    lines = log.read_bytes().splitlines()
    at = len(lines[seq]) // 2
    lines[seq] = lines[seq][:at] + bytes([lines[seq][at] ^ 1]) + lines[seq][at + 1 :]
    write(log, lines)
    answer = sfsd("audit", "verify", code=5)
    assert f"entry {seq}:" in answer.err
    assert "hint: " in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("seq", [0, 5, ADDED])
def test_changed_entry_with_a_new_hash(log: Path, sfsd: Sfsd, seq: int) -> None:
    write(log, rewritten(log.read_bytes().splitlines(), seq, chain=False))
    assert f"entry {seq}:" in sfsd("audit", "verify", code=5).err


@pytest.mark.parametrize("seq", [0, 5, ADDED])
def test_rewritten_tail(log: Path, sfsd: Sfsd, seq: int) -> None:
    """Every line chains, but the signed root and the daemon's tree differ."""
    write(log, rewritten(log.read_bytes().splitlines(), seq, chain=True))
    assert f"entry {seq}:" in sfsd("audit", "verify", code=5).err


def test_rewritten_tail_without_the_cached_tree(log: Path, sfsd: Sfsd) -> None:
    write(log, rewritten(log.read_bytes().splitlines(), 5, chain=True))
    for path in (log.parent / "tree").iterdir():
        path.unlink()
    assert "rewritten" in sfsd("audit", "verify", code=5).err


def test_removed_entry(log: Path, sfsd: Sfsd) -> None:
    lines = log.read_bytes().splitlines()
    write(log, lines[:5] + lines[6:])
    assert "entry 5:" in sfsd("audit", "verify", code=5).err


def test_swapped_entries(log: Path, sfsd: Sfsd) -> None:
    lines = log.read_bytes().splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    write(log, lines)
    assert "entry 5:" in sfsd("audit", "verify", code=5).err


def test_removed_end(log: Path, sfsd: Sfsd) -> None:
    lines = log.read_bytes().splitlines()
    write(log, lines[:-2])
    assert f"entry {len(lines) - 2}:" in sfsd("audit", "verify", code=5).err


def test_removed_log(log: Path, sfsd: Sfsd) -> None:
    log.write_bytes(b"")
    assert "entry 0:" in sfsd("audit", "verify", code=5).err


def test_removed_or_forged_checkpoint(log: Path, sfsd: Sfsd) -> None:
    checkpoint = log.parent / "checkpoint"
    note = checkpoint.read_bytes()
    checkpoint.unlink()
    assert "checkpoint" in sfsd("audit", "verify", code=5).err
    checkpoint.write_bytes(note.replace(b"sfs/", b"sfx/"))
    assert "checkpoint" in sfsd("audit", "verify", code=5).err


def test_incomplete_last_line_is_not_damage(log: Path, sfsd: Sfsd) -> None:
    with log.open("ab") as file:
        file.write(b'{"seq":99')
    sfsd("audit", "verify")
    assert '{"seq":99' not in sfsd("audit", "log", "--json").out


def test_overlong_line(log: Path, sfsd: Sfsd) -> None:
    with log.open("ab") as file:
        file.write(b"x" * 200_000)
    assert "Traceback" not in sfsd("audit", "verify", code=5).err


def test_file_that_is_not_a_log(log: Path, sfsd: Sfsd) -> None:
    log.write_bytes(b"\xff\xfe\nnot json\n")
    assert "entry 0:" in sfsd("audit", "log", code=5).err


def test_missing_log(root: Path, sfsd: Sfsd) -> None:
    for verb in ("log", "verify"):
        assert "hint: " in sfsd("audit", verb, code=1).err


def test_rotations_of_an_unknown_user(log: Path, sfsd: Sfsd) -> None:
    assert "hint: " in sfsd("audit", "rotation", "nobody", code=3).err
