from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import MAX_LINE, EntryDraft
from sfsd.errors import (
    EntryTooLongError,
    JournalDamagedError,
    JournalError,
    JournalFailedError,
    JournalFullError,
    JournalRangeError,
    JournalRefusedError,
    JournalUnreadableError,
)
from sfsd.log import journal as journal_module
from sfsd.log.journal import Journal
from tests.sfsd.faults import FaultyFiles
from tests.sfsd.journals import RESERVE, VERIFIER, check, draft, drafts, open_journal, tag_key


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def journal(logs: Path, files: FaultyFiles) -> Journal:
    journal = open_journal(logs, files)
    journal.append([draft("first")])
    return journal


def calls_on(files: FaultyFiles, name: str) -> list[str]:
    return [call for call, where in files.calls if where == name]


def test_an_empty_log_has_a_checkpoint_too(logs: Path) -> None:
    journal = open_journal(logs)
    assert (journal.size, journal.next_seq, journal.failed, journal.full) == (0, 0, None, False)
    assert check(journal) == []
    assert journal.append([]) == []
    journal.verify()
    journal.close()
    assert open_journal(logs).size == 0


def test_a_group_is_one_write_and_one_sync(journal: Journal, files: FaultyFiles) -> None:
    files.calls.clear()
    appended = journal.append(drafts(64))
    assert files.calls == [("write", "audit.jsonl"), ("sync_data", "audit.jsonl")]
    assert [item.seq for item in appended] == list(range(1, 65))


def test_entries_match_their_drafts(logs: Path) -> None:
    journal = open_journal(logs)
    full = EntryDraft(
        op="upload",
        actor="alice",
        owner="bob",
        file="0f" * 16,
        version=2,
        session=0,
        stage="77",
        rec=b"\x80",
        sigs={"3": b"s" * 64},
        detail={"paths": {"bob/files/x.json": "ab" * 32, "bob/inbox/y": None}},
        tag_keys={"bob": tag_key("bob"), "alice": tag_key("alice")},
    )
    first, second = journal.append([full, changed(full, tag_keys={"bob": tag_key("bob")})])
    entries = check(journal)
    assert [entry.hash for entry in entries] == [first.hash, second.hash]
    for entry in entries:
        for name in ("op", "actor", "owner", "file", "version", "session", "stage", "rec", "sigs"):
            assert getattr(entry, name) == getattr(full, name)
        assert entry.time == "2024-05-06T07:08:09.123Z"
        assert entry.paths == {"bob/files/x.json": b"\xab" * 32, "bob/inbox/y": None}
    assert entries[0].accounts == {"alice": 0, "bob": 0}
    assert entries[1].accounts == {"bob": 1}
    assert [journal.count(user) for user in ("alice", "bob", "carol")] == [1, 2, 0]
    assert entries[0].salt != entries[1].salt
    assert (logs / "audit.jsonl").read_bytes() == first.line + b"\n" + second.line + b"\n"


def test_a_draft_that_is_too_long_is_reported_and_nothing_written(
    journal: Journal, files: FaultyFiles
) -> None:
    files.calls.clear()
    with pytest.raises(EntryTooLongError) as caught:
        journal.append([draft("a"), draft("x" * MAX_LINE), draft("c"), draft("y" * MAX_LINE)])
    assert caught.value.indexes == (1, 3)
    assert files.calls == []
    journal.append(drafts(2))
    assert len(check(journal)) == 3


@pytest.mark.parametrize(
    ("code", "short", "error", "full"),
    [
        (errno.EIO, None, JournalRefusedError, False),
        (errno.ENOSPC, None, JournalFullError, True),
        (errno.EDQUOT, None, JournalFullError, True),
        (0, 0, JournalFullError, True),
        (0, 100, JournalFullError, True),
    ],
)
def test_a_refused_group_leaves_no_trace(
    journal: Journal,
    files: FaultyFiles,
    logs: Path,
    code: int,
    short: int | None,
    error: type[JournalError],
    full: bool,
) -> None:
    before = (logs / "audit.jsonl").read_bytes(), journal.checkpoint(), journal.count("alice")
    files.fail("write", "audit.jsonl", code, short=short)
    with pytest.raises(JournalRefusedError) as caught:
        journal.append(drafts(3, "alice", "bob"))
    assert type(caught.value) is error
    assert before == (
        (logs / "audit.jsonl").read_bytes(),
        journal.checkpoint(),
        journal.count("alice"),
    )
    assert journal.failed is None
    assert journal.full is full
    assert (logs / "reserve").exists() is not full
    journal.append(drafts(2))
    assert len(check(journal)) == 3


def test_the_reserve_is_recreated(journal: Journal, files: FaultyFiles, logs: Path) -> None:
    files.fail("write", "audit.jsonl", errno.ENOSPC)
    files.fail("write", "reserve", errno.ENOSPC)
    with pytest.raises(JournalFullError):
        journal.append([draft()])
    states = []
    for _ in range(2):
        journal.reserve.refill()
        states.append(journal.full)
    assert states == [True, False]
    assert (logs / "reserve").stat().st_size == RESERVE
    journal.reserve.release()
    assert journal.full


def test_a_full_disk_stops_neither_checkpoints_nor_marks_nor_proofs(
    journal: Journal, files: FaultyFiles
) -> None:
    for name in ("nodes", "offsets", ".mark.tmp", ".checkpoint.tmp"):
        files.fail("write", name, errno.ENOSPC, times=100)
    journal.append(drafts(20))
    journal.save_mark(force=True)
    journal.append(drafts(20))
    assert len(check(journal)) == 41
    assert journal.failed is None
    files.heal()
    journal.append([draft()])
    journal.close()
    again = open_journal(files=files, folder=journal._folder)
    assert len(check(again)) == 42


@pytest.mark.parametrize("call", ["truncate", "sync_data"])
def test_a_write_that_cannot_be_undone_stops_the_log(
    journal: Journal, files: FaultyFiles, logs: Path, call: str
) -> None:
    files.fail("write", "audit.jsonl", short=50)
    files.fail(call, "audit.jsonl")
    assert_stopped(journal, files, logs)


def test_a_failed_sync_stops_the_log(journal: Journal, files: FaultyFiles, logs: Path) -> None:
    files.fail("sync_data", "audit.jsonl")
    assert_stopped(journal, files, logs)


def assert_stopped(journal: Journal, files: FaultyFiles, logs: Path) -> None:
    note = journal.checkpoint()
    with pytest.raises(JournalFailedError):
        journal.append(drafts(2))
    assert journal.failed is not None
    files.heal()
    files.calls.clear()
    with pytest.raises(JournalFailedError):
        journal.append(drafts(2))
    journal.save_mark(force=True)
    assert calls_on(files, "audit.jsonl") == []
    assert calls_on(files, "mark") == []
    # Durable entries can still be read and proven.
    assert journal.checkpoint() == note
    assert len(check(journal)) == 1
    journal.close()
    again = open_journal(logs)
    assert again.size in (1, 3)
    check(again)
    again.append(drafts(1))
    again.close()


def test_a_checkpoint_covers_only_durable_entries(
    journal: Journal, files: FaultyFiles, logs: Path
) -> None:
    def stored() -> int:
        return checkpoint.verify((logs / "checkpoint").read_bytes(), VERIFIER).size

    journal.checkpoint()
    assert stored() == 1
    files.fail("sync_data", "audit.jsonl")
    with pytest.raises(JournalFailedError):
        journal.append(drafts(2))
    journal.checkpoint()
    assert stored() == 1
    assert checkpoint.verify(journal.checkpoint(), VERIFIER).size == 1


def test_a_checkpoint_is_signed_and_stored_once(journal: Journal, files: FaultyFiles) -> None:
    files.calls.clear()
    assert journal.checkpoint() == journal.checkpoint()
    assert calls_on(files, "checkpoint") == ["replace"]


def test_a_receipt_shows_a_line_and_the_leaves_from_a_known_size(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(logs)
    for number in range(20):
        journal.append([draft(str(number))])
    leaves = [auditlog.leaf_data(line) for line in journal.lines()]
    for since in range(21):
        for seq in (0, 7, 19):
            receipt, size = journal.receipt(seq, since)
            note = checkpoint.verify(receipt.checkpoint, VERIFIER)
            assert size == note.size == 20
            assert auditlog.parse(receipt.line, seq=seq).leaf_data == leaves[seq]
            shown = b"".join(len(one).to_bytes(2) + one for one in leaves[since:])
            assert (receipt.first, receipt.leaves) == (since, shown)
    monkeypatch.setattr(journal_module, "RECEIPT_LEAVES", 5)
    assert journal.receipt(19, 14)[0].leaves == b""
    assert journal.receipt(19, 15)[0].leaves != b""
    assert journal.receipt(19, 21)[0].leaves == b""  # the client has seen a longer log
    journal.close()


def test_entries_past_the_log_are_out_of_range(journal: Journal) -> None:
    journal.append(drafts(2))
    for seq in (-1, 3):
        with pytest.raises(JournalRangeError):
            journal.line(seq)
        with pytest.raises(JournalRangeError):
            journal.entry(seq)
        with pytest.raises(JournalRangeError):
            journal.receipt(seq, 0)
    for seq, size in [(3, 3), (-1, 3), (0, 4)]:
        with pytest.raises(JournalRangeError):
            journal.prove_inclusion(seq, size)
    for old, new in [(2, 1), (-1, 3), (1, 4)]:
        with pytest.raises(JournalRangeError):
            journal.prove_consistency(old, new)
    for first, end in [(-1, 2), (2, 1), (0, 4), (4, 4)]:
        with pytest.raises(JournalRangeError):
            journal.lines(first, end)
    for size in (-1, 4):
        with pytest.raises(JournalRangeError):
            journal.root_at(size)


def test_lines_by_range(journal: Journal) -> None:
    journal.append(drafts(9))
    whole = list(journal.lines())
    assert len(whole) == 10
    for first in range(11):
        assert list(journal.lines(first)) == whole[first:]
        for end in range(first, 11):
            assert list(journal.lines(first, end)) == whole[first:end]


def test_a_line_damaged_at_run_time_is_reported(journal: Journal, logs: Path) -> None:
    journal.append(drafts(3))
    data = bytearray((logs / "audit.jsonl").read_bytes())
    data[len(journal.line(0)) + 30] ^= 1
    (logs / "audit.jsonl").write_bytes(data)
    with pytest.raises(JournalDamagedError) as caught:
        journal.entry(1)
    assert caught.value.seq == 1
    with pytest.raises(JournalDamagedError) as caught:
        journal.verify()
    assert caught.value.seq == 1
    with pytest.raises(JournalFailedError):
        journal.append([draft()])


def test_paths_equals_the_paths_of_the_parsed_entry(journal: Journal) -> None:
    detail = {"paths": {"a/b": "ab" * 32, "a/c": None}}
    journal.append([EntryDraft(op="upload", actor="alice", detail=detail), draft()])
    seq = journal.size - 2
    assert journal.paths(seq) == {"a/b": b"\xab" * 32, "a/c": None} == journal.entry(seq).paths
    assert journal.paths(seq + 1) == {}
    with pytest.raises(JournalRangeError):
        journal.paths(seq + 2)


def test_a_line_that_differs_from_the_tree_is_parsed_again(journal: Journal, logs: Path) -> None:
    journal.append([EntryDraft(op="upload", actor="alice", detail={"paths": {"a": "ab" * 32}})])
    seq, line = journal.size - 1, journal.line(journal.size - 1)
    whole = (logs / "audit.jsonl").read_bytes()
    # White space that our encoder never writes, with a matching hash: the tree has no such leaf.
    body = line[: line.index(b',"hash":"')].replace(b'"owner":null', b'"owner":  ""')
    forged = body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
    assert len(forged) == len(line)
    (logs / "audit.jsonl").write_bytes(whole.replace(line, forged))
    with pytest.raises(JournalDamagedError):
        journal.paths(seq)
    other = b"1" if line[-3:-2] == b"0" else b"0"
    (logs / "audit.jsonl").write_bytes(whole.replace(line, line[:-3] + other + b'"}'))
    with pytest.raises(JournalDamagedError):
        journal.paths(seq)
    # If the tree is wrong, the line decides.
    (logs / "audit.jsonl").write_bytes(whole)
    journal._tree._nodes[:] = bytes(len(journal._tree._nodes))
    assert journal.paths(seq) == {"a": b"\xab" * 32}


def test_a_start_reads_only_lines_past_the_mark(logs: Path) -> None:
    journal = open_journal(logs)
    for _ in range(9):
        journal.append(drafts(1000))
        journal.save_mark()
    journal.latest.close()
    journal._tree.close()
    journal._file.close()

    class Counting(FaultyFiles):
        read = 0

        def read_at(self, handle: int, length: int, offset: int) -> bytes:
            data = super().read_at(handle, length, offset)
            Counting.read += len(data)
            return data

    whole = (logs / "audit.jsonl").stat().st_size
    again = open_journal(logs, Counting())
    # A mark is due after 5,000 lines here, so 4,000 are read again.
    assert again.size == 9000
    assert whole * 0.4 < Counting.read < whole * 0.5
    again.close()
    Counting.read = 0
    open_journal(logs, Counting()).close()
    assert Counting.read < 10_000


def test_a_failed_open_closes_its_files(logs: Path, files: FaultyFiles) -> None:
    open_journal(logs).close()
    files.fail("sync", "audit.jsonl")
    opened: list[int] = []
    closed: list[int] = []

    class Watching(FaultyFiles):
        def open_append(self, path: Path) -> int:
            opened.append(super().open_append(path))
            return opened[-1]

        def close(self, handle: int) -> None:
            closed.append(handle)
            super().close(handle)

    watching = Watching()
    watching.fail("sync", "audit.jsonl")
    with pytest.raises(OSError, match="error"):
        open_journal(logs, watching)
    assert sorted(opened) == sorted(closed)
    assert len(opened) == 4


def test_readers_beside_the_appender_see_only_whole_logs(logs: Path) -> None:
    journal = open_journal(logs)
    journal.append([draft()])
    stop = threading.Event()
    problems: list[BaseException] = []
    checked = [0, 0, 0]

    def read(number: int) -> None:
        try:
            known = checkpoint.verify(journal.checkpoint(), VERIFIER)
            while not stop.is_set():
                seq = known.size - 1
                receipt, _ = journal.receipt(seq, known.size)
                note = checkpoint.verify(receipt.checkpoint, VERIFIER)
                leaf = merkle.leaf_hash(auditlog.leaf_data(receipt.line, seq=seq))
                inclusion = journal.prove_inclusion(seq, note.size)
                merkle.verify_inclusion(leaf, seq, note.size, inclusion, note.root)
                consistency = journal.prove_consistency(known.size, note.size)
                merkle.verify_consistency(known.size, known.root, note.size, note.root, consistency)
                first = max(0, note.size - 20)
                assert len(list(journal.lines(first, note.size))) == note.size - first
                known = note
                checked[number] += 1
        except BaseException as exc:
            problems.append(exc)
            raise

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for number in range(150):
        journal.append(drafts(1 + number % 7))
        if number % 10 == 0:
            journal.save_mark(force=True)
    while not all(checked) and not problems:
        journal.append([draft()])
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    check(journal)
    journal.close()


def test_the_clock_is_written_as_utc_with_milliseconds(logs: Path) -> None:
    journal = open_journal(logs)
    journal.close()
    times = iter(
        [datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), datetime(2024, 1, 2, 3, 4, 5, 999_999, UTC)]
    )
    journal._clock = lambda: next(times)
    journal = open_journal(logs)
    journal._clock = lambda: next(times)
    journal.append(drafts(2))
    journal.append(drafts(1))
    assert [entry.time for entry in check(journal)] == [
        "2024-01-02T03:04:05.000Z",
        "2024-01-02T03:04:05.000Z",
        "2024-01-02T03:04:05.999Z",
    ]


class JournalModel(RuleBasedStateMachine):
    """A journal with restarts, crashes and failures, compared with a list of acknowledged
    entries."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.logs = Path(self.folder.name)
        self.files = FaultyFiles()
        self.journal = open_journal(self.logs, self.files)
        self.lines: list[bytes] = []

    @rule(users=st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=5))
    def append(self, users: list[list[str]]) -> None:
        appended = self.journal.append([draft("x" * len(names), *names) for names in users])
        self.lines += [item.line for item in appended]

    @rule(short=st.integers(0, 200) | st.none(), code=st.sampled_from([errno.EIO, errno.ENOSPC]))
    def refuse(self, short: int | None, code: int) -> None:
        self.files.fail("write", "audit.jsonl", code, short=short)
        with pytest.raises(JournalRefusedError):
            self.journal.append(drafts(2))
        self.files.heal()

    @rule(name=st.sampled_from(["nodes", "offsets", ".mark.tmp", ".checkpoint.tmp"]))
    def full_for_the_rest(self, name: str) -> None:
        self.files.fail("write", name, errno.ENOSPC)

    @rule()
    def checkpoint(self) -> None:
        self.journal.checkpoint()

    @rule()
    def mark(self) -> None:
        self.journal.save_mark(force=True)

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self._open()

    @rule(torn=st.binary(max_size=80))
    def crash(self, torn: bytes) -> None:
        self.journal._tree.close()
        self.journal._file.close()
        with (self.logs / "audit.jsonl").open("ab") as file:
            file.write(torn)
        self._open()

    @rule()
    def failed_sync(self) -> None:
        self.files.fail("sync_data", "audit.jsonl")
        with pytest.raises(JournalFailedError):
            self.journal.append(drafts(2))
        with pytest.raises(JournalFailedError):
            self.journal.append(drafts(1))
        self.restart()
        # No success was reported, but the page cache survives: here the lines are present.
        assert self.journal.size == len(self.lines) + 2
        self.lines = list(self.journal.lines())

    @rule(name=st.sampled_from(["nodes", "offsets", "mark"]))
    def lose_cache(self, name: str) -> None:
        self.journal.close()
        (self.logs / "tree" / name).unlink(missing_ok=True)
        self._open()

    def _open(self) -> None:
        self.files = FaultyFiles()
        self.journal = open_journal(self.logs, self.files)

    @invariant()
    def is_the_model(self) -> None:
        if hasattr(self, "journal"):
            assert self.journal.failed is None
            assert list(self.journal.lines()) == self.lines
            check(self.journal)
            self.journal.verify()

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_a_damaged_entry_is_reported_once(journal: Journal, logs: Path) -> None:
    journal.append(drafts(2))
    path = logs / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"time":"2', b'"time":"3')
    path.write_bytes(b"".join(lines))
    for read in (journal.entry, journal.paths):
        with pytest.raises(JournalDamagedError, match=r"^entry 1: (?!entry)"):
            read(1)


def test_leaves_that_were_taken_away_cannot_be_read(journal: Journal, logs: Path) -> None:
    journal.append(drafts(6))
    journal.save_mark(force=True)
    assert journal.leaves(0, 6, 10**6)
    os.truncate(logs / "tree" / "leaves", 0)
    with pytest.raises(JournalUnreadableError):
        journal.leaves(0, 6, 10**6)


def test_there_are_no_leaves_of_a_future_size(journal: Journal) -> None:
    assert journal.leaves(journal.size, 5, 1000) == b""
    assert journal.leaves(2**53, 5, 1000) == b""
