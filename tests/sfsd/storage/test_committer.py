from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.log import checkpoint
from protocol.log.auditlog import MAX_LINE, EntryDraft
from sfsd.errors import (
    EntryTooLongError,
    JournalFailedError,
    JournalFullError,
    JournalRefusedError,
    Refused,
    SfsdError,
    ShuttingDown,
    Stale,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    StoreWaitsError,
)
from sfsd.fs.files import Files
from sfsd.log.journal import Journal
from sfsd.storage import committer
from sfsd.storage.change import Adopt, Change, Effect, Write, digest_of
from sfsd.storage.committer import (
    MAX_GROUP,
    MAX_GROUP_EFFECTS,
    Committer,
    GroupCommitter,
    Made,
    Pending,
)
from sfsd.storage.store import DirectoryStore
from tests.sfsd import journals
from tests.sfsd.store_model import check_start, stored

WAIT = 20
COUNTER = "alice/account.json"
NO_ROOM = {("open_new", "reserve"): errno.ENOSPC}
"""The committer lays the reserve again behind a change, when it comes to it: not where a test looks
whether it was spent."""


class Gate(Files):
    """Real files; a call named in `errors` raises that errno, and syncs of the log can be
    blocked."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], int] = {}
        self.full_until_removed: str | None = None
        self.open = threading.Event()
        self.open.set()
        self.held = threading.Event()
        self._names: dict[int, str] = {}

    def _check(self, call: str, name: str) -> None:
        for (failing, suffix), code in self.errors.items():
            if failing == call and name.endswith(suffix):
                raise OSError(code, "as told")

    def open_append(self, path: Path) -> int:
        handle = super().open_append(path)
        self._names[handle] = path.name
        return handle

    def open_new(self, path: Path | str) -> int:
        path = Path(path)
        self._check("open_new", path.name)
        if self.full_until_removed and "users" in path.parts:
            raise OSError(errno.ENOSPC, "no room")
        handle = super().open_new(path)
        self._names[handle] = path.name
        return handle

    def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
        self._check("write", self._names[handle])
        return super().write(handle, data)

    def truncate(self, handle: int, size: int) -> None:
        self._check("truncate", self._names[handle])
        super().truncate(handle, size)

    def sync_data(self, handle: int) -> None:
        self._check("sync_data", self._names[handle])
        if not self.open.is_set():
            self.held.set()
            assert self.open.wait(WAIT)
        super().sync_data(handle)

    def replace(self, source: Path | str, target: Path | str) -> None:
        source, target = Path(source), Path(target)
        self._check("replace", target.name)
        super().replace(source, target)

    def remove(self, path: Path | str) -> None:
        path = Path(path)
        if path.name == self.full_until_removed:
            self.full_until_removed = None
        super().remove(path)


class Daemon:
    """A committer on a new root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = Gate()
        self.journal: Journal = journals.open_journal(root / "logs", self.files)
        self.store = DirectoryStore(root, self.files)
        self.committer = Committer(self.store, self.journal, settle_after=0.01)

    def submit(self, change: Change) -> Future[int]:
        return self.committer.submit(change)

    def submit_set(self, changes: Sequence[Change]) -> Future[list[Made]]:
        return self.committer.submit_all(changes, is_atomic=True)

    def close(self) -> None:
        self.committer.close()
        self.journal.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.files.open.set()
    daemon.close()


def change(
    *effects: Effect, expect: dict[str, bytes | None] | None = None, note: str = ""
) -> Change:
    return Change(EntryDraft("test", "alice", detail={"note": note}), expect or {}, effects)


def write(path: str, data: bytes) -> Change:
    return change(Write(path, data))


class Purse:
    def __init__(self) -> None:
        self.taken = 0

    def acquire(self) -> None:
        self.taken += 1

    def release(self) -> None:
        self.taken -= 1


def claiming(purse: Purse, path: str = "alice/x") -> Change:
    return Change(EntryDraft("test", "alice"), {}, (Write(path, b"x"),), claim=purse)


def test_a_change_is_durable_published_and_signed_for_before_it_is_answered(
    daemon: Daemon,
) -> None:
    seen: list[tuple[int, bytes, int]] = []

    def then(seq: int) -> None:
        seen.append((seq, daemon.store.read("alice/x"), daemon.journal.next_seq))

    asked = Change(EntryDraft("test", "alice"), {}, (Write("alice/x", b"1"),), on_published=then)
    assert daemon.submit(asked).result(WAIT) == 0
    assert seen == [(0, b"1", 1)]
    entry = daemon.journal.entry(0)
    assert entry.paths == {"alice/x": digest_of("alice/x", b"1")}
    note = (daemon.root / "logs" / "checkpoint").read_bytes()
    assert checkpoint.verify(note, journals.VERIFIER).size == 1


def test_nothing_is_signed_for_before_readers_find_it(daemon: Daemon) -> None:
    """A client that has followed the log to a checkpoint takes answers that lack its effects for
    lies."""
    placed, proceed = threading.Event(), threading.Event()

    def then(_seq: int) -> None:
        placed.set()
        assert proceed.wait(WAIT)

    journal = daemon.journal
    asked = Change(EntryDraft("test", "alice"), {}, (Write("alice/x", b"1"),), on_published=then)
    made = daemon.submit(asked)
    assert placed.wait(WAIT)
    assert daemon.store.read("alice/x") == b"1"
    assert checkpoint.verify(journal.checkpoint(), journals.VERIFIER).size == 0
    assert journal.unseen(0)[-1] == journal.published_size == 0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(journal.await_published, 1)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        proceed.set()
        waiting.result(WAIT)
    assert made.result(WAIT) == 0
    assert checkpoint.verify(journal.checkpoint(), journals.VERIFIER).size == 1


def test_many_threads_count_to_the_same_number(daemon: Daemon) -> None:
    """Compare-and-swap under contention: every success is one step, no step is lost."""

    def count(_: int) -> int:
        while True:
            try:
                old = daemon.store.stored_digest(COUNTER)
                data = daemon.store.read(COUNTER) if old else b"0"
                if old is not None and digest_of(COUNTER, data) != old:
                    continue
                new = b"%d" % (int(data) + 1)
                return daemon.submit(change(Write(COUNTER, new), expect={COUNTER: old})).result(
                    WAIT
                )
            except Stale:
                continue

    with ThreadPoolExecutor(4) as pool:
        seqs = list(pool.map(count, range(60)))
    assert sorted(seqs) == list(range(60))
    assert daemon.store.read(COUNTER) == b"60"
    assert [entry.seq for entry in journals.check(daemon.journal)] == list(range(60))


def test_what_gathers_while_the_disk_is_busy_is_one_group_in_order(daemon: Daemon) -> None:
    daemon.files.open.clear()
    first = daemon.submit(write("alice/n0", b""))
    assert daemon.files.held.wait(WAIT)
    rest = [daemon.submit(write(f"alice/n{n}", b"")) for n in range(1, MAX_GROUP + 11)]
    daemon.files.open.set()
    futures = [first, *rest]
    assert [future.result(WAIT) for future in futures] == list(range(MAX_GROUP + 11))
    stages = [daemon.journal.entry(seq).stage for seq in range(MAX_GROUP + 11)]
    assert len(set(stages)) == 3
    assert stages.count(stages[1]) == MAX_GROUP


def test_a_change_whose_future_was_cancelled_disturbs_no_other(daemon: Daemon) -> None:
    daemon.files.open.clear()
    first = daemon.submit(change())
    assert daemon.files.held.wait(WAIT)
    second, third = daemon.submit(write("alice/x", b"")), daemon.submit(change())
    assert second.cancel()
    daemon.files.open.set()
    assert (first.result(WAIT), third.result(WAIT)) == (0, 2)


def test_settling_runs_in_the_background(daemon: Daemon) -> None:
    daemon.submit(write("alice/x", b"1")).result(WAIT)
    settled = threading.Event()
    for _ in range(WAIT * 100):
        if daemon.store.unsettled == 0:
            break
        settled.wait(0.01)
    assert (daemon.root / "staging" / "applied").read_bytes() == b"0\n"
    assert [path.name for path in daemon.store.staging.iterdir()] == ["applied"]


def test_closing_makes_what_was_submitted_and_refuses_the_rest(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.files.open.clear()
    futures = [daemon.submit(write(f"alice/n{n}", b"")) for n in range(10)]
    assert daemon.files.held.wait(WAIT)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(daemon.committer.close)
        daemon.files.open.set()
        closing.result(WAIT)
    assert [future.result(0) for future in futures] == list(range(10))
    with pytest.raises(ShuttingDown):
        daemon.submit(change()).result(0)
    assert daemon.committer.failed is None
    daemon.close()
    assert (tmp_path / "staging" / "applied").read_bytes() == b"9\n"
    assert check_start(tmp_path)[0] == 10


def test_a_line_that_is_too_long_fails_alone(daemon: Daemon) -> None:
    daemon.files.open.clear()
    daemon.submit(change())
    assert daemon.files.held.wait(WAIT)
    purse = Purse()
    before = daemon.submit(claiming(purse, "alice/a"))
    long = Change(
        EntryDraft("test", "alice", detail={"note": "x" * MAX_LINE}),
        effects=(Write("alice/x", b""),),
        claim=purse,
    )
    failing = [daemon.submit(long), daemon.submit(long)]
    after = daemon.submit(claiming(purse, "alice/b"))
    daemon.files.open.set()
    assert (before.result(WAIT), after.result(WAIT)) == (1, 2)
    for future in failing:
        assert isinstance(future.exception(WAIT), EntryTooLongError)
    assert purse.taken == 2
    assert sorted(stored(daemon.root)) == ["alice/a", "alice/b"]


def test_an_atomic_set_is_in_one_group_and_gets_consecutive_seqs(daemon: Daemon) -> None:
    daemon.files.open.clear()
    daemon.submit(change())
    assert daemon.files.held.wait(WAIT)
    published: list[int] = []
    ones = [daemon.submit(write(f"alice/n{n}", b"")) for n in range(MAX_GROUP - 9)]
    made = [
        Change(
            EntryDraft("test", "alice"), {}, (Write(f"alice/s{n}", b"s"),), None, published.append
        )
        for n in range(10)
    ]
    whole = daemon.submit_set(made)
    after = daemon.submit(change())
    daemon.files.open.set()
    assert after.result(WAIT) == MAX_GROUP + 2
    assert [one.result(WAIT) for one in ones] == list(range(1, MAX_GROUP - 8))
    first = published[0]
    assert published == whole.result(WAIT) == list(range(first, first + 10))
    entries = [daemon.journal.entry(seq) for seq in published]
    assert {entry.in_set for entry in entries} == {(first, 10)}
    assert len({entry.stage for entry in entries}) == 1
    assert daemon.journal.entry(first - 1).stage != entries[0].stage, "it did not fit there"
    assert daemon.journal.entry(first - 1).in_set is None


def test_the_sets_of_one_user_do_not_hold_up_each_change_of_others(daemon: Daemon) -> None:
    """A set has one turn, however many changes it has."""
    daemon.files.open.clear()
    daemon.submit(change())
    assert daemon.files.held.wait(WAIT)
    large = [change()] * MAX_GROUP
    sets = [daemon.submit_set(large) for _ in range(3)]
    ones = [daemon.submit(Change(EntryDraft("test", "bob"))) for _ in range(3)]
    daemon.files.open.set()
    assert [one.result(WAIT)[0] for one in sets] == [1, MAX_GROUP + 4, 2 * MAX_GROUP + 4]
    assert [one.result(WAIT) for one in ones] == [MAX_GROUP + 1, MAX_GROUP + 2, MAX_GROUP + 3]


def test_a_set_of_one_is_a_change_like_any_other(daemon: Daemon) -> None:
    assert daemon.submit_set([write("alice/x", b"")]).result(WAIT) == [0]
    assert daemon.journal.entry(0).in_set is None


def test_one_change_fails_its_set(daemon: Daemon) -> None:
    """By a line that is too long, a claim, a conflict, or effects beyond those of a group."""
    purse = Purse()
    fine = claiming(purse, "alice/fine")
    note = {"note": "x" * MAX_LINE}
    long = Change(EntryDraft("test", "alice", detail=note), {}, (), purse)
    daemon.files.open.clear()
    daemon.submit(change())
    assert daemon.files.held.wait(WAIT)
    failing = daemon.submit_set([fine, change(), long, fine])
    stale = daemon.submit_set([fine, change(expect={"alice/none": b"?"}), fine])
    beside = daemon.submit(claiming(purse, "alice/beside"))
    daemon.files.open.set()
    refused = failing.result(WAIT)
    assert [type(one) for one in refused] == [Refused, Refused, EntryTooLongError, Refused]
    assert [type(one) for one in stale.result(WAIT)] == [Stale] * 3
    assert beside.result(WAIT) == 1
    assert (purse.taken, sorted(stored(daemon.root))) == (1, ["alice/beside"])
    many = change(*(Write(f"alice/w{n}", b"") for n in range(MAX_GROUP_EFFECTS)))
    too_many = daemon.submit_set([many, write("alice/y", b"")]).result(WAIT)
    assert [one.code for one in too_many if isinstance(one, Refused)] == ["bad-request"] * 2


@pytest.mark.parametrize(
    ("call", "name", "code", "error"),
    [
        ("open_new", ".pack", errno.ENOSPC, StoreFullError),
        ("write", ".pack", errno.EDQUOT, StoreFullError),
        ("write", "audit.jsonl", errno.ENOSPC, JournalFullError),
        ("write", "audit.jsonl", errno.EIO, JournalRefusedError),
    ],
)
def test_a_failure_before_the_log_is_undone_and_the_daemon_continues(
    daemon: Daemon, call: str, name: str, code: int, error: type[SfsdError]
) -> None:
    daemon.submit(write("alice/x", b"1")).result(WAIT)
    daemon.files.errors = {(call, name): code, **NO_ROOM}
    purse = Purse()
    with pytest.raises(error):
        daemon.submit(claiming(purse)).result(WAIT)
    assert (purse.taken, daemon.committer.failed) == (0, None)
    assert daemon.journal.full == (error in (StoreFullError, JournalFullError))
    daemon.files.errors = {}
    assert daemon.submit(claiming(purse)).result(WAIT) == 1
    assert (purse.taken, daemon.store.read("alice/x")) == (1, b"x")


def test_a_full_disk_after_the_log_uses_the_reserve(daemon: Daemon) -> None:
    daemon.files.full_until_removed = "reserve"
    daemon.files.errors = NO_ROOM
    assert daemon.submit(write("alice/x", b"1")).result(WAIT) == 0
    assert daemon.store.read("alice/x") == b"1"
    assert daemon.journal.full
    assert daemon.committer.failed is None


@pytest.mark.parametrize(
    ("call", "name", "code", "error"),
    [
        ("sync_data", "audit.jsonl", errno.EIO, JournalFailedError),
        ("open_new", "x", errno.EIO, StoreFailedError),
        ("open_new", "x", errno.ENOSPC, StoreWaitsError),  # even with the reserve, and later
        ("open_new", "x", errno.EMFILE, StoreWaitsError),
    ],
)
def test_a_failure_at_or_past_the_log_stops_acknowledgements(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    name: str,
    code: int,
    error: type[SfsdError],
) -> None:
    monkeypatch.setattr(committer, "_PUBLISH_SECONDS", 0.2)
    daemon = Daemon(tmp_path)
    daemon.submit(write("alice/y", b"1")).result(WAIT)
    daemon.files.errors = {(call, name): code}
    assert type(daemon.submit(write("alice/x", b"2")).exception(WAIT)) is error
    daemon.files.errors = {}
    assert daemon.committer.failed is not None
    waits = error is StoreWaitsError
    assert daemon.committer.awaits_room == waits
    refused = daemon.submit(change()).exception(WAIT)
    assert type(refused) is (StoreWaitsError if waits else StoreFailedError)
    assert daemon.store.read("alice/y") == b"1"
    daemon.close()
    size, state = check_start(tmp_path)
    assert (size, state) == (
        2,
        {"alice/y": b"1", "alice/x": b"2"},
    )  # it may have been done, and it was


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT])
def test_a_logged_group_waits_for_a_descriptor_or_room(daemon: Daemon, code: int) -> None:
    daemon.files.errors = {("open_new", "x"): code}
    made = daemon.submit(write("alice/x", b"1"))
    with pytest.raises(TimeoutError):
        made.result(0.2)
    daemon.files.errors = {}
    assert made.result(WAIT) == 0
    assert daemon.committer.failed is None


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_before_the_log_a_lack_of_descriptors_is_busy_and_no_failure(
    daemon: Daemon, code: int
) -> None:
    daemon.files.errors = {("open_new", ".pack"): code}
    error = daemon.submit(write("alice/x", b"1")).exception(WAIT)
    assert isinstance(error, StoreBusyError)
    assert error.code == "busy"
    daemon.files.errors = {}
    assert daemon.submit(write("alice/x", b"1")).result(WAIT) == 0


@pytest.mark.parametrize(
    ("call", "name"), [("sync_data", "audit.jsonl"), ("open_new", "x.json"), ("replace", "x.ct")]
)
def test_an_upload_that_the_log_may_name_survives_being_dropped(
    tmp_path: Path, call: str, name: str
) -> None:
    daemon = Daemon(tmp_path)
    staged = daemon.store.create_upload_file(bytes(16))
    staged.write(0, b"cipher")
    daemon.files.errors = {(call, name): errno.EIO}
    put = change(Adopt("alice/x.ct", staged), Write("alice/x.json", b"side"))
    assert isinstance(daemon.submit(put).exception(WAIT), SfsdError)
    staged.discard()
    daemon.files.errors = {}
    daemon.close()
    assert check_start(tmp_path) == (1, {"alice/x.ct": b"cipher", "alice/x.json": b"side"})


def test_a_bug_in_the_committer_leaves_no_caller_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    daemon = Daemon(tmp_path)
    daemon.files.open.clear()
    daemon.submit(change())
    assert daemon.files.held.wait(WAIT)

    def then(seq: int) -> None:
        raise LookupError(seq)

    futures = [
        daemon.submit(Change(EntryDraft("test", "alice"), on_published=then)),
        *(daemon.submit(change()) for _ in range(MAX_GROUP + 1)),
    ]
    daemon.files.open.set()
    for future in futures:
        assert isinstance(future.exception(WAIT), StoreFailedError)
    assert daemon.committer.failed is not None
    with pytest.raises(StoreFailedError):
        daemon.submit(change()).result(WAIT)
    daemon.close()
    assert reported == [LookupError]


def test_a_stale_change_among_others_is_refused_alone(tmp_path: Path) -> None:
    journal = journals.open_journal(tmp_path / "logs")
    store = DirectoryStore(tmp_path)
    group = [
        Pending((write("alice/x", b"1"),)),
        Pending(
            (
                change(Write("alice/x", b"2"), expect={"alice/x": None}),
                write("alice/y", b"3"),
            )
        ),
    ]
    GroupCommitter(store, journal).commit(group)
    stale, made = group[1].future.result(0)
    assert isinstance(stale, Stale)
    assert (group[0].future.result(0), made) == ([0], 1)
    later = Pending((change(expect={"alice/x": None}),))
    GroupCommitter(store, journal).commit([later])
    assert isinstance(later.future.result(0)[0], Stale)
    assert journal.next_seq == 2
    journal.close()
