"""Starts after a crash, a failing disk or tampering under logs/."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog, checkpoint
from protocol.records.signatures import SigningKey
from sfsd.errors import (
    CheckpointDamagedError,
    JournalDamagedError,
    JournalFailedError,
)
from sfsd.log.journal import Journal, log_warnings
from sfsd.log.replay import stored_checkpoint
from tests.sfsd.faults import Crash, FaultyFiles
from tests.sfsd.journals import KEY, ORIGIN, VERIFIER, check, draft, drafts, open_journal

SIGNED, MARKED, ALL = 9, 6, 12


def build(folder: Path) -> bytes:
    """Write a log of 12 entries as a crash leaves it, the first 6 before the mark, the first 9
    signed; return the whole file."""
    journal = open_journal(folder)
    journal.append(drafts(MARKED, "alice", "bob"))
    journal.save_mark(force=True)
    journal.append(drafts(SIGNED - MARKED))
    journal.checkpoint()
    journal.append(drafts(ALL - SIGNED, "bob"))
    abandon(journal)
    return (folder / "audit.jsonl").read_bytes()


def abandon(journal: Journal) -> None:
    """Close the descriptors as SIGKILL does; nothing else happens."""
    journal._tree.close()
    journal._file.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("built") / "logs"
    return folder, build(folder)


@pytest.fixture
def logs(tmp_path: Path, built: tuple[Path, bytes]) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "logs"))


@pytest.fixture
def whole(built: tuple[Path, bytes]) -> bytes:
    return built[1]


def ends(whole: bytes) -> list[int]:
    """Return the byte offset at which each line ends, newline included."""
    return [at + 1 for at, byte in enumerate(whole) if byte == 0x0A]


def damaged_at(folder: Path) -> int:
    with pytest.raises(JournalDamagedError) as caught:
        open_journal(folder)
    return caught.value.seq


def seal(line: dict[str, object]) -> bytes:
    line.pop("hash", None)
    body = json.dumps(line, separators=(",", ":")).encode()[:-1]
    return body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'


def rewritten(whole: bytes, first: int, *, to_the_end: bool) -> bytes:
    """Return the log with entry `first` changed and its hash corrected, optionally also all after
    it."""
    lines = [json.loads(line) for line in whole.splitlines()]
    lines[first]["actor"] = "mallo"
    sealed = whole.splitlines()
    for seq in range(first, len(lines) if to_the_end else first + 1):
        if seq:
            lines[seq]["prev"] = json.loads(sealed[seq - 1])["hash"]
        sealed[seq] = seal(lines[seq])
    return b"".join(line + b"\n" for line in sealed)


def test_an_abandoned_log_continues(logs: Path, whole: bytes) -> None:
    journal = open_journal(logs)
    assert journal.size == ALL
    check(journal)
    journal.append(drafts(3, "carol"))
    assert len(check(journal)) == ALL + 3
    assert (logs / "audit.jsonl").read_bytes().startswith(whole)
    journal.close()


@pytest.mark.parametrize(("cache", "step"), [("kept", 1), ("lost", 9)])
def test_a_torn_tail_is_cut_at_every_byte(logs: Path, whole: bytes, cache: str, step: int) -> None:
    boundaries = ends(whole)
    kept = {name: (logs / name).read_bytes() for name in ("checkpoint", "tree/mark")}
    last_line = range(boundaries[-2], len(whole) + 1, step)
    for cut in [
        *boundaries[SIGNED - 1 :],
        *range(boundaries[SIGNED - 1], boundaries[-2], 41),
        *last_line,
    ]:
        (logs / "audit.jsonl").write_bytes(whole[:cut])
        for name, data in kept.items():
            (logs / name).write_bytes(data)
        if cache == "lost":
            shutil.rmtree(logs / "tree")
            (logs / "tree").mkdir()
        journal = open_journal(logs)
        lines = sum(end <= cut for end in boundaries)
        assert journal.size == lines
        assert (logs / "audit.jsonl").read_bytes() == whole[: boundaries[lines - 1]]
        if cut % 40 == 0 or cut in boundaries:
            journal.append([draft("after")])
            check(journal)
        abandon(journal)


def with_set(folder: Path, *, sign: bool) -> list[bytes]:
    """Append an atomic set of three entries to the log of `build`, and one entry; return the
    lines."""
    journal = open_journal(folder)
    members = [changed(draft(str(place)), in_set=(place, 3)) for place in range(3)]
    journal.append([*members, draft("after")])
    if sign:
        journal.checkpoint()
    abandon(journal)
    return (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("count", range(ALL, ALL + 5))
def test_an_incomplete_set_is_cut(logs: Path, count: int) -> None:
    lines = with_set(logs, sign=False)
    (logs / "audit.jsonl").write_bytes(b"".join(lines[:count]) + lines[ALL][:99])
    journal = open_journal(logs)
    assert journal.size == (count if count > ALL + 2 else ALL)
    journal.append([draft("other"), draft("others", "bob")])
    check(journal)
    journal.close()


@pytest.mark.parametrize("part", ["missing", "interrupted", "late"])
def test_a_part_of_a_signed_set_is_damage(logs: Path, part: str) -> None:
    lines = with_set(logs, sign=True)
    if part == "missing":
        (logs / "audit.jsonl").write_bytes(b"".join(lines[: ALL + 2]))
        assert damaged_at(logs) == ALL
        return
    # A program that rewrites the log: one line of the set names none, or the first is in none.
    at = ALL + 1 if part == "interrupted" else ALL
    values = [json.loads(line) for line in lines]
    del values[at]["set"]
    for seq in range(at, len(lines)):
        values[seq]["prev"] = json.loads(lines[seq - 1])["hash"]
        lines[seq] = seal(values[seq]) + b"\n"
    (logs / "audit.jsonl").write_bytes(b"".join(lines))
    assert damaged_at(logs) == ALL + 1


@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_a_missing_signed_line_is_reported(logs: Path, whole: bytes, cache: str) -> None:
    boundaries = ends(whole)
    if cache == "lost":
        shutil.rmtree(logs / "tree")
    for cut in [*range(0, boundaries[SIGNED - 1], 97), *boundaries[: SIGNED - 1]]:
        (logs / "audit.jsonl").write_bytes(whole[:cut])
        assert damaged_at(logs) == sum(end <= cut for end in boundaries)
        assert (logs / "audit.jsonl").read_bytes() == whole[:cut], "a refusal changes nothing"


def test_a_flipped_byte_between_mark_and_checkpoint_is_reported(logs: Path, whole: bytes) -> None:
    boundaries = ends(whole)
    for at in range(boundaries[MARKED - 1], boundaries[SIGNED - 1], 7):
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        (logs / "audit.jsonl").write_bytes(flipped)
        assert damaged_at(logs) == sum(end <= at for end in boundaries)


def test_a_flipped_byte_past_the_checkpoint_ends_the_log(logs: Path, whole: bytes) -> None:
    boundaries = ends(whole)
    for at in range(boundaries[SIGNED - 1], len(whole), 41):
        (logs / "audit.jsonl").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        journal = open_journal(logs)
        assert journal.size == sum(end <= at for end in boundaries)
        check(journal)
        abandon(journal)
        (logs / "checkpoint").write_bytes(checkpoint_of(whole, SIGNED))


def checkpoint_of(whole: bytes, size: int, key: SigningKey = KEY) -> bytes:
    lines = whole.splitlines()[:size]
    root = merkle.root(merkle.leaf_hash(auditlog.leaf_data(line)) for line in lines)
    return checkpoint.sign(key, ORIGIN, size, root)


def test_a_flipped_byte_before_the_mark_is_found_in_the_background(
    logs: Path, whole: bytes
) -> None:
    boundaries = ends(whole)
    journal = open_journal(logs)
    journal.verify_before_mark()
    for at in range(0, boundaries[MARKED - 2], 53):
        (logs / "audit.jsonl").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(JournalDamagedError) as caught:
            journal.verify_before_mark()
        assert caught.value.seq == sum(end <= at for end in boundaries)
        assert journal.failed is not None
        with pytest.raises(JournalFailedError):
            journal.append([draft()])
    assert journal.size == ALL
    journal.close()


def test_a_flipped_byte_of_the_marked_line_is_reported(logs: Path, whole: bytes) -> None:
    at = ends(whole)[MARKED - 1] - 30
    (logs / "audit.jsonl").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert damaged_at(logs) == MARKED - 1


@pytest.mark.parametrize("seq", range(MARKED - 1))
def test_a_line_rewritten_with_its_hash_before_the_mark_is_reported(
    logs: Path, whole: bytes, seq: int
) -> None:
    (logs / "audit.jsonl").write_bytes(rewritten(whole, seq, to_the_end=False))
    journal = open_journal(logs)
    with pytest.raises(JournalDamagedError) as caught:
        journal.verify_before_mark()
    assert caught.value.seq == seq
    journal.close()


def test_a_line_of_another_length_before_the_mark_is_found_at_once(
    logs: Path, whole: bytes
) -> None:
    (logs / "audit.jsonl").write_bytes(whole.replace(b'"alice"', b'"al"', 1))
    assert damaged_at(logs) == 0


@pytest.mark.parametrize("seq", [0, 3, MARKED, SIGNED - 1])
@pytest.mark.parametrize("cache", ["kept", "lost"])
def test_a_log_rewritten_to_its_end_is_not_the_signed_one(
    logs: Path, whole: bytes, seq: int, cache: str
) -> None:
    (logs / "audit.jsonl").write_bytes(rewritten(whole, seq, to_the_end=True))
    if cache == "lost":
        shutil.rmtree(logs / "tree")
    assert damaged_at(logs) <= seq


def test_past_the_checkpoint_a_rewritten_tail_is_kept(logs: Path, whole: bytes) -> None:
    """No signature covers it, so it cannot be distinguished from entries that were never
    acknowledged."""
    (logs / "audit.jsonl").write_bytes(rewritten(whole, SIGNED, to_the_end=True))
    journal = open_journal(logs)
    assert journal.entry(SIGNED).actor == "mallo"
    check(journal)
    journal.close()


def test_a_wrong_count_does_not_chain(logs: Path, whole: bytes) -> None:
    lines = whole.splitlines()
    value = json.loads(lines[-1])
    value["accounts"]["bob"] += 1
    forged = b"".join(line + b"\n" for line in [*lines[:-1], seal(value)])
    (logs / "audit.jsonl").write_bytes(forged)
    journal = open_journal(logs)
    assert journal.size == ALL - 1
    abandon(journal)
    (logs / "audit.jsonl").write_bytes(forged)
    (logs / "checkpoint").write_bytes(checkpoint_of(forged, ALL))
    assert damaged_at(logs) == ALL - 1


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [delete, empty, zero, halve, flip])
@pytest.mark.parametrize("name", ["mark", "nodes", "offsets", "leaves"])
def test_a_damaged_cache_is_rebuilt_or_repaired(
    logs: Path, whole: bytes, harm: Callable[[Path], None], name: str
) -> None:
    harm(logs / "tree" / name)
    journal = open_journal(logs)
    journal.verify_before_mark()
    assert journal.failed is None
    check(journal)
    journal.append([draft()])
    journal.close()
    journal = open_journal(logs)
    assert len(check(journal)) == ALL + 1
    journal.verify()
    journal.close()


def test_the_cache_of_another_log_is_dropped(logs: Path, tmp_path: Path) -> None:
    other = open_journal(tmp_path / "other")
    other.append(drafts(MARKED, "zoe"))
    other.close()
    shutil.rmtree(logs / "tree")
    shutil.copytree(tmp_path / "other" / "tree", logs / "tree")
    journal = open_journal(logs)
    assert len(check(journal)) == ALL
    assert journal.count("zoe") == 0
    journal.close()


@pytest.mark.parametrize("harm", [delete, empty, zero])
def test_a_checkpoint_lost_with_the_power_is_no_damage(
    logs: Path, harm: Callable[[Path], None]
) -> None:
    harm(logs / "checkpoint")
    journal = open_journal(logs)
    assert len(check(journal)) == ALL
    journal.close()


def test_a_checkpoint_older_than_the_mark_is_no_damage(logs: Path, whole: bytes) -> None:
    (logs / "checkpoint").write_bytes(checkpoint_of(whole, MARKED - 2))
    journal = open_journal(logs)
    assert len(check(journal)) == ALL
    journal.close()


def test_a_wrong_node_under_an_older_checkpoint_is_no_damage(logs: Path, whole: bytes) -> None:
    (logs / "checkpoint").write_bytes(checkpoint_of(whole, 3))
    nodes = bytearray((logs / "tree" / "nodes").read_bytes())
    nodes[merkle.node_position(0, 2) * 32] ^= 1
    (logs / "tree" / "nodes").write_bytes(nodes)
    journal = open_journal(logs)
    assert len(check(journal)) == ALL
    journal.close()


def test_a_malformed_checkpoint_is_set_aside_and_signed_again(logs: Path, whole: bytes) -> None:
    assert log_warnings(logs) == []
    for note in (
        b"x",
        checkpoint_of(whole, SIGNED)[:-2],
        checkpoint_of(whole, SIGNED, SigningKey.generate()),
        checkpoint_of(whole, SIGNED).replace(b"\n9\n", b"\n8\n"),
    ):
        (logs / "checkpoint").write_bytes(note)
        journal = open_journal(logs)
        assert len(check(journal)) == ALL
        abandon(journal)
        assert (logs / "checkpoint.damaged").read_bytes() == note
        assert checkpoint.verify((logs / "checkpoint").read_bytes(), VERIFIER).size == ALL
    assert "logs/checkpoint.damaged" in log_warnings(logs)[0]


@pytest.mark.parametrize("note", [b"x", b""])
def test_without_a_checkpoint_the_mark_says_what_the_log_must_hold(
    logs: Path, whole: bytes, note: bytes
) -> None:
    (logs / "checkpoint").write_bytes(note)
    (logs / "audit.jsonl").write_bytes(whole[: ends(whole)[MARKED - 2]])
    for _ in range(2):
        assert damaged_at(logs) == MARKED - 1
    (logs / "audit.jsonl").write_bytes(rewritten(whole, 1, to_the_end=True))
    assert damaged_at(logs) == 0


def test_lines_of_a_killed_process_are_synced_before_they_count(logs: Path) -> None:
    files = FaultyFiles()
    journal = open_journal(logs, files)
    assert ("sync", "audit.jsonl") in files.calls
    journal.close()
    files = FaultyFiles()
    files.fail("sync", "audit.jsonl")
    with pytest.raises(OSError, match="error"):
        open_journal(logs, files)


def test_verification_can_be_stopped(logs: Path, whole: bytes) -> None:
    journal = open_journal(logs)
    (logs / "audit.jsonl").write_bytes(b"x" + whole[1:])
    stop = threading.Event()
    stop.set()
    journal.verify_before_mark(stop=stop)
    assert journal.failed is None
    journal.close()


def test_a_crash_at_every_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    calls = 0
    while True:
        folder = tmp_path / str(calls)
        files = FaultyFiles()
        files.crash_at = calls
        acknowledged: list[bytes] = []
        crashed = False
        try:
            journal = open_journal(folder, files)
            for count in (2, 1, 3):
                appended = journal.append(drafts(count))
                journal.checkpoint()
                acknowledged += [item.line for item in appended]
                journal.save_mark(force=True)
            journal.close()
        except Crash:
            crashed = True
        for _ in range(2):  # a second start changes nothing
            journal = open_journal(folder)
            assert [*journal.lines()][: len(acknowledged)] == acknowledged
            check(journal)
            journal.verify()
            journal.close()
        calls += 1
        if not crashed:
            break
    assert calls > 40


def test_a_checkpoint_that_the_disk_cannot_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is read again from its start then. Another error, such as a wrong mode, is the
    operator's to mend: it must not count as no checkpoint."""
    path = tmp_path / "checkpoint"
    assert stored_checkpoint(path, VERIFIER).size == 0
    path.write_bytes(b"")
    assert stored_checkpoint(path, VERIFIER).size == 0

    def fails(code: int) -> None:
        def read(_path: Path) -> bytes:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "read_bytes", read)

    fails(errno.EIO)
    with pytest.raises(CheckpointDamagedError):
        stored_checkpoint(path, VERIFIER)
    fails(errno.EACCES)
    with pytest.raises(PermissionError):
        stored_checkpoint(path, VERIFIER)
