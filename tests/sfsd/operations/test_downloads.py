"""Downloads, and that each is logged before it is served."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from protocol.log import checkpoint
from protocol.records.records import PURGE, FileRecord
from protocol.wire.messages import Done, Error, Reply
from protocol.wire.messages.accounts import UserAccess
from protocol.wire.messages.base import MAX_SMALL, PIECE
from protocol.wire.messages.downloads import (
    HEAD,
    Bytes,
    GetLeaves,
    LeavesPage,
    Open,
    Opened,
    OpenedVersion,
    OpenResult,
    OpenTarget,
    Read,
)
from sfsd.fs.files import Files
from sfsd.operations import changesets, downloads
from sfsd.rules.context import Transaction
from sfsd.rules.users import signing_key_id
from sfsd.settings.kinds import DAY
from sfsd.state import logged_downloads
from sfsd.state.logged_downloads import Downloads
from sfsd.state.read_handles import FILES, HANDLES
from sfsd.storage.change import Change
from tests.opens import open_one, result_of
from tests.sfsd.builders import (
    Daemon,
    Person,
    Result,
    alone,
    daemon,
    done,
    file_id,
    refused,
    segments_root,
)
from tests.sfsd.operations.test_rotation import onto
from tests.waiting import until

F = file_id(1)
CONTENT = os.urandom(2 * PIECE + 999)
WAIT = 20


class HookedFiles(Files):
    """Real files that run `first` before the file named `blob` is opened."""

    def __init__(self) -> None:
        self.blob = ""
        self.first: Callable[[], object] = bool

    def open_read(self, path: Path | str) -> int:
        if Path(path).name == self.blob:
            self.blob = ""
            self.first()
        return super().open_read(path)


class RecordingFiles(Files):
    """Real files that record in `read` the names of those opened for reading."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def open_read(self, path: Path | str) -> int:
        self.read.append(Path(path).name)
        return super().open_read(path)


@pytest.fixture
def ada(served: Daemon) -> Person:
    person = served.person("ada")
    person.who = person.log_in()  # by the device's key, not the account's
    upload = person.upload(F, CONTENT)
    done(person.ask(person.took(person.version(F, CONTENT)).commit(upload)))
    return person


def opened(person: Person, owner: str = "ada", wanted: str = F, version: int = 0) -> OpenedVersion:
    reply = person.ask(open_one(owner, wanted, version))
    assert isinstance(reply, OpenedVersion), reply
    return reply


def test_get_open_reads_each_file_once(tmp_path: Path) -> None:
    files = RecordingFiles()
    with daemon(tmp_path, files=files) as running:
        person = running.person("ada")
        person.put(F, b"content")
        files.read.clear()
        opened(person)
        assert sorted(files.read) == [f"{F}.1.ct", f"{F}.1.json"]


def test_a_download_returns_what_was_stored(ada: Person) -> None:
    reply = opened(ada)
    put = ada.made[F, 1]
    assert reply.data == CONTENT[:MAX_SMALL]
    assert reply.view.content.record == put.body
    assert (reply.view.metadata, reply.view.wraps, reply.view.head) == (
        put.metadata,
        put.wraps,
        None,
    )
    assert len(reply.leaves) == 3 * 32
    ranges = [(0, PIECE), (PIECE, PIECE), (2 * PIECE, PIECE), (len(CONTENT), 1), (5, 7)]
    for offset, length in ranges:
        assert ada.ask(Read(reply.handle, offset, length)) == Bytes(
            CONTENT[offset : offset + length]
        )
    refused(ada.ask(Read(reply.handle, len(CONTENT) + 1, 1)), "bad-request")
    assert segments_root(CONTENT) == put.record.segments_root


def test_leaf_hashes_come_in_pages(ada: Person) -> None:
    reply = opened(ada)
    assert ada.ask(GetLeaves(reply.handle, 0)) == LeavesPage(reply.leaves)
    assert ada.ask(GetLeaves(reply.handle, 2)) == LeavesPage(reply.leaves[64:])
    assert ada.ask(GetLeaves(reply.handle, 3)) == LeavesPage(b"")
    refused(ada.ask(GetLeaves(reply.handle, 4)), "bad-request")


def logged(served: Daemon) -> list[tuple[str, int | None]]:
    entries = served.entries("download")
    return [(entry.actor, version) for entry in entries for _, version in entry.versions]


def test_a_download_is_logged_once_a_day_for_a_key_and_version(served: Daemon, ada: Person) -> None:
    first = opened(ada)
    (entry,) = served.entries("download")
    assert (entry.owner, entry.session) == ("ada", ada.who.session)
    assert entry.versions == ((F, 1),)
    assert entry.detail["key"] == signing_key_id(ada.device_key.public)
    assert opened(ada).handle != first.handle
    ada.who = ada.log_in()
    opened(ada)
    assert logged(served) == [("ada", 1)]
    ada.put(F, b"another version")
    opened(ada)
    opened(ada, version=1)
    assert logged(served) == [("ada", 1), ("ada", 2)]
    served.clock.now += DAY
    opened(ada)
    opened(ada)
    assert logged(served) == [("ada", 1), ("ada", 2), ("ada", 2)]


def test_a_download_is_logged_for_each_key(served: Daemon, ada: Person) -> None:
    other = Person("ada", served, key=ada.key)
    done(ada.ask(onto(ada.first, ada.key, devices=(ada.device(), other.device()))))
    other.who = other.log_in()
    for _ in range(2):
        opened(ada)
        opened(other)
    assert logged(served) == [("ada", 1)] * 2


def test_logged_downloads_survive_a_restart(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        ada = served.person("ada")
        ada.who = ada.log_in()
        ada.put(F, b"1")
        opened(ada)
        served.clock.now += DAY
        opened(ada)
        clock = served.clock
    with daemon(tmp_path, clock=clock) as again:
        ada.served = again
        ada.who = ada.log_in()
        opened(ada)
        assert logged(again) == [("ada", 1)] * 2
        ada.put(F, b"2")
        opened(ada)
        opened(ada)
        assert logged(again) == [("ada", 1), ("ada", 1), ("ada", 2)]
        clock.now += DAY
        opened(ada, version=1)
        assert logged(again)[3:] == [("ada", 1)]


def test_simultaneous_requests_log_one_download(served: Daemon, ada: Person) -> None:
    asked = [open_one("ada", F, 0)] * 40
    replies = served.ask_all(ada.who, asked)
    assert all(isinstance(reply, OpenedVersion) for reply in replies)
    assert logged(served) == [("ada", 1)]


def test_a_download_that_could_not_be_logged_is_logged_by_the_next_request(
    served: Daemon, ada: Person
) -> None:
    key = signing_key_id(ada.device_key.public)
    claim = served.context.downloads.claim(Downloads(key, "ada", ((F, 1),)))
    claim.acquire()  # as another request, whose group is then not written
    refused(ada.ask(open_one("ada", F, 0)), "busy")
    assert not logged(served)
    claim.release()
    opened(ada)
    assert logged(served) == [("ada", 1)]


def test_the_memory_of_logged_downloads_is_bounded(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logged_downloads, "KEPT", 2)
    ada.put(F, b"2")
    ada.put(F, b"3")
    for version in (1, 2, 1, 3, 1, 2):  # the least recently opened one is forgotten
        opened(ada, version=version)
    assert [version for _, version in logged(served)] == [1, 2, 3, 2]


def open_many(person: Person, *targets: tuple[str, int], owner: str = "ada") -> list[OpenResult]:
    reply = person.ask(Open(owner, tuple(OpenTarget(*one) for one in targets)))
    if isinstance(reply, OpenedVersion | Error):
        return [result_of(reply)]
    assert isinstance(reply, Opened), reply
    return list(reply.results)


def test_an_answer_shows_the_entry_of_its_downloads(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all leaves up to it, so that the client asks for nothing of the log, unless these would
    be too much beside the contents."""
    known = ada.who.known_size
    two = Open("ada", (OpenTarget(F, 0), OpenTarget(file_id(9), 0)))
    first, again = ada.ask(two), ada.ask(two)
    assert isinstance(first, Opened)
    assert isinstance(again, Opened)
    assert again.receipt is None
    seq = served.context.journal.size - 1
    assert first.receipt is not None
    assert first.receipt.line == served.context.journal.line(seq)
    assert first.receipt.first == known
    assert first.receipt.leaves == served.context.journal.leaves(known, 256, PIECE)
    assert checkpoint.read(first.receipt.checkpoint).size == seq + 1 == ada.who.known_size
    monkeypatch.setattr(downloads, "_RECEIPT_LEAVES", len(first.receipt.leaves) // 8)
    served.clock.now += DAY
    later = ada.ask(two)
    assert isinstance(later, Opened)
    assert later.receipt is not None
    assert (later.receipt.first, later.receipt.leaves) == (seq + 2, b"")


def outcomes(results: list[OpenResult]) -> list[bytes | str]:
    """Return the data of each version that was opened, the code of each error."""
    return [bytes(one.opened.data) if one.opened else one.error.code for one in results]  # type: ignore[union-attr]


def test_a_request_opens_many_versions_and_has_one_log_entry(served: Daemon, ada: Person) -> None:
    ada.put(F, b"second")
    small, gone, damaged = file_id(2), file_id(3), file_id(4)
    for one in (small, gone, damaged):
        ada.put(one, one.encode())
    ada.delete(gone)
    (served.context.store.users / "ada" / "files" / "00" / f"{damaged}.1.json").write_bytes(b"{")
    targets = [(small, 0), (file_id(9), 0), (F, 1), (gone, 0), (damaged, 1), (F, 0), (gone, 1)]
    found = open_many(ada, *targets)
    assert outcomes(found) == [
        small.encode(),
        "not-found",
        CONTENT[:HEAD],  # longer than 256 KiB: it is read by its handle
        "not-found",
        "damaged",
        b"second",
        gone.encode(),
    ]
    large = found[2].opened
    assert large is not None
    assert len(large.leaves) == 3 * 32
    assert ada.ask(Read(large.handle, PIECE, PIECE)) == Bytes(CONTENT[PIECE : 2 * PIECE])
    (entry,) = served.entries("download")
    assert (entry.file, entry.version, set(entry.accounts)) == (None, None, {"ada"})
    assert entry.versions == ((small, 1), (F, 1), (F, 2), (gone, 1))
    # Only what is new is logged.
    assert outcomes(open_many(ada, (small, 1), (small, 0))) == [small.encode()] * 2
    ada.put(small, b"newer")
    assert outcomes(open_many(ada, (small, 1), (small, 0))) == [small.encode(), b"newer"]
    assert [entry.versions for entry in served.entries("download")[1:]] == [((small, 2),)]


def test_an_answer_has_as_many_versions_as_fit(served: Daemon, ada: Person) -> None:
    sizes = [MAX_SMALL] * 5 + [10]
    for number, size in enumerate(sizes, 10):
        ada.put(file_id(number), bytes(size))
    targets = [(file_id(number), 0) for number in range(10, 10 + len(sizes))]
    found = open_many(ada, *targets)
    assert [len(one) for one in outcomes(found)] == [MAX_SMALL] * 3
    assert logged(served) == [("ada", 1)] * 3
    assert [len(one) for one in outcomes(open_many(ada, *targets[3:]))] == [MAX_SMALL] * 2 + [10]


def test_an_answer_keeps_no_more_bytes_of_sidecars_than_of_contents(
    served: Daemon, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader is shown their own wrap only, of a sidecar with those of all readers."""
    readers = [served.person(f"reader{number}") for number in range(6)]
    listed = tuple((one.name, one.first_hash, 0) for one in readers)
    wraps = (ada.wrap(), *(one.wrap() for one in readers))
    targets = [(file_id(number), 0) for number in range(20, 25)]
    for name, _ in targets:
        ada.put(name, b"c", readers=listed, wraps=wraps)
    path = served.context.store.users / "ada" / "files"
    size = max(one.stat().st_size for one in path.rglob(f"{targets[0][0]}.1.json"))
    monkeypatch.setattr(downloads, "ANSWER_BYTES", 5 * size // 2)
    assert outcomes(open_many(readers[0], *targets)) == [b"c"] * 2


@pytest.mark.parametrize("targets", [[], [(F, 1), (F, 0), (F, 1)]], ids=["none", "one twice"])
def test_a_request_names_each_version_once(ada: Person, targets: list[tuple[str, int]]) -> None:
    refused(ada.ask(Open("ada", tuple(OpenTarget(*one) for one in targets))), "bad-request")


def test_each_foreign_file_that_is_asked_for_counts_as_an_attempt(
    served: Daemon, ada: Person
) -> None:
    bob = served.person("bob")
    assert outcomes(open_many(bob, (F, 0), (F, 1), (file_id(8), 0))) == ["not-found"] * 3
    assert not served.entries("download")
    (due,) = served.context.refusals.due(all_of_them=True)
    assert due.detail["codes"] == {"not-found": 3}


def test_foreign_and_missing_files_give_the_same_error(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    asked = [
        open_one("ada", F, 0),
        open_one("ada", F, 1),
        open_one("ada", file_id(2), 0),
        open_one("bob", F, 0),
        open_one("nobody", F, 0),
    ]
    assert len({refused(bob.ask(message), "not-found") for message in asked}) == 1
    refused(ada.ask(open_one("ada", F, 2)), "not-found")
    handle = opened(ada).handle
    refused(bob.ask(Read(handle, 0, 1)), "changed")


def test_a_deleted_file_opens_only_by_version(ada: Person) -> None:
    ada.delete(F)
    refused(ada.ask(open_one("ada", F, 0)), "not-found")
    reply = opened(ada, version=1)
    assert reply.view.head is not None
    assert reply.view.head.record == ada.heads[F]


def test_access_is_checked_at_each_read(served: Daemon, ada: Person) -> None:
    bob = served.person("bob")
    until = int(served.clock.now) + DAY
    other = file_id(2)
    readers = (("bob", bob.first_hash, until),)
    ada.put(other, b"for a day", readers=readers, wraps=(ada.wrap(), bob.wrap()))
    reply = opened(bob, wanted=other)
    assert bob.ask(Read(reply.handle, 0, 100)) == Bytes(b"for a day")
    assert set(served.entries("download")[-1].accounts) == {"ada", "bob"}
    served.clock.now = until
    refused(bob.ask(Read(reply.handle, 0, 100)), "not-found")
    refused(bob.ask(GetLeaves(reply.handle, 0)), "not-found")


def test_a_handle_on_a_purged_content_gives_changed(ada: Person) -> None:
    ada.put(F, b"newer")
    reply = opened(ada, version=1)
    assert isinstance(ada.ask(Read(reply.handle, 0, 9)), Bytes)
    purge = ada.signed(ada.record(F, PURGE, purged=(1,)))
    done(ada.ask(ada.took(purge).change()))
    refused(ada.ask(Read(reply.handle, 0, 9)), "changed")
    refused(ada.ask(open_one("ada", F, 1)), "not-found")
    assert opened(ada).data == b"newer"


def test_a_session_has_more_handles_than_descriptors(served: Daemon, ada: Person) -> None:
    handles = [opened(ada).handle for _ in range(FILES + 3)]
    for _ in range(2):
        for handle in handles:
            assert ada.ask(Read(handle, 0, 4)) == Bytes(CONTENT[:4])
    session = served.context.read_handles.for_session(ada.who.session)
    oldest = session.get(handles[0])
    for _ in range(HANDLES - 1):
        session.add(oldest)
    refused(ada.ask(Read(handles[1], 0, 4)), "changed")
    assert ada.ask(Read(handles[0], 0, 4)) == Bytes(CONTENT[:4])


def test_a_closed_session_has_no_handles(served: Daemon, ada: Person) -> None:
    handle = opened(ada).handle
    served.dispatcher.close_session(ada.who)
    refused(ada.ask(Read(handle, 0, 1)), "shutting-down")


def test_a_disabled_user_cannot_download(served: Daemon, ada: Person) -> None:
    off = UserAccess("ada", disabled=True, reason="")
    assert isinstance(served.ask(served.operator(), off), Done)
    refused(ada.ask(open_one("ada", F, 0)), "denied")


def test_a_flipped_byte_in_a_sidecar_is_reported_as_damage(served: Daemon, ada: Person) -> None:
    path = served.context.store.users / "ada" / "files" / "00" / f"{F}.1.json"
    good = path.read_bytes()
    for position in range(0, len(good), 97):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        refused(ada.ask(open_one("ada", F, 0)), "damaged")
    path.write_bytes(good)
    opened(ada)


def test_missing_ciphertext_or_leaves_are_reported_as_damage(served: Daemon, ada: Person) -> None:
    (served.context.store.users / "ada" / "files" / "00" / f"{F}.1.ct").unlink()
    refused(ada.ask(open_one("ada", F, 0)), "damaged")


def test_a_read_during_reencryption_returns_old_or_new_bytes(tmp_path: Path) -> None:
    """Another session's change is published between the reads of the sidecar and the bytes."""
    files = HookedFiles()
    with daemon(tmp_path, files=files) as served:
        ada = served.person("ada")
        ada.put(F, b"old content")
        writer = ada.log_in()

        def published(change: Change) -> None:
            """Publish; do not wait for `on_published`, which needs a lock that the reader holds."""
            (path,) = (one.path for one in change.effects if one.path.endswith(".json"))
            before = served.context.store.stored_digest(path)
            served.context.committer.submit(change)
            until(lambda: served.context.store.stored_digest(path) != before)

        def race(message: Open | Read) -> Result:
            request = ada.took(ada.reencrypted(F, 1, b"new content")).small()
            [decided] = changesets.commit(served.context, writer, request).decide(
                [0], lambda _: None
            )
            assert isinstance(decided, Transaction)
            files.first = partial(published, decided.change)
            files.blob = f"{F}.1.ct"
            return ada.ask(message)

        handle = bytes(16)
        for _ in range(2):  # the second time the download is logged already
            reply = race(open_one("ada", F, 0))
            assert isinstance(reply, OpenedVersion)
            assert (bytes(reply.data), files.blob) == (b"new content", "")
            assert segments_root(bytes(reply.data)) == parsed(reply).segments_root
            handle = reply.handle
        refused(race(Read(handle, 0, 100)), "changed")
        assert files.blob == ""


def test_concurrent_reads_and_reencryptions(served: Daemon) -> None:
    bob = served.person("bob")
    bob.put(F, b"0" * 100)
    writer = bob.log_in()

    async def both(ciphertext: bytes) -> tuple[Reply, Reply]:
        asked = open_one("bob", F, 0)
        reencryption = bob.took(bob.reencrypted(F, 1, ciphertext)).small()
        return await asyncio.gather(
            served.dispatcher.handle(bob.who, asked), served.dispatcher.handle(writer, reencryption)
        )

    for turn in range(30):
        answer, changed = served.run(both(b"%02d" % turn * 50))
        done(alone(changed))
        reply = alone(answer)
        assert isinstance(reply, OpenedVersion), reply
        assert segments_root(bytes(reply.data)) == parsed(reply).segments_root


def parsed(reply: OpenedVersion) -> FileRecord:
    return FileRecord.parse(reply.view.content.record)
