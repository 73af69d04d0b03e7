"""`sfsd audit`: a valid log, and changed logs, reported by the first wrong entry."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from protocol.log import auditlog
from protocol.log.checkpoint import Verifier, verify
from protocol.records.records import ServerStatement
from protocol.wire.messages.accounts import UserAccess, UserAdd, UserQuota
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
        assert f"differs from the log, first for entry {seq}" in told.err
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


def test_log_says_what_was_done(log: Path, root: Path, sfsd: Sfsd) -> None:
    send_requests(
        root, [UserAccess("user00", True, "left \x1b[2J\u202e"), UserQuota("user00", 1 << 30)]
    )
    text = sfsd("audit", "log", "--utc").out
    rows = [line.split("\t") for line in text.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    assert rows[0][2:] == ["server", "server-statement", "stated the keys of the server"]
    assert rows[8][2:4] == ["operator", "user-add"]
    assert rows[8][4] == "invited user07 until 2033-05-18 03:33:20Z, quota no limit"
    assert rows[-2][4] == r"disabled user00: left \x1b[2J\u202e"
    assert rows[-1][4] == "set the quota of user00 to 1.0 GiB, was no limit"
    entries = [auditlog.parse(line) for line in log.read_bytes().splitlines()]
    assert [row[1] for row in rows] == [e.time[:19].replace("T", " ") + "Z" for e in entries]


def test_log_shows_local_times(log: Path, sfsd: Sfsd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Etc/GMT-5")
    time.tzset()
    try:
        entry = auditlog.parse(log.read_bytes().splitlines()[-1])
        (line,) = sfsd("audit", "log", "--tail", "1").lines
        when = datetime.fromisoformat(line.split("\t")[1])
        assert when.utcoffset() == timedelta(hours=5)
        assert when == datetime.fromisoformat(entry.time).replace(microsecond=0)
        assert "2033-05-18 08:33:20+05:00" in line
        # A time without a zone is one of the zone that is shown.
        later = (when + timedelta(seconds=1)).replace(tzinfo=None).isoformat()
        assert sfsd("audit", "log", "--since", later).lines == []
        assert len(sfsd("audit", "log", "--until", later).lines) == ADDED + 1
        earlier = (when - timedelta(hours=1)).replace(tzinfo=None).isoformat()
        assert sfsd("audit", "log", "--until", earlier).lines == []
        assert len(sfsd("audit", "log", "--until", earlier, "--utc").lines) == ADDED + 1
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


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
    assert seqs("--since", "1h") == every
    assert seqs("--tail", "3") == every[-3:]
    assert seqs("--tail", "1", "--user", "user03", "--op", "user-add") == [4]
    assert seqs("--tail", "1000") == every


REFUSED = [
    (("--since", "yesterday"), "2026-11-24"),
    (("--until", "9999-12-31T23:59-05:00"), "2026-11-24"),
    (("--since", "2026-11-24", "--until", "2026-11-23"), "not after --since"),
    (("--op", "user-acess"), "did you mean user-access?"),
    (("--op", "frobnicate"), "known are: upload, "),
    (("--user", "Alice!"), "a to z"),
    (("--file", "report.pdf"), "32 hex digits; `sfsd audit log`"),
    (("--tail", "0"), "0 is not in the range"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED)
def test_impossible_filters_are_refused(
    log: Path, sfsd: Sfsd, options: tuple[str, ...], told: str
) -> None:
    for verb in (("log",), ("export", "--format", "csv")):
        if verb == ("log",) or "--tail" not in options:
            answer = sfsd("audit", *verb, *options, code=2)
            assert told in answer.err
            assert answer.out == ""


def test_a_user_who_is_not_in_the_log_is_named(log: Path, sfsd: Sfsd) -> None:
    for options in ((), ("--tail", "5")):
        told = sfsd("audit", "log", "--user", "usre05", *options, code=3).err
        assert told.startswith("sfsd: no user usre05 in the log")
        assert "did you mean user05?" in told
    sfsd("audit", "export", "--format", "cef", "--user", "nobody", code=3)
    assert sfsd("audit", "log", "--user", "user05", "--until", "2001-01-01").lines == []


@pytest.mark.parametrize("tail", [(), ("--tail", "1")])
def test_log_follow(log: Path, root: Path, tail: tuple[str, ...]) -> None:
    """Print the present lines, then each new line once it is complete."""
    words = ["audit", "log", "--root", str(root), "--op", "user-access", "--follow", *tail]
    send_requests(root, [UserAccess("user00", True, "too old for the tail")] if tail else [])
    send_requests(root, [UserAccess("user01", True, "first")])
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys, sfsd.cli; sys.exit(sfsd.cli.main({words!r}))"],
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        try:
            assert following.stdout is not None
            assert "disabled user01: first" in following.stdout.readline()
            with log.open("ab") as file:
                file.write(b'{"seq":99')  # torn: the next start truncates it
            send_requests(root, [UserAccess("user01", False, "second")])
            assert "enabled user01: second" in following.stdout.readline()
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


EXPORTED: dict[str, Callable[[str], list[int]]] = {
    "jsonl": lambda text: [json.loads(line)["seq"] for line in text.splitlines()],
    "csv": lambda text: [int(row["seq"]) for row in csv.DictReader(io.StringIO(text))],
    "cef": lambda text: [int(seq) for seq in re.findall(r" externalId=(\d+) ", text)],
}


@pytest.mark.parametrize("kind", EXPORTED)
def test_export(log: Path, root: Path, sfsd: Sfsd, kind: str) -> None:
    entries = len(log.read_bytes().splitlines())
    assert EXPORTED[kind](sfsd("audit", "export", "--format", kind).out) == list(range(entries))
    with lock_root(root):  # as beside a daemon
        told = sfsd("audit", "export", "--format", kind, "--user", "user05").out
    assert EXPORTED[kind](told) == [6]
    lines = log.read_bytes().splitlines()
    write(log, lines[:5] + lines[6:])
    damaged = sfsd("audit", "export", "--format", kind, code=5)
    assert EXPORTED[kind](damaged.out) == list(range(5))
    assert "entry 5:" in damaged.err


def test_file_that_is_not_a_log(log: Path, sfsd: Sfsd) -> None:
    log.write_bytes(b"\xff\xfe\nnot json\n")
    assert "entry 0:" in sfsd("audit", "log", code=5).err


def test_missing_log(root: Path, sfsd: Sfsd) -> None:
    for verb in ("log", "verify"):
        assert "hint: " in sfsd("audit", verb, code=1).err


def test_rotations_of_an_unknown_user(log: Path, sfsd: Sfsd) -> None:
    assert "hint: " in sfsd("audit", "rotation", "nobody", code=3).err
    assert "not a user name" in sfsd("audit", "rotation", "Nobody", code=2).err
