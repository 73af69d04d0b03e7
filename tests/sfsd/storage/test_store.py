from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.codec.merkle import PIECE_SIZE
from protocol.log.auditlog import EntryDraft
from sfsd.errors import (
    Absent,
    PathError,
    SetRefused,
    SfsdError,
    StagingClosedError,
    Stale,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    StoreRefusedError,
    UnreadableError,
)
from sfsd.fs.files import Files
from sfsd.storage.change import Adopt, Change, Effect, Link, Remove, Write, digest_of
from sfsd.storage.prepare import PreparedGroup
from sfsd.storage.store import UNREADABLE, DirectoryStore
from tests.sfsd.simulated_disk import SimulatedDisk

SIDE, BLOB, COPY = "alice/files/01/01.1.json", "alice/files/01/01.1.ct", "alice/files/02/02.1.ct"


def change(*effects: Effect, expect: dict[str, bytes | None] | None = None) -> Change:
    return Change(EntryDraft("test", "alice"), expect or {}, effects)


def prepare(store: DirectoryStore, changes: Sequence[Change], first_seq: int) -> PreparedGroup:
    """Prepare changes that are no atomic set."""
    return store.prepare([(one,) for one in changes], first_seq)


def put(store: DirectoryStore, *changes: Change, seq: int = 0) -> PreparedGroup:
    prepared = prepare(store, changes, seq)
    store.publish(prepared)
    return prepared


def upload(store: DirectoryStore, data: bytes, number: int = 0) -> Adopt:
    staged = store.create_upload_file(number.to_bytes(16, "big"))
    for start in range(0, len(data), PIECE_SIZE):
        staged.write(start // PIECE_SIZE, data[start : start + PIECE_SIZE])
    return Adopt(BLOB, staged)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def staged_names(store: DirectoryStore) -> set[str]:
    return {path.suffix for path in store.staging.iterdir()}


# Reading.


def test_reading(store: DirectoryStore) -> None:
    put(store, change(Write(SIDE, b"0123456789")))
    assert store.read(SIDE) == b"0123456789"
    assert store.read(SIDE, 3, 4) == b"3456"
    assert store.read(SIDE, 8, 99) == b"89"
    assert store.read(SIDE, 99, 1) == b""
    assert store.stored_digest(SIDE) == hashlib.sha256(b"0123456789").digest()
    for missing in (BLOB, f"{SIDE}/below", "nobody/account.json"):
        with pytest.raises(Absent) as absent:
            store.read(missing)
        assert absent.value.path == missing
        assert store.stored_digest(missing) is None
    for bad in ("../staging/applied", "", "alice/.x"):
        with pytest.raises(PathError):
            store.read(bad)


def test_an_open_blob_keeps_its_content(store: DirectoryStore) -> None:
    put(store, change(Write(BLOB, b"first")))
    blob = store.open_blob(BLOB)
    put(store, change(Write(BLOB, b"the second")), seq=1)
    assert (blob.size, blob.read_range(0, 99)) == (5, b"first")
    put(store, change(Remove(BLOB)), seq=2)
    assert blob.read_range(1, 2) == b"ir"
    blob.close()
    blob.close()
    with pytest.raises(StagingClosedError):
        blob.read_range(0, 1)


def test_children_are_paged_and_sorted_and_hide_temporaries(store: DirectoryStore) -> None:
    put(store, *(change(Write(f"alice/inbox/{name}", b"")) for name in ("b.2", "a.1", "c.3")))
    (store.users / "alice" / "inbox" / ".d.4.tmp").touch()
    assert store.children("alice/inbox") == ["a.1", "b.2", "c.3"]
    assert store.children("alice/inbox", "a.1", 1) == ["b.2"]
    assert store.children("alice/inbox", "c.3", 9) == []
    assert store.children("") == ["alice"]
    assert store.children("nobody") == []
    assert store.children("alice/inbox/a.1") == []
    with pytest.raises(PathError):
        store.children("../staging")


def test_the_digest_of_a_ciphertext_is_read_piece_by_piece(store: DirectoryStore) -> None:
    data = os.urandom(2 * PIECE_SIZE + 7)
    put(store, change(upload(store, data)))
    assert store.stored_digest(BLOB) == digest_of(BLOB, data)  # as published
    assert store.digest_in_place(BLOB) == digest_of(BLOB, data)  # as it is on the disk


class Halted(Files):
    """Real files that let a test act between a read and the use of its result."""

    def __init__(self) -> None:
        self.meanwhile: threading.Thread | None = None

    def read_at(self, handle: int, length: int, offset: int) -> bytes:
        data = super().read_at(handle, length, offset)
        if self.meanwhile is not None:
            acting, self.meanwhile = self.meanwhile, None
            acting.start()
            acting.join()
        return data


class Counting(Files):
    """Real files that record each opened file."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open_read(self, path: Path | str) -> int:
        self.opened.append(f"read {Path(path).name}")
        return super().open_read(path)

    def open_new(self, path: Path | str) -> int:
        path = Path(path)
        self.opened.append(f"new {path.name}")
        return super().open_new(path)


def test_a_read_caches_the_digest(tmp_path: Path) -> None:
    put(DirectoryStore(tmp_path), change(Write(SIDE, b"old")))
    files = Counting()
    store = DirectoryStore(tmp_path, files)
    old = hashlib.sha256(b"old").digest()
    assert store.read_with_digest(SIDE) == (b"old", old)
    files.opened.clear()
    assert store.stored_digest(SIDE) == old
    assert files.opened == []
    with pytest.raises(Absent):
        store.read_with_digest(BLOB.replace(".ct", ".json.x"))


def test_replacing_an_expected_file_does_not_try_to_create_it(tmp_path: Path) -> None:
    files = Counting()
    store = DirectoryStore(tmp_path, files)
    put(store, change(Write(SIDE, b"old"), expect={SIDE: None}))
    assert f"new {Path(SIDE).name}" in files.opened
    files.opened.clear()
    old = hashlib.sha256(b"old").digest()
    put(store, change(Write(SIDE, b"new"), expect={SIDE: old}), seq=1)
    assert f"new {Path(SIDE).name}" not in files.opened
    assert store.read(SIDE) == b"new"


def test_a_digest_read_before_a_publish_is_not_cached_after_it(tmp_path: Path) -> None:
    files = Halted()
    put(DirectoryStore(tmp_path), change(Write(SIDE, b"old")))
    store = DirectoryStore(tmp_path, files)
    files.meanwhile = threading.Thread(target=put, args=(store, change(Write(SIDE, b"new"))))
    assert store.stored_digest(SIDE) == digest_of(SIDE, b"old")
    assert store.stored_digest(SIDE) == digest_of(SIDE, b"new")
    files.meanwhile = threading.Thread(target=put, args=(store, change(Write(SIDE, b"newer"))))
    assert store.read_with_digest(SIDE) == (b"new", digest_of(SIDE, b"new"))
    assert store.stored_digest(SIDE) == digest_of(SIDE, b"newer")


# Preparing.


def test_entries_list_paths_digests_and_stage(store: DirectoryStore) -> None:
    data = b"x" * 100
    draft = EntryDraft("test", "alice", detail={"note": 1})
    effects = (upload(store, data), Write(SIDE, lambda seq: b"%d" % seq), Remove(COPY))
    changes = (
        Change(EntryDraft("login", "alice")),
        Change(draft, {SIDE: None}, effects),
        change(Remove(COPY)),
    )
    prepared = prepare(store, changes, 7)
    login, mixed, removal = prepared.drafts
    assert login == EntryDraft("login", "alice")
    assert mixed.detail == {
        "note": 1,
        "paths": {
            BLOB: digest_of(BLOB, data).hex(),
            SIDE: hashlib.sha256(b"8").hexdigest(),
            COPY: None,
        },
    }
    assert mixed.stage == prepared.pack
    assert (removal.stage, removal.detail) == (None, {"paths": {COPY: None}})
    store.publish(prepared)
    assert store.read(SIDE) == b"8"
    assert prepared.last_seq == 9
    assert (prepared.drafts, prepared.changes) == ([], []), "nobody needs them to settle it"


def test_a_change_without_bytes_stages_nothing(store: DirectoryStore) -> None:
    prepared = prepare(store, [change(), change(Remove(SIDE))], 0)
    assert prepared.pack is None
    assert list(store.staging.iterdir()) == []


def test_a_given_digest_is_used(store: DirectoryStore) -> None:
    given = digest_of(BLOB, b"x")
    prepared = prepare(store, [change(Write(BLOB, b"x", given))], 0)
    assert prepared.drafts[0].detail["paths"] == {BLOB: given.hex()}
    store.publish(prepared)
    assert store.stored_digest(BLOB) == given == store.digest_in_place(BLOB)


def test_a_digest_callable_is_called_after_the_data(store: DirectoryStore) -> None:
    made: list[bytes] = []

    def encode(seq: int) -> bytes:
        made.append(b"%d" % seq)
        return made[-1]

    write = Write(SIDE, encode, lambda: hashlib.sha256(made[-1]).digest())
    put(store, change(write), seq=7)
    assert made == [b"7"]
    assert store.stored_digest(SIDE) == hashlib.sha256(b"7").digest()


def test_expectations_see_the_group_so_far(store: DirectoryStore) -> None:
    one, two, three = (digest_of(SIDE, text) for text in (b"1", b"2", b"3"))
    prepared = put(
        store,
        change(Write(SIDE, b"1"), expect={SIDE: None}),
        change(Write(SIDE, b"x"), expect={SIDE: None}),
        change(Write(SIDE, b"2"), expect={SIDE: one}),
        change(Write(SIDE, b"x"), expect={SIDE: three, COPY: None, BLOB: one}),
        change(Remove(SIDE), expect={SIDE: two}),
        change(Write(SIDE, b"3"), expect={SIDE: None}),
        seq=5,
    )
    assert prepared.accepted == [0, 2, 4, 5]
    assert {index: stale.paths for index, stale in refusals(prepared).items()} == {
        1: (SIDE,),
        3: (SIDE, BLOB),
    }
    assert store.read(SIDE) == b"3"
    assert prepared.last_seq == 8


def refusals(prepared: PreparedGroup) -> dict[int, Stale]:
    found = {index: exc for index, exc in prepared.refused.items() if isinstance(exc, Stale)}
    assert len(found) == len(prepared.refused)
    return found


def test_a_link_shares_the_file_and_outlives_its_source(store: DirectoryStore) -> None:
    data = b"x" * 5000
    put(store, change(upload(store, data)))
    put(store, change(Link(COPY, BLOB, digest_of(BLOB, data))), seq=1)
    assert os.stat(store.users / COPY).st_ino == os.stat(store.users / BLOB).st_ino
    put(store, change(Remove(BLOB)), seq=2)
    store.settle()
    assert store.read(COPY) == data
    assert staged_names(store) == {""}  # applied


def test_a_link_to_a_missing_file_is_stale(store: DirectoryStore) -> None:
    put(store, change(Write(BLOB, b"x")))
    prepared = prepare(
        store,
        [
            change(Link(COPY, "alice/none.ct", bytes(32))),
            change(Remove(BLOB)),
            change(Write("alice/y.ct", b""), Link(COPY, BLOB, digest_of(BLOB, b"x"))),
        ],
        1,
    )
    assert {i: stale.paths for i, stale in refusals(prepared).items()} == {
        0: ("alice/none.ct",),
        2: (BLOB,),
    }
    assert list(store.staging.glob("*.ct")) == []


def test_an_upload_is_adopted_once(store: DirectoryStore) -> None:
    first = upload(store, b"abc")
    prepared = put(store, change(first), change(Adopt(COPY, first.staged)))
    assert refusals(prepared)[1].paths == (COPY,)
    later = prepare(store, [change(Adopt(COPY, first.staged))], 1)
    assert isinstance(later.refused[0], StagingClosedError)
    first.staged.discard()
    store.settle()
    assert store.read(BLOB) == b"abc"


def test_an_upload_that_was_dropped_is_refused_alone(store: DirectoryStore) -> None:
    gone = upload(store, b"abc")
    gone.staged.discard()
    prepared = put(store, change(gone), change(Write(SIDE, b"1")))
    assert isinstance(prepared.refused[0], StagingClosedError)
    assert prepared.accepted == [1]


class Purse:
    """A claim on a resource of which `left` remain."""

    def __init__(self, left: int) -> None:
        self.left = left

    def acquire(self) -> None:
        if not self.left:
            raise SfsdError("none left")
        self.left -= 1

    def release(self) -> None:
        self.left += 1


def claiming(
    purse: Purse, *effects: Effect, expect: dict[str, bytes | None] | None = None
) -> Change:
    return Change(EntryDraft("test", "alice"), expect or {}, effects, claim=purse)


def test_only_accepted_changes_keep_their_claims(store: DirectoryStore) -> None:
    purse = Purse(2)
    gone = upload(store, b"abc")
    gone.staged.discard()
    prepared = prepare(
        store,
        [
            claiming(purse, Write(SIDE, b"1"), expect={SIDE: digest_of(SIDE, b"0")}),
            claiming(purse, gone),
            claiming(purse, Link(COPY, "alice/none.ct", bytes(32))),
            claiming(purse, Write(SIDE, b"1")),
            claiming(purse, Write(COPY, b"2")),
            claiming(purse, Write(BLOB, b"3")),
        ],
        0,
    )
    assert prepared.accepted == [3, 4]
    assert str(prepared.refused[5]) == "none left"
    assert purse.left == 0
    prepared.abandon()
    assert purse.left == 2
    assert list(store.staging.iterdir()) == []
    assert store.children("") == []


def test_an_abandoned_upload_can_be_committed_again(store: DirectoryStore) -> None:
    adopt = upload(store, b"abc")
    prepare(store, [change(adopt, Link(COPY, "alice/none.ct", bytes(32)))], 0).abandon()
    prepare(store, [change(adopt)], 0).abandon()
    put(store, change(adopt))
    assert store.read(BLOB) == b"abc"


class Small(Files):
    def free(self, folder: Path) -> int:
        return (1 << 20) + 1000


def test_a_group_without_space_to_be_installed_is_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, Small())
    purse = Purse(1)
    with pytest.raises(StoreFullError):
        prepare(store, [claiming(purse, Write(SIDE, bytes(1000)))], 0)
    assert purse.left == 1
    put(store, claiming(purse, Write(SIDE, bytes(100))))
    assert staged_names(store) == {".pack"}


def test_a_set_is_accepted_completely_or_leaves_no_trace(store: DirectoryStore) -> None:
    put(store, change(Write(COPY, b"c"), Write(SIDE, b"0")))
    purse = Purse(5)
    staged = upload(store, b"abc")
    before = list(store.staging.iterdir())
    fine = claiming(purse, Write("alice/a", b"a"), expect={"alice/a": None})
    stale = claiming(purse, Write(SIDE, b"2"), expect={SIDE: None})
    full = claiming(purse, Write("alice/d", bytes(9)), Write("alice/e", b""))
    link = change(Link("alice/files/02/02.2.ct", COPY, digest_of(COPY, b"c")))
    first = claiming(purse, Adopt(BLOB, staged.staged), Write("alice/b", b"b"))
    prepared = store.prepare(
        [[fine], [first, link, stale], [first, link, full, full, full, full], [first, link, full]],
        7,
    )
    assert isinstance(prepared.refused[1], Stale)
    refused = prepared.refused[2]
    assert isinstance(refused, SetRefused)
    assert (refused.place, refused.error.cause) == (5, "none left")
    assert prepared.accepted == [0, 3]
    assert (prepared.first_seq, prepared.count, purse.left) == (7, 4, 2)
    assert [draft.in_set for draft in prepared.drafts] == [None, (0, 3), (1, 3), (2, 3)]
    assert len(list(store.staging.iterdir())) == len(before) + 2, "a pack and a link"
    store.publish(prepared)
    assert store.read(SIDE) == b"0"
    assert store.read(BLOB) == b"abc"


# Publishing and settling.


def test_publishing_may_be_repeated(store: DirectoryStore) -> None:
    put(store, change(Write(COPY, b"copied")))
    prepared = prepare(
        store, [change(upload(store, b"abc"), Write(SIDE, b"1")), change(Remove(COPY))], 1
    )
    store.publish(prepared)
    store.publish(prepared)
    assert (store.read(BLOB), store.read(SIDE)) == (b"abc", b"1")
    assert store.stored_digest(COPY) is None
    assert sorted(path.name for path in store.users.rglob(".*")) == []


def test_settling_removes_the_stage_and_records_it(store: DirectoryStore) -> None:
    put(store, change(upload(store, b"abc")), change(Write(SIDE, b"1")))
    assert staged_names(store) == {".ct", ".pack"}
    assert (store.unsettled, store.installer.applied) == (2, -1)
    store.settle()
    assert (store.unsettled, store.installer.applied) == (0, 1)
    assert [path.name for path in store.staging.iterdir()] == ["applied"]
    assert (store.staging / "applied").read_bytes() == b"1\n"
    assert DirectoryStore(store.staging.parent).installer.applied == 1


def test_entries_without_effects_are_settled_if_forced_or_many(store: DirectoryStore) -> None:
    put(store, change())
    store.settle()
    assert store.installer.applied == -1
    store.settle(force=True)
    assert store.installer.applied == 0
    for seq in range(1, 4097):
        put(store, change(), seq=seq)
    store.settle()
    assert store.installer.applied == 4096


def test_settling_ignores_files_removed_since(store: DirectoryStore) -> None:
    put(store, change(Write(SIDE, b"1")))
    os.unlink(store.users / SIDE)
    put(store, change(Remove(COPY)), seq=1)  # its folder never existed
    store.settle()
    assert store.installer.applied == 1


class Filling(Files):
    """A disk on which no file can be created once it is full."""

    full = False

    def open_new(self, path: Path | str) -> int:
        path = Path(path)
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        return super().open_new(path)


def test_a_full_disk_postpones_settling(tmp_path: Path) -> None:
    files = Filling()
    store = DirectoryStore(tmp_path, files)
    put(store, change(Write(SIDE, b"1")))
    files.full = True
    with pytest.raises(StoreFullError):
        store.settle()
    assert (store.failed, store.unsettled) == (None, 1)
    files.full = False
    store.settle()
    assert (store.unsettled, store.installer.applied) == (0, 0)


def test_after_a_failed_sync_nothing_is_prepared_or_settled(tmp_path: Path) -> None:
    disk = SimulatedDisk(tmp_path)
    store = DirectoryStore(tmp_path, disk)
    put(store, change(Write(SIDE, b"1")))
    disk.fail_at = {len(disk.calls): errno.EIO}
    with pytest.raises(StoreFailedError):
        store.settle()
    assert store.failed is not None
    with pytest.raises(StoreFailedError):
        prepare(store, [change(Write(SIDE, b"2"))], 1)
    with pytest.raises(StoreFailedError):
        store.settle()
    assert store.read(SIDE) == b"1"
    assert staged_names(store) == {".pack"}


def test_a_store_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"in the way")
    with pytest.raises(StoreRefusedError):
        DirectoryStore(tmp_path)


def test_two_files_of_one_change_are_read_consistently(store: DirectoryStore) -> None:
    contents = [bytes([n]) * 3000 for n in range(100)]
    put(store, change(Write(SIDE, contents[0]), Write(BLOB, contents[0])))
    done = threading.Event()

    def watch() -> int:
        seen = 0
        while not done.is_set():
            with store.publishing_paused():
                assert store.read(SIDE) == store.read(BLOB)
            seen += 1
        return seen

    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watch) for _ in range(2)]
        for seq, data in enumerate(contents[1:], 1):
            put(store, change(Write(SIDE, data), Write(BLOB, data)), seq=seq)
        done.set()
        assert all(watcher.result(10) for watcher in watching)


def test_readers_beside_the_committer_see_old_or_new(store: DirectoryStore) -> None:
    contents = [bytes([n]) * 3000 for n in range(100)]
    put(store, change(Write(SIDE, contents[0])))
    done = threading.Event()

    def watch() -> int:
        seen = 0
        while not done.is_set():
            data = store.read(SIDE)
            assert data in contents
            assert store.stored_digest(SIDE) in digests
            seen += 1
        return seen

    digests = {digest_of(SIDE, data) for data in contents}
    with ThreadPoolExecutor(2) as pool:
        watching = [pool.submit(watch) for _ in range(2)]
        for seq, data in enumerate(contents[1:], 1):
            put(store, change(Write(SIDE, data)), seq=seq)
        done.set()
        assert all(watcher.result(10) for watcher in watching)
    assert store.stored_digest(SIDE) == digest_of(SIDE, contents[-1])


def test_a_new_file_found_by_its_name_is_read_completely(tmp_path: Path) -> None:
    """A scan of a folder finds the name while the bytes are still being written."""

    folder, _, name = SIDE.rpartition("/")
    begun, looking, done = (threading.Event() for _ in range(3))

    class Slow(Files):
        def write(self, handle: int, data: bytes | bytearray | memoryview) -> int:
            written = super().write(handle, memoryview(data)[:100])
            if not begun.is_set() and name in slow.children(folder):
                begun.set()
                assert looking.wait(10)
                done.wait(0.2)  # long enough for a reader that does not wait for the rest
            return written

    slow = DirectoryStore(tmp_path, Slow())

    def look() -> bytes:
        assert begun.wait(10)
        looking.set()
        try:
            return slow.read(SIDE)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(look)
        put(slow, change(Write(SIDE, b"x" * 5000)))
        assert reading.result(10) == b"x" * 5000


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_an_unreadable_file_is_not_reported_as_missing(tmp_path: Path) -> None:
    """A caller that gets None may write another file in its place."""
    store = DirectoryStore(tmp_path)
    (store.users / "ada").mkdir()
    (store.users / "ada" / "a").symlink_to("a")  # repeatedly
    for reads in (store.read, store.open_blob, store.read_with_digest, store.digest_in_place):
        with pytest.raises(UnreadableError) as raised:
            reads("ada/a")
        assert raised.value.path == "ada/a"
    assert store.stored_digest("ada/a") == UNREADABLE
    (store.users / "ada" / "a").unlink()
    (store.users / "ada" / "a").write_bytes(b"again")
    assert store.stored_digest("ada/a") == digest_of("ada/a", b"again")
    assert store.stored_digest("ada/b") is None
    (store.users / "ada" / "c").write_bytes(b"")
    assert store.stored_digest("ada/c/d") is None


class NoMemory(Files):
    """The system has no memory to open or examine a file, or to read one."""

    def open_read(self, path: Path | str) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_lack_of_memory_says_nothing_about_a_file(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, NoMemory())
    (store.users / "ada").mkdir()
    (store.users / "ada" / "a").write_bytes(b"there")
    for reads in (store.read, store.open_blob, store.digest_in_place, store.stored_digest):
        with pytest.raises(StoreBusyError):
            reads("ada/a")
