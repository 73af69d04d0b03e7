"""An account's view of the log: against a model, and against logs that hide or invent entries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import merkle
from protocol.codec.values import changed
from protocol.log import auditlog, tags
from protocol.log.auditlog import EntryDraft
from protocol.records.records import (
    FileRecord,
    LeaveRecord,
    ReaderEntry,
    Statement,
    record_hash,
)
from sfsc.errors import BadReceipt, Fork, IntegrityError, PartialSet, Rollback
from sfsc.trust.followed_log import (
    LOG_START,
    FollowedLog,
    LoggedHead,
    LoggedVersion,
    LogPosition,
    VersionFacts,
    pack_contacts,
    pack_leaves,
    unpack_contacts,
    unpack_leaves,
)
from sfsc.trust.state import LoggedFile
from tests.vectors import protocol_examples as examples

SERVER = examples.SERVER_ID
KEYS = {"alice": b"a" * 32, "bob": b"b" * 32}
FIRST = examples.FIRST.encode()
FIRST_HASH = record_hash(FIRST)
BOB_FIRST = b"f" * 32
TIME = "2026-11-30T00:00:00.000Z"


@dataclass
class Log:
    """A log of two accounts; `counts` are the next counts, which a test may falsify."""

    lines: list[bytes] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"alice": 0, "bob": 0})
    prev: bytes = auditlog.GENESIS

    def append(
        self,
        op: str,
        *users: str,
        rec: bytes | None = None,
        more: Sequence[bytes] = (),
        untagged: bool = False,
        tag_keys: dict[str, bytes] = KEYS,
        **changed: Any,
    ) -> int:
        """Append an entry of these accounts, with `more` tags; return its seq."""
        owner = users[0] if users else None
        who = {"actor": owner or "operator", "owner": owner}
        draft = EntryDraft(op=op, rec=rec, **(who | changed))
        accounts = {user: self.counts[user] for user in users}
        own = [tags.account_tag(tag_keys[user], SERVER, user, n) for user, n in accounts.items()]
        line, self.prev = auditlog.encode(
            draft,
            seq=len(self.lines),
            time=TIME,
            salt=os.urandom(16),
            detail=draft.detail,
            accounts=accounts,
            tags=[*([] if untagged else own), *more],
            prev=self.prev,
        )
        self.lines.append(line)
        self.leaves.append(auditlog.leaf_data(line))
        for user in users:
            self.counts[user] += 1
        return len(self.lines) - 1

    def enrol(self, **changed: Any) -> int:
        tag = tags.identity_tag(SERVER, FIRST_HASH, 1)
        return self.append("enrol", "alice", rec=FIRST, more=[tag], **changed)

    def root(self, size: int | None = None) -> bytes:
        return merkle.root([merkle.leaf_hash(one) for one in self.leaves[:size]])

    def page(self, first: int, end: int | None = None) -> bytes:
        return b"".join(len(one).to_bytes(2) + one for one in self.leaves[first:end])


def follower(
    start: LogPosition = LOG_START,
    known: Callable[[str], LoggedHead | None] = lambda _file_id: None,
) -> FollowedLog:
    return FollowedLog(SERVER, "alice", FIRST_HASH, KEYS["alice"], start, heads_by(known))


def heads_by(
    known: Callable[[str], LoggedHead | None],
) -> Callable[[Sequence[str]], dict[str, LoggedHead]]:
    def known_heads(file_ids: Sequence[str]) -> dict[str, LoggedHead]:
        return {one: head for one in file_ids if (head := known(one)) is not None}

    return known_heads


def follow(log: Log, followed: FollowedLog, end: int | None = None) -> None:
    """Follow an honest server to `end`."""
    end = len(log.lines) if end is None else end
    followed.add_leaves(followed.size, log.page(followed.size, end))
    while wanted := followed.wanted_lines(2):
        followed.add_lines((seq, log.lines[seq]) for seq in wanted)
    followed.confirm(end, log.root(end))


def record(
    rev: int,
    prev: bytes,
    file_id: str = examples.FILE_ID,
    readers: tuple[ReaderEntry, ...] = (),
) -> bytes:
    """Return a record of a purge, which needs no content."""
    return FileRecord(
        server=SERVER,
        owner="alice",
        actor="alice",
        generation=1,
        file_id=file_id,
        rev=rev,
        op="purge",
        prev=prev,
        seen=(0, merkle.EMPTY_ROOT),
        created=1,
        readers=readers,
        current=rev,
        content=bytes(32),
        purged=(1,),
    ).encode()


def chain(count: int, file_id: str = examples.FILE_ID) -> list[bytes]:
    found, prev = list[bytes](), b""
    for rev in range(1, count + 1):
        found.append(record(rev, prev, file_id))
        prev = record_hash(found[-1])
    return found


def append_set(log: Log, places: Sequence[int], count: int, owner: str = "alice") -> None:
    """Append these entries of an atomic set of `count`, of which the first is the next entry."""
    first = len(log.lines)
    for place in places:
        at = len(log.lines)
        log.append("test", owner, in_set=(at - first if place < 0 else place, count))


def test_a_whole_set_is_followed() -> None:
    for end in range(2, 9):
        log, followed = Log(), follower()
        log.enrol()
        append_set(log, range(3), 3)
        log.append("login", "alice")
        append_set(log, range(2), 2)
        log.append("test", "bob", "alice", in_set=(1, 9))  # of a set of others: only our line shows
        if end in (2, 3, 6):
            with pytest.raises(PartialSet):
                follow(log, followed, end)
        else:
            follow(log, followed, end)


@pytest.mark.parametrize("what", ["interrupted", "begun late", "another set", "of others between"])
def test_a_part_of_a_set_is_refused(what: str) -> None:
    log = Log()
    log.enrol()
    if what == "begun late":
        log.append("test", "alice", in_set=(1, 2))
    else:
        log.append("test", "alice", in_set=(0, 3))
    if what == "of others between":
        log.append("test", "bob")
        log.append("test", "alice", in_set=(2, 3))
    elif what == "interrupted":
        log.append("login", "alice")
    elif what == "another set":
        log.append("test", "alice", in_set=(0, 2))
    log.append("test", "alice")
    with pytest.raises(PartialSet):
        follow(log, follower())


FILES = [f"{n:032x}" for n in range(3)]


@settings(max_examples=40, deadline=None)
@given(
    acts=st.lists(st.sampled_from([0, 1, 2, "login", "bob", "both", "system"]), max_size=40),
    stops=st.lists(st.integers(1, 41), max_size=4),
)
def test_knows_the_newest_record_of_each_file(acts: list[int | str], stops: list[int]) -> None:
    log, heads = Log(), [dict[str, tuple[int, bytes]]()]
    chains = {file_id: iter(chain(41, file_id)) for file_id in FILES}
    log.enrol()
    for act in acts:
        heads.append(dict(heads[-1]))
        if isinstance(act, int):
            body = next(chains[FILES[act]])
            log.append("purge", "alice", rec=body)
            heads[-1][FILES[act]] = (FileRecord.parse(body).rev, record_hash(body))
        elif act == "both":
            log.append("access", "bob", "alice")
        else:
            log.append("login", *{"login": ["alice"], "bob": ["bob"]}.get(act, []))
    saved: dict[str, LoggedHead] = {}
    position, note = LOG_START, b"note"
    for stop in [*sorted(stops), len(log.lines)]:
        end = min(stop, len(log.lines))
        followed = follower(position, saved.get)
        begun = followed.size
        follow(log, followed, end)
        for at in range(begun, end + 1):
            for file_id in FILES:
                known = heads[max(0, at - 1)].get(file_id)
                assert followed.head_at(file_id, at) == known
        position = LogPosition.unpack(followed.position(note).pack())
        saved |= {
            file_id: LoggedHead.unpack(head.pack())
            for file_id, head in followed.take_changes().heads.items()
        }
    assert (position.size, position.count) == (len(log.lines), log.counts["alice"])
    assert position.note == note


def test_finds_statements_of_contacts() -> None:
    log = Log()
    log.enrol()
    for n in (1, 2):
        log.append("statement", "bob", more=[tags.identity_tag(SERVER, BOB_FIRST, n)])
    followed = follower()
    followed.watch_contact(BOB_FIRST, 0)
    follow(log, followed)
    assert followed.statement_count(BOB_FIRST) == 2
    found = followed.statement_leaves(BOB_FIRST)
    assert {n: leaf.seq for n, leaf in found.items()} == {1: 1, 2: 2}
    assert [(one.n, one.leaf.seq) for one in followed.take_changes().statements] == [
        (1, 0),
        (1, 1),
        (2, 2),
    ]
    contacts = {BOB_FIRST: 2, FIRST_HASH: 1}
    assert unpack_contacts(pack_contacts(contacts)) == contacts


def hidden(log: Log) -> None:
    log.append("purge", "alice", rec=chain(1)[0], untagged=True)
    log.counts["alice"] -= 1


def twice(log: Log) -> None:
    log.append("login", "alice")
    log.counts["alice"] -= 1
    log.append("login", "alice")


def ahead(log: Log) -> None:
    log.counts["alice"] += 1
    log.append("login", "alice")


def too_low(log: Log) -> None:
    log.counts["alice"] = 0
    log.append("login", "alice")


def untagged_statement(log: Log) -> None:
    log.append("statement", "alice", rec=FIRST)


def statement_twice(log: Log) -> None:
    tag = tags.identity_tag(SERVER, FIRST_HASH, 1)
    log.append("statement", "alice", rec=FIRST, more=[tag])


def foreign_statement(log: Log) -> None:
    log.append("statement", "bob", more=[tags.identity_tag(SERVER, FIRST_HASH, 2)])


def skipped_record(log: Log) -> None:
    first, _, third = chain(3)
    log.append("purge", "alice", rec=first)
    log.append("purge", "alice", rec=third)


def other_record(log: Log) -> None:
    first = chain(1)[0]
    log.append("purge", "alice", rec=first)
    log.append("purge", "alice", rec=record(2, b"x" * 32))


def leave(log: Log, of: bytes, sigs: Mapping[str, bytes] | None = None, **changes: Any) -> None:
    """Append an entry by which bob leaves the file of alice, whose last record is `of`."""
    fields = {"owner": "alice", "file_id": examples.FILE_ID, "user": "bob"} | changes
    body = LeaveRecord(
        server=SERVER, first=bytes(32), generation=1, record=record_hash(of), created=1, **fields
    ).encode()
    entry: dict[str, Any] = {"actor": "bob", "owner": "alice", "file": examples.FILE_ID}
    sigs = {"00" * 32: b"s" * 64} if sigs is None else sigs
    log.append("leave", "alice", rec=body, sigs=sigs, **entry)


def leave_before(log: Log) -> None:
    first, second = chain(2)
    log.append("purge", "alice", rec=first)
    log.append("purge", "alice", rec=second)
    leave(log, first)


def leave_of_nothing(log: Log) -> None:
    leave(log, chain(1)[0])


def leave_of_another(log: Log) -> None:
    (first,) = chain(1)
    log.append("purge", "alice", rec=first)
    leave(log, first, user="carol")


def leave_unsigned(log: Log) -> None:
    (first,) = chain(1)
    log.append("purge", "alice", rec=first)
    leave(log, first, sigs={})


def leave_signed_shortly(log: Log) -> None:
    (first,) = chain(1)
    log.append("purge", "alice", rec=first)
    leave(log, first, sigs={"00" * 32: b"s" * 63})


def malformed_record(log: Log) -> None:
    log.append("purge", "alice", rec=b"\x80")


def false_count(log: Log) -> None:
    """The tag is right, and the line counts otherwise."""
    tag = tags.account_tag(KEYS["alice"], SERVER, "alice", log.counts["alice"])
    log.counts["alice"] += 5
    log.append("login", "alice", untagged=True, more=[tag])


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (twice, Fork),
        (ahead, BadReceipt),
        (too_low, Fork),
        (untagged_statement, BadReceipt),
        (statement_twice, Fork),
        (foreign_statement, BadReceipt),
        (skipped_record, BadReceipt),
        (other_record, BadReceipt),
        (malformed_record, BadReceipt),
        (leave_before, BadReceipt),
        (leave_of_nothing, BadReceipt),
        (leave_of_another, BadReceipt),
        (leave_unsigned, BadReceipt),
        (leave_signed_shortly, BadReceipt),
        (false_count, BadReceipt),
    ],
)
def test_false_logs_are_refused(lie: Callable[[Log], None], error: type[IntegrityError]) -> None:
    log = Log()
    log.enrol()
    lie(log)
    with pytest.raises(error):
        follow(log, follower())


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("whose", [FIRST_HASH, BOB_FIRST], ids=["own", "of a contact"])
def test_a_statement_that_is_logged_again_in_a_later_session_is_refused(
    whose: bytes, n: int
) -> None:
    log = Log()
    log.enrol()
    start = LogPosition(1, 1, 20, 1, (merkle.leaf_hash(log.leaves[0]),), b"note")
    followed = follower(start)
    followed.watch_contact(BOB_FIRST, 20)
    log.append("statement", "bob", more=[tags.identity_tag(SERVER, whose, n)])
    with pytest.raises(Fork):
        follow(log, followed)


def test_an_account_with_the_same_tag_key_is_another_account() -> None:
    """Its user has enrolled it with our tag key."""
    log = Log()
    log.enrol()
    for _ in range(3):
        log.append("login", "bob", tag_keys={"bob": KEYS["alice"]})
    log.append("login", "alice")
    followed = follower()
    follow(log, followed)
    assert (followed.count, log.counts) == (2, {"alice": 2, "bob": 3})


def test_entries_under_another_tag_key_are_not_ours() -> None:
    """The server tags our entries by another key than the one that we have enrolled with."""
    log = Log()
    log.append("enrol", "alice", rec=FIRST, tag_keys={"alice": KEYS["bob"]})
    followed = follower()
    follow(log, followed)
    assert (followed.count, followed.statements) == (0, {})


def test_an_entry_without_our_tag_is_not_ours() -> None:
    """The author of the entry refuses it; every other machine does not count it."""
    log = Log()
    log.enrol()
    hidden(log)
    followed = follower()
    follow(log, followed)
    assert (followed.count, followed.head_at(examples.FILE_ID, 2)) == (1, None)


def test_lines_must_be_those_of_the_leaves() -> None:
    log, other = Log(), Log()
    log.enrol()
    other.enrol()
    followed = follower()
    followed.add_leaves(0, log.page(0))
    with pytest.raises(BadReceipt):
        followed.add_lines([(0, other.lines[0])])


def test_every_own_line_must_be_shown() -> None:
    log = Log()
    log.enrol()
    log.append("login", "alice")
    followed = follower()
    followed.add_leaves(0, log.page(0))
    followed.add_lines([(0, log.lines[0])])
    followed.confirm(1, log.root(1))
    with pytest.raises(BadReceipt):
        followed.confirm(2, log.root(2))
    followed.add_lines([(1, log.lines[1])])
    followed.confirm(2, log.root(2))
    assert list(followed.take_entries()) == [0, 1]


def test_a_line_may_come_before_its_leaf() -> None:
    log = Log()
    log.enrol()
    followed = follower()
    followed.add_lines([(0, log.lines[0])])
    followed.add_leaves(0, log.page(0))
    followed.confirm(1, log.root())
    assert followed.statements == {1: FIRST}


def test_a_wrong_root_at_a_middle_checkpoint_is_refused() -> None:
    log = Log()
    log.enrol()
    log.append("login", "alice")
    followed = follower()
    follow(log, followed)
    with pytest.raises(Fork):
        followed.confirm(1, bytes(32))


def test_what_another_process_saved_later_is_not_taken_for_the_past() -> None:
    log, records = Log(), chain(3)
    log.enrol()
    seqs = [log.append("purge", "alice", rec=body) for body in records]
    heads = [LoggedHead(n, record_hash(records[n - 1]), seqs[n - 1], 0, b"") for n in (1, 2, 3)]
    early = follower()
    follow(log, early, seqs[1])
    start = early.position(b"")
    # Another process has followed to the end since this one began.
    followed = follower(start, lambda _file_id: heads[2])
    with pytest.raises(Rollback):
        followed.head_at(examples.FILE_ID, start.size)
    leave(log, records[2])
    followed = follower(start, lambda _file_id: heads[2])
    follow(log, followed)
    assert followed.head_at(examples.FILE_ID, start.size) == (1, heads[0].hash)
    assert followed.head_at(examples.FILE_ID, followed.size) == (3, heads[2].hash)


def test_readers_who_have_left_stay_known_until_they_are_added_again() -> None:
    """Also across sessions, and if the log was followed before by another process."""
    readers = (("bob", bytes(32), 0), ("carol", bytes(32), 0))
    first = record(1, b"", readers=readers)
    second = record(2, record_hash(first), readers=readers)
    third = record(3, record_hash(second), readers=readers[1:])
    log = Log()
    log.enrol()
    log.append("purge", "alice", rec=first)
    leave(log, first)
    log.append("purge", "alice", rec=second)
    followed = follower()
    follow(log, followed)
    assert list(followed.left_readers(examples.FILE_ID)) == ["bob"]
    changes = followed.take_changes()
    assert changes.left is not None
    assert followed.take_changes().left is None
    saved = unpack_leaves(pack_leaves(changes.left))
    assert saved == changes.left
    assert [one.signature for one in saved] == [b"s" * 64]
    start = followed.position(b"")
    log.append("purge", "alice", rec=third)
    known = heads_by(changes.heads.get)
    again = FollowedLog(SERVER, "alice", FIRST_HASH, KEYS["alice"], start, known, saved)
    assert list(again.left_readers(examples.FILE_ID)) == ["bob"]
    follow(log, again)
    assert again.left_readers(examples.FILE_ID) == {"bob": changed(saved[0], dropped=True)}
    kept = again.take_changes().left
    assert kept is not None
    assert unpack_leaves(pack_leaves(kept)) == kept == (changed(saved[0], dropped=True),)
    log.append("purge", "alice", rec=record(4, record_hash(third), readers=readers))
    follow(log, again)
    assert again.left_readers(examples.FILE_ID) == {}
    assert again.take_changes().left == ()


def test_a_leave_record_after_a_record_that_another_process_saved_is_taken() -> None:
    log, (first,) = Log(), chain(1)
    log.enrol()
    start = follower()
    follow(log, start)
    begun = start.position(b"")
    second = record(2, record_hash(first))
    # The file's records up to the second are saved by a process that has followed farther.
    saved = LoggedHead(2, record_hash(second), 2, 0, b"")
    log.append("login", "alice")
    leave(log, first)
    followed = follower(begun, lambda _file_id: saved)
    follow(log, followed)
    assert list(followed.left_readers(examples.FILE_ID)) == ["bob"]


def test_a_leave_record_of_ours_is_known_by_its_hash() -> None:
    log, theirs = Log(), chain(1)[0]
    log.enrol()
    body = LeaveRecord(
        server=SERVER,
        user="alice",
        first=FIRST_HASH,
        generation=1,
        owner="bob",
        file_id=examples.FILE_ID,
        record=record_hash(theirs),
        created=1,
    ).encode()
    log.append("leave", "alice", rec=body, owner="bob", file=examples.FILE_ID)
    followed = follower()
    follow(log, followed)
    assert followed.has_left(record_hash(body))
    assert not followed.has_left(record_hash(theirs))
    assert followed.left_readers(examples.FILE_ID) == {}


def statement(n: int, generation: int) -> bytes:
    """Return the statement that follows `n - 1` others and names keys of this generation."""
    first = Statement.parse(FIRST)
    return changed(
        first, n=n, prev=bytes(32), generation=generation, oldest=1, reason="rotate"
    ).encode()


def append_statement(log: Log, n: int, generation: int) -> None:
    tag = tags.identity_tag(SERVER, FIRST_HASH, n)
    body = statement(n, generation)
    log.append("rotate-begin", "alice", rec=body, more=[tag])


@pytest.mark.parametrize("resumed", [False, True])
def test_a_record_of_keys_that_were_not_in_force_is_refused(*, resumed: bool) -> None:
    """A thief with older keys, or with newer ones that nobody has announced, can sign records, but
    none that counts after the rotation has begun."""
    log = Log()
    log.enrol()
    own = record(1, b"")
    log.append("purge", "alice", rec=own)
    append_statement(log, 2, 2)
    renewed = changed(FileRecord.parse(record(2, record_hash(own))), generation=2).encode()
    log.append("purge", "alice", rec=renewed)
    followed, size = follower(), len(log.lines)
    follow(log, followed)
    head = followed.take_changes().heads[examples.FILE_ID]
    position = LogPosition.unpack(followed.position(b"").pack())
    for generation in (1, 3):
        forged = FileRecord.parse(record(3, record_hash(renewed)))
        log.append("purge", "alice", rec=changed(forged, generation=generation).encode())
        again = follower(position, lambda _file_id: head) if resumed else follower()
        with pytest.raises(BadReceipt, match=f"generation {generation}, and generation 2"):
            follow(log, again)
        del log.lines[size:], log.leaves[size:]
        log.prev, log.counts["alice"] = auditlog.parse(log.lines[-1], seq=size - 1).hash, size


def content(op: str, version: int, prev: bytes, rev: int, current: int) -> bytes:
    """Return a record of `op`, which makes the content of a version of alice's file."""
    made = FileRecord.parse(record(rev, prev))
    return changed(
        made,
        op=op,
        created=10 * rev,
        purged=None,
        version=version,
        current=current,
        content=b"" if current in (0, version) else bytes(32),
        content_id=bytes(16),
        ciphertext_size=0,
        segments_root=merkle.EMPTY_ROOT,
        dek_commit=bytes(32),
        metadata_sha256=bytes(32),
    ).encode()


@pytest.mark.parametrize("ahead", [0, *range(2, 9)])
@pytest.mark.parametrize("stop", range(1, 10))
def test_knows_the_records_of_each_version(stop: int, ahead: int) -> None:
    """However the log is read: at once, in two sessions, or while another process of this machine
    has read up to the record `ahead`."""
    log, bodies = Log(), list[bytes]()
    log.enrol()
    steps = [("put", 1), ("purge", 0), ("put", 2), ("reencrypt", 1), ("purge", 0)]
    steps += [("reencrypt", 2), ("purge", 0), ("put", 3), ("purge", 0)]
    for rev, (op, version) in enumerate(steps, 1):
        prev = record_hash(bodies[-1]) if bodies else b""
        if version:
            current = max(number for _, number in steps[:rev])
            bodies.append(content(op, version, prev, rev, current))
        else:
            bodies.append(record(rev, prev))
        log.append("upload", "alice", rec=bodies[-1])
    hashes = [record_hash(one) for one in bodies]
    heads, versions = dict[str, LoggedHead](), dict[tuple[str, int], LoggedVersion]()

    def save(followed: FollowedLog) -> None:
        """As `ClientState.save_followed`."""
        changes = followed.take_changes()
        for file_id, head in changes.heads.items():
            if file_id not in heads or heads[file_id].rev < head.rev:
                heads[file_id] = head
        for place, version in changes.versions.items():
            versions[place] = version.with_times_of(versions.get(place))

    first = follower(known=heads.get)
    follow(log, first, stop)
    save(first)
    second = follower(first.position(b""), heads.get)
    if ahead > stop:
        other = follower(first.position(b""), dict(heads).get)
        follow(log, other, 1 + ahead)
        save(other)
    follow(log, second)
    save(second)
    head = heads[examples.FILE_ID]
    assert (head.rev, head.version, head.content, head.hash) == (9, 3, hashes[7], hashes[8])
    assert head.facts == VersionFacts(80, generation=1)
    assert versions == {
        (examples.FILE_ID, 1): LoggedVersion(hashes[3], b"", VersionFacts(10, generation=1)),
        (examples.FILE_ID, 2): LoggedVersion(hashes[5], hashes[6], VersionFacts(30, generation=1)),
    }


def test_knows_when_versions_ended_and_which_were_removed() -> None:
    log, bodies = Log(), list[bytes]()
    log.enrol()

    def append(op: str, **fields: Any) -> None:
        prev = record_hash(bodies[-1]) if bodies else b""
        rev = len(bodies) + 1
        made = FileRecord.parse(record(rev, prev))
        if op == "put":
            made = FileRecord.parse(content(op, fields["current"], prev, rev, fields["current"]))
        new: dict[str, Any] = {"op": op, "created": 10 * rev, "purged": None, "content": b""}
        bodies.append(changed(made, **(new | fields)).encode())
        log.append("upload", "alice", rec=bodies[-1])

    append("put", current=1, ciphertext_size=56, content_id=b"a" * 16)
    append("delete", current=0)
    append("purge", current=0, purged=(1,))
    append("put", current=2, ciphertext_size=57)
    append("put", current=3)
    append("delete", current=0, to="f" * 32)
    for detail in ({"purged": [2, "3", True, -1, 2**31 + 1]}, {"purged": 3}, {"why": "expired"}):
        log.append("retention", "alice", file=examples.FILE_ID, detail=detail)
    followed = follower()
    follow(log, followed)
    changes = followed.take_changes()
    file = LoggedFile(
        changes.heads[examples.FILE_ID],
        {number: one.facts for (_, number), one in changes.versions.items()},
        frozenset(number for _, number in changes.removed),
    )
    assert file.versions == {
        1: VersionFacts(10, 20, 56, b"a" * 16, 1),
        2: VersionFacts(40, 0, 57, generation=1),
        3: VersionFacts(50, 60, generation=1, moved=True),
    }
    assert (file.kept, file.deleted) == ([3], True)
    times = {9: 0, 10: 1, 19: 1, 20: 0, 39: 0, 40: 2, 50: 3, 59: 3, 60: 0}
    assert {when: file.version_at(when) for when in times} == times
