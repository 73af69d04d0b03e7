"""Keeps what one account knows of the server's log, without I/O: which entries are its own, the
newest record of each of its files, the one that made each version last, and the readers who have
left it, its identity statements and those of its contacts.

`sfsc.session.follow` asks the server for what this needs: leaf data up to a signed checkpoint, then
the lines of the account's own entries. Nothing counts before `confirm` has returned, and what it
changed is then saved by one transaction (`take_changes`).
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from types import MappingProxyType
from typing import Final

from protocol.codec import merkle
from protocol.codec.errors import EncodingError, LogError, MessageError
from protocol.codec.values import Mutable, Value, changed
from protocol.log import auditlog, tags
from protocol.log.auditlog import IDENTITY_OPS, LEAVE, LOST, RETENTION, LogEntry
from protocol.records.records import (
    CONTENT_OPS,
    DELETE,
    MAX_VERSION,
    FileRecord,
    LeaveRecord,
    Statement,
    record_hash,
)
from sfsc.errors import BadReceipt, PartialSet, Rollback
from sfsc.trust.follower import REPORT, FoundLeaf, LogFollower, TagSequence

RECORD_OPS: Final = frozenset(
    {"upload", "delete", "restore", "move", "reencrypt", "purge", "access"}
)
"""Ops of entries whose `rec` is a file record of their owner."""
_LOGINS: Final = frozenset({"enrol", "login"})
_DEVICE_ID: Final = re.compile("[0-9a-f]{32}")
_OWN_NEAR: Final = 64
_IDENTITY_NEAR: Final = 4
_POSITION: Final = struct.Struct(">QQIIH")
_HEAD: Final = struct.Struct(">QQ32sI32s")
_FACTS: Final = struct.Struct(">QQQ16sI?")
_CONTACT: Final = struct.Struct(">32sI")
_LEAVE: Final = struct.Struct(">H64s?")


class LogPosition(Value):
    """How far the log was followed: `size` entries with the frontier `peaks`, of which `count` are
    the account's and hold `statements` of its identity statements; the newest of these is of key
    `generation` (0: none). `note` is the signed checkpoint.
    """

    size: int
    count: int
    statements: int
    generation: int
    peaks: tuple[bytes, ...]
    note: bytes

    def pack(self) -> bytes:
        """Encode for the state."""
        head = _POSITION.pack(
            self.size, self.count, self.statements, self.generation, len(self.peaks)
        )
        return head + b"".join(self.peaks) + self.note

    @classmethod
    def unpack(cls, packed: bytes) -> LogPosition:
        """Decode the output of `pack`, which only a holder of the keyring's key could store."""
        size, count, statements, generation, peaks = _POSITION.unpack_from(packed)
        at, end = _POSITION.size, _POSITION.size + 32 * peaks
        hashes = tuple(packed[place : place + 32] for place in range(at, end, 32))
        return cls(size, count, statements, generation, hashes, packed[end:])

    @property
    def root(self) -> bytes:
        """The root of the tree of the first `size` entries, 32 bytes."""
        return merkle.Frontier(self.size, self.peaks).root()


LOG_START: Final = LogPosition(0, 0, 0, 0, (), b"")
"""Position before the first entry."""


class VersionFacts(Value):
    """Facts of a version of ours, by its signed records. `created` is when it was stored, `ended`
    when the file was deleted or renamed while this was its newest version (0: it was not), in unix
    seconds by the signer's clock; `moved` tells whether it was renamed. `size` is the bytes of its
    ciphertext, `content_id` (16 bytes) names its content, which versions may share, and
    `generation` is that of the keys that signed its record.
    """

    created: int = 0
    ended: int = 0
    size: int = 0
    content_id: bytes = bytes(16)
    generation: int = 0
    moved: bool = False

    def pack(self) -> bytes:
        """Encode for the state."""
        times = self.created, self.ended
        return _FACTS.pack(*times, self.size, self.content_id, self.generation, self.moved)

    @classmethod
    def unpack(cls, packed: bytes) -> VersionFacts:
        """Decode the output of `pack`."""
        return cls(*_FACTS.unpack(packed))

    def with_times_of(self, before: VersionFacts) -> VersionFacts:
        """Return these facts with the times of `before`: the content was encrypted again."""
        return changed(self, created=before.created, ended=before.ended, moved=before.moved)


NO_FACTS: Final = VersionFacts()
"""Facts of a version of which only another process of this machine knows more."""


class LoggedHead(Value):
    """The newest record of a file of ours in the log: its `rev`, its hash (32 bytes), and the
    entry that logged it. `version` is the file's newest version, `content` the hash of the
    record that made it last (32 bytes), and `facts` are its facts; 0, b"" and `NO_FACTS` if only
    another process knows that.
    """

    rev: int
    hash: bytes
    seq: int
    version: int
    content: bytes
    facts: VersionFacts = NO_FACTS

    def pack(self) -> bytes:
        """Encode for the state."""
        head = _HEAD.pack(self.rev, self.seq, self.hash, self.version, self.content)
        return head + self.facts.pack()

    @classmethod
    def unpack(cls, packed: bytes) -> LoggedHead:
        """Decode the output of `pack`."""
        rev, seq, digest, version, content = _HEAD.unpack_from(packed)
        facts = VersionFacts.unpack(packed[_HEAD.size :])
        return cls(rev, digest, seq, version, content, facts)


class LoggedVersion(Value):
    """The hashes (32 bytes) of the record that made a version last, `content`, and of the file's
    `last` record while that version was its newest; b"" if the content was encrypted again since,
    because then no other record is stored beside it. If `facts` have a `created` of 0, the times
    are those that were known before."""

    content: bytes
    last: bytes
    facts: VersionFacts = NO_FACTS

    def pack(self) -> bytes:
        """Encode for the state."""
        return self.facts.pack() + self.content + self.last

    @classmethod
    def unpack(cls, packed: bytes) -> LoggedVersion:
        """Decode the output of `pack`."""
        facts, hashes = VersionFacts.unpack(packed[: _FACTS.size]), packed[_FACTS.size :]
        return cls(hashes[:32], hashes[32:], facts)

    def with_times_of(self, before: LoggedVersion | None) -> LoggedVersion:
        """Return this version with the times that are known of it from `before`, unless it has
        some."""
        if before is None or self.facts.created:
            return self
        return changed(self, facts=self.facts.with_times_of(before.facts))


class StatementLeaf(Value):
    """The entry that logged statement `n` of the user whose first statement has this hash."""

    first: bytes
    n: int
    leaf: FoundLeaf


class SignedLeave(Value):
    """A leave record as logged: `body` is its exact bytes. The server, which has logged it, says
    that the `signature` (64 bytes) is by the reader. `dropped` tells whether a later record of the
    file no longer names the reader."""

    body: bytes
    signature: bytes
    dropped: bool = False


class _History(Mutable):
    """Records of one file that were followed in this session, oldest first, and the head before.
    `ahead` is a later head that another process of this machine has saved, until it is reached."""

    before: LoggedHead | None
    heads: list[LoggedHead]
    ahead: LoggedHead | None


class LogChanges(Value):
    """Changes in a stretch of the log: the newest head of each file in it, by file_id; the records
    of versions that are not their file's newest, by (file_id, version); and the statements of
    contacts. `left` holds all leave records whose readers were not added again; it is None if these
    have not changed. `removed` are the versions (file_id, version) whose content was removed.
    `logins` are the times (unix seconds) of the devices' last logins, by device_id in hex."""

    heads: dict[str, LoggedHead]
    versions: dict[tuple[str, int], LoggedVersion]
    statements: list[StatementLeaf]
    left: tuple[SignedLeave, ...] | None = None
    removed: frozenset[tuple[str, int]] = frozenset()
    logins: Mapping[str, int] = MappingProxyType({})


class FollowedLog:
    """The followed log of one account over one connection. A method that raises leaves it unusable:
    the connection ends, and the next one continues from what was saved."""

    def __init__(
        self,
        server_id: bytes,
        user: str,
        first: bytes,
        tag_key: bytes,
        start: LogPosition = LOG_START,
        known_heads: Callable[[Sequence[str]], Mapping[str, LoggedHead]] = lambda _file_ids: {},
        left: Iterable[SignedLeave] = (),
    ) -> None:
        """`first` is the hash of the account's first statement. `known_heads` returns what was
        saved of files, perhaps by a process that has followed farther than `start`; `left` is what
        was saved of readers who have left."""
        self.start = start
        self.first = first
        self._server_id = server_id
        self._user = user
        self._known_heads = known_heads
        self._read_heads: dict[str, LoggedHead | None] = {}
        self._follower = LogFollower(start.size, start.peaks)
        self._own = TagSequence(
            f"the account {user}",
            lambda count: tags.account_tag(tag_key, server_id, user, count),
            start.count,
            _OWN_NEAR,
        )
        self._follower.watch(self._own)
        self._identities: dict[bytes, TagSequence] = {}
        self._watch_identity(first, start.statements)
        self._generation = start.generation
        self._without_line: deque[FoundLeaf] = deque()
        self._shown: dict[int, LogEntry] = {}
        self._parsed: dict[bytes, FileRecord] = {}
        self._histories: dict[str, _History] = {}
        self.statements: dict[int, bytes] = {}
        """Own identity statements that were followed in this session, exact bytes by number."""
        self._statement_leaves: dict[bytes, dict[int, FoundLeaf]] = {}
        self._newest_seen: tuple[FileRecord, bytes] | None = None
        self._left: dict[str, dict[str, SignedLeave]] = {}
        for one in left:
            leave = LeaveRecord.parse(one.body)
            self._left.setdefault(leave.file_id, {})[leave.user] = one
        self._left_changed = False
        self._own_leaves: set[bytes] = set()
        self._unsaved_heads: dict[str, LoggedHead] = {}
        self._unsaved_versions: dict[tuple[str, int], LoggedVersion] = {}
        self._unsaved_statements: list[StatementLeaf] = []
        self._unsaved_removed: set[tuple[str, int]] = set()
        self._unsaved_logins: dict[str, int] = {}
        self._entries: dict[int, LogEntry] = {}
        self._open_set: tuple[int, int] | None = None  # an atomic set whose last entry is missing
        self._following = 0  # the entry of the set that must come next

    @property
    def size(self) -> int:
        """The number of entries whose leaves were read."""
        return self._follower.size

    @property
    def count(self) -> int:
        """The number of own entries among them."""
        return self._own.following

    # --- contacts

    def watch_contact(self, first: bytes, n: int) -> None:
        """Find the statements of a contact from the next leaf on: those after number `n`, which is
        the last one before. `first` is the hash of the contact's first statement."""
        if first not in self._identities:
            self._watch_identity(first, n)

    def watches(self, first: bytes) -> bool:
        """Return whether all statements of this user since `watch_contact` are known."""
        return first in self._identities

    def statement_count(self, first: bytes) -> int:
        """Return the number of the last statement in the log of a watched user."""
        return self._identities[first].following - 1

    def statement_leaves(self, first: bytes) -> dict[int, FoundLeaf]:
        """Return the entries of a user's statements that were followed in this session, by
        number."""
        return self._statement_leaves.get(first, {})

    def identity_sequence(self, first: bytes, n: int = 0) -> TagSequence:
        """Return the tags of a user's statements after number `n`."""
        return TagSequence(
            "a user's identity",
            lambda number: tags.identity_tag(self._server_id, first, number),
            n + 1,
            _IDENTITY_NEAR,
            first=1,  # a user has few statements; each may be logged once
        )

    def watch_found(self, first: bytes, sequence: TagSequence) -> None:
        """Watch a contact whose statements were searched for in the first `size` entries."""
        self._identities[first] = sequence
        self._follower.watch(sequence)
        self._take_statements(first, sequence)

    def contacts(self) -> dict[bytes, int]:
        """Return {hash of the first statement: number of the last statement} of all contacts."""
        return {
            first: sequence.following - 1
            for first, sequence in self._identities.items()
            if first != self.first
        }

    def _watch_identity(self, first: bytes, n: int) -> None:
        self.watch_found(first, self.identity_sequence(first, n))

    def _take_statements(self, first: bytes, sequence: TagSequence) -> None:
        for leaf in sequence.found:
            self._statement_leaves.setdefault(first, {})[leaf.number] = leaf
            self._unsaved_statements.append(StatementLeaf(first, leaf.number, leaf))
        sequence.found.clear()

    # --- reading

    def add_leaves(self, first: int, page: bytes | memoryview) -> None:
        """Read leaf data from entry `first` on. Raises as `LogFollower.feed`."""
        self._follower.feed(first, page)
        self._without_line.extend(self._own.found)
        self._own.found.clear()
        for whose, sequence in self._identities.items():
            self._take_statements(whose, sequence)
        self._use_lines()

    def wanted_lines(self, limit: int) -> list[int]:
        """Return the seqs of at most `limit` own entries whose line is missing, in order."""
        missing = (leaf.seq for leaf in self._without_line if leaf.seq not in self._shown)
        return list(islice(missing, limit))

    def add_lines(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Take lines of own entries, as (seq, line without newline), in any order. A line may come
        before its leaf. Raises `BadReceipt` for a line that is not the entry of its leaf."""
        for seq, line in lines:
            self._shown[seq] = parse_line(line, seq)
        self._use_lines()

    def add_entries(
        self, entries: Iterable[LogEntry], records: Mapping[bytes, FileRecord] | None = None
    ) -> None:
        """Take the entries of parsed lines; as `add_lines`. `records` are records of theirs that
        the caller has built or parsed, by their exact bytes."""
        self._parsed.update(records or {})
        wanted = {leaf.seq for leaf in self._without_line}
        for entry in entries:
            if entry.seq >= self.size or entry.seq in wanted:
                self._shown[entry.seq] = entry
        self._use_lines()

    def known_heads(self, file_ids: Sequence[str]) -> Mapping[str, LoggedHead]:
        """Return what was saved of files, as `known_head`. Records of these files that are logged
        soon build on it, so it is not read again for them."""
        saved = self._known_heads(file_ids)
        new = (one for one in file_ids if one not in self._histories)
        self._read_heads |= {one: saved.get(one) for one in new}
        return saved

    def known_head(self, file_id: str) -> LoggedHead | None:
        """Return what was saved of a file, perhaps by another process of this machine."""
        return self._known_heads((file_id,)).get(file_id)

    def _use_lines(self) -> None:
        if files := self._files_ahead():
            self.known_heads(files)
        while self._without_line and (leaf := self._without_line[0]).seq in self._shown:
            entry = self._shown.pop(leaf.seq)
            self._without_line.popleft()
            self._check_own(entry, leaf)
            self._check_set(entry)
            self._entries[leaf.seq] = entry
            try:
                self._learn(entry)
            except (EncodingError, MessageError) as exc:
                cause = f"entry {leaf.seq} of the log holds a malformed record"
                raise BadReceipt(cause, REPORT) from exc
        if not self._shown:
            self._parsed.clear()

    def _files_ahead(self) -> list[str]:
        """Return the files of the next entries whose lines are there, if nothing of the file was
        read before."""
        found: dict[str, None] = {}
        for leaf in self._without_line:
            entry = self._shown.get(leaf.seq)
            if entry is None:
                break
            if entry.rec is not None and entry.file is not None:
                found[entry.file] = None
        return [one for one in found if not (one in self._histories or one in self._read_heads)]

    def _check_own(self, entry: LogEntry, leaf: FoundLeaf) -> None:
        if entry.leaf_data != leaf.data:
            raise BadReceipt(f"the log has another entry {leaf.seq} than the server shows", REPORT)
        if entry.accounts.get(self._user) != leaf.number:
            raise BadReceipt(
                f"entry {leaf.seq} of the log does not count as number {leaf.number} of this"
                " account",
                REPORT,
            )

    def _check_set(self, entry: LogEntry) -> None:
        """Check that the entries of an atomic set of our changes, all of which are ours, stand one
        after the other. Raises `PartialSet`."""
        in_set = entry.in_set if entry.owner == self._user else None
        if self._open_set is None:
            follows = in_set is None or in_set[0] == entry.seq
        else:
            follows = in_set == self._open_set and entry.seq == self._following
        if not follows:
            raise _partial(self._open_set or in_set or (entry.seq, 1))
        is_last = in_set is None or sum(in_set) == entry.seq + 1
        self._open_set = None if is_last else in_set
        self._following = entry.seq + 1

    def _learn(self, entry: LogEntry) -> None:
        if entry.op == LEAVE and entry.rec is not None:
            self._learn_leave(entry, entry.rec)
        if entry.op in _LOGINS and entry.actor == self._user:
            self._learn_login(entry)
        if entry.owner != self._user:
            return
        if entry.op in IDENTITY_OPS and entry.rec is not None:
            statement = Statement.parse(entry.rec)
            number = statement.n
            leaf = self.statement_leaves(self.first).get(number)
            if leaf is None or leaf.seq != entry.seq:
                raise BadReceipt(
                    f"entry {entry.seq} of the log holds statement {number} of this account without"
                    " its tag",
                    REPORT,
                )
            self.statements[number] = entry.rec
            self._generation = statement.generation
        if entry.op in RECORD_OPS:
            for body, _ in entry.records:
                record = self._parsed.pop(body, None) or FileRecord.parse(body)
                if record.owner == self._user:
                    self._learn_record(record, body, entry.seq)
                    self._note_readers(record)
                    self._note_removed(record.file_id, record.purged or ())
        elif entry.file is not None and entry.op == LOST:
            self._note_removed(entry.file, (entry.version,))
        elif entry.file is not None and entry.op == RETENTION:
            self._note_removed(entry.file, entry.detail.get("purged"))

    def _note_removed(self, file_id: str, versions: object) -> None:
        """Note that these versions have no content any more: by a purge that we have signed, or
        because the server says so, which can always lose a content."""
        for version in versions if isinstance(versions, (tuple, list)) else ():
            if type(version) is int and 0 < version <= MAX_VERSION:
                self._unsaved_removed.add((file_id, version))

    def _learn_login(self, entry: LogEntry) -> None:
        device = entry.detail.get("device")
        if isinstance(device, str) and _DEVICE_ID.fullmatch(device):
            with suppress(ValueError):  # a day that no calendar has
                self._unsaved_logins[device] = int(datetime.fromisoformat(entry.time).timestamp())

    def _learn_leave(self, entry: LogEntry, body: bytes) -> None:
        """Take a leave record, which must be of the file's last record in the log."""
        leave = LeaveRecord.parse(body)
        if (leave.owner, leave.file_id, leave.user) != (entry.owner, entry.file, entry.actor):
            raise BadReceipt(f"entry {entry.seq} of the log holds another leave record", REPORT)
        if leave.user == self._user:
            self._own_leaves.add(record_hash(body))
        if leave.owner != self._user:
            return
        signature = next(iter(entry.sigs.values()), b"")
        if self._last_hash(leave.file_id) not in (leave.record, None) or len(signature) != 64:
            cause = f"entry {entry.seq} of the log holds a leave record that is not of its place"
            raise BadReceipt(cause, REPORT)
        self._left.setdefault(leave.file_id, {})[leave.user] = SignedLeave(body, signature)
        self._left_changed = True

    def _last_hash(self, file_id: str) -> bytes | None:
        """Return the hash of the newest record of a file that was read, b"" if there is none; None
        if another process of this machine has followed the file beyond this position."""
        if (history := self._histories.get(file_id)) is not None:
            return history.heads[-1].hash
        saved = self.known_head(file_id)
        if saved is None:
            return b""
        return saved.hash if saved.seq < self.start.size else None

    def _note_readers(self, record: FileRecord) -> None:
        """Note which of those who have left are dropped by this record, and forget the leave
        records of those whom it has added again."""
        left = self._left.get(record.file_id)
        if not left:
            return
        readers = {reader[0] for reader in record.readers}
        for user, one in list(left.items()):
            if one.dropped == (user not in readers):
                continue
            if one.dropped:
                del left[user]
            else:
                left[user] = changed(one, dropped=True)
            self._left_changed = True

    def _learn_record(self, record: FileRecord, body: bytes, seq: int) -> None:
        """Take a record, which must follow from the one before it in the log, and be signed by the
        keys that were in force: a thief with older keys cannot make one that counts."""
        history = self._histories.get(record.file_id) or self._begin_history(record)
        last = history.heads[-1] if history.heads else history.before
        if (record.rev, record.prev) != ((1, b"") if last is None else (last.rev + 1, last.hash)):
            raise BadReceipt(
                f"entry {seq} of the log holds revision {record.rev} of a file, which does not"
                " follow from the one before",
                REPORT,
            )
        if record.generation != self._generation:
            raise BadReceipt(
                f"entry {seq} of the log holds a record of key generation {record.generation}, and"
                f" generation {self._generation} was in force",
                REPORT,
            )
        digest = record_hash(body)
        if history.ahead is None:
            head = self._next_head(last, record, digest, seq)
        else:
            # The other process has noted the versions up to its head.
            head = LoggedHead(record.rev, digest, seq, 0, b"")
            if history.ahead.hash == digest:
                head, history.ahead = history.ahead, None
        history.heads.append(head)
        if self._newest_seen is None or record.seen[0] > self._newest_seen[0].seen[0]:
            self._newest_seen = record, body
        self._unsaved_heads[record.file_id] = head

    def _begin_history(self, record: FileRecord) -> _History:
        """Return a new history of a file, whose first record in this session is `record`."""
        if record.file_id in self._read_heads:
            before, ahead = self._read_heads.pop(record.file_id), None
        else:
            before, ahead = self.known_head(record.file_id), None
        if before is not None and before.seq >= self.start.size:
            # What another process has saved from beyond this position says nothing about it.
            ahead = before
            before = LoggedHead(record.rev - 1, record.prev, 0, 0, b"") if record.prev else None
        history = self._histories[record.file_id] = _History(before, [], ahead)
        return history

    def _next_head(
        self, last: LoggedHead | None, record: FileRecord, digest: bytes, seq: int
    ) -> LoggedHead:
        """Return the head that `record`, whose hash is `digest`, makes after `last`. Note the
        records of a version that is not the newest from now on."""
        version, content = (0, b"") if last is None else (last.version, last.content)
        facts = NO_FACTS if last is None else last.facts
        if record.op in CONTENT_OPS and record.version is not None:
            held = VersionFacts(
                size=record.ciphertext_size or 0,
                content_id=record.content_id or bytes(16),
                generation=record.generation,
            )
            if record.version < version:
                place = record.file_id, record.version
                made = LoggedVersion(digest, b"", held)
                self._unsaved_versions[place] = made.with_times_of(
                    self._unsaved_versions.get(place)
                )
            else:
                if last is not None and 0 < version < record.version:
                    made = LoggedVersion(content, last.hash, facts)
                    self._unsaved_versions[record.file_id, version] = made
                if record.version > version:
                    facts = VersionFacts(record.created)
                facts = held.with_times_of(facts)
                version, content = record.version, digest
        elif record.op == DELETE:
            facts = changed(facts, ended=max(record.created, 1), moved=record.to is not None)
        return LoggedHead(record.rev, digest, seq, version, content, facts)

    # --- confirming

    def can_confirm(self, size: int) -> bool:
        """Return whether the root at `size` can still be computed."""
        return self._follower.can_check(size)

    def confirm(self, size: int, root: bytes) -> None:
        """Check the leaves against a signed checkpoint of `size`, which is not above `self.size`.
        Raises `Fork`; `BadReceipt` if own entries below `size` were not shown, or an own identity
        statement stands in an entry that is not ours; `PartialSet` if it ends within an atomic set
        of ours."""
        self._follower.check_root(size, root)
        if self._without_line and self._without_line[0].seq < size:
            raise BadReceipt("the server does not show all entries of this account", REPORT)
        if self._open_set is not None and self._open_set[0] < size:
            raise _partial(self._open_set)
        for number, leaf in self.statement_leaves(self.first).items():
            if leaf.seq < size and number not in self.statements:
                raise BadReceipt(
                    f"entry {leaf.seq} of the log is tagged as statement {number} of this account,"
                    " and holds none",
                    REPORT,
                )

    def position(self, note: bytes) -> LogPosition:
        """Return the position to save, once the checkpoint `note` of exactly `self.size` was
        confirmed."""
        statements = self.statement_count(self.first)
        peaks = self._follower.peaks
        return LogPosition(self.size, self.count, statements, self._generation, peaks, note)

    def take_changes(self) -> LogChanges:
        """Return what was learnt since the last call, to be saved with `position`."""
        left = None
        if self._left_changed:
            left = tuple(one for found in self._left.values() for one in found.values())
        changes = LogChanges(
            self._unsaved_heads,
            self._unsaved_versions,
            self._unsaved_statements,
            left,
            frozenset(self._unsaved_removed),
            self._unsaved_logins,
        )
        self._unsaved_heads, self._unsaved_versions, self._unsaved_statements = {}, {}, []
        self._unsaved_removed, self._unsaved_logins = set(), {}
        self._left_changed = False
        return changes

    def take_newest_seen(self) -> tuple[FileRecord, bytes] | None:
        """Return, of the records read since the last call, the one whose signer had seen the most
        of the log, with its exact bytes; None if there was none."""
        found, self._newest_seen = self._newest_seen, None
        return found

    def left_readers(self, file_id: str) -> dict[str, SignedLeave]:
        """Return the users who have left a file of ours and were not added again since, by
        name."""
        return self._left.get(file_id, {})

    def has_left(self, digest: bytes) -> bool:
        """Return whether the leave record of ours with this hash was followed in this session."""
        return digest in self._own_leaves

    def take_entries(self) -> dict[int, LogEntry]:
        """Return the own entries read since the last call, by seq."""
        entries, self._entries = self._entries, {}
        return entries

    def find_record(self, file_id: str, rev: int, digest: bytes) -> int | None:
        """Return the entry with the record of ours that has this hash, None if none was followed in
        this session."""
        history = self._histories.get(file_id)
        heads = [] if history is None else history.heads
        return next((one.seq for one in heads if (one.rev, one.hash) == (rev, digest)), None)

    def head_at(
        self,
        file_id: str,
        at: int,
        known_head: Callable[[str], LoggedHead | None] | None = None,
    ) -> tuple[int, bytes] | None:
        """Return (rev, hash) of the newest record of a file of ours in the first `at` entries, None
        if there is none. `at` is not above `self.size`, and not below `self.start.size`.
        `known_head` replaces that of this object, for a caller that has read what was saved.

        Raises `Rollback` if another process of this machine has followed the file beyond
        `self.size`: follow the log first.
        """
        history = self._histories.get(file_id)
        if history is not None:
            for head in reversed(history.heads):
                if head.seq < at:
                    return head.rev, head.hash
            before = history.before
            return None if before is None else (before.rev, before.hash)
        saved = (known_head or self.known_head)(file_id)
        if saved is None:
            return None
        if saved.seq >= self.start.size:
            raise Rollback("the server shows less of its log than this machine has seen", REPORT)
        return saved.rev, saved.hash


def check_set(entries: Sequence[LogEntry], count: int) -> None:
    """Check that these are all entries of an atomic set of `count` changes. Raises `PartialSet`."""
    first = entries[0].seq
    in_set = (first, count) if count > 1 else None
    if [(entry.seq, entry.in_set) for entry in entries] != [
        (seq, in_set) for seq in range(first, first + count)
    ]:
        raise _partial((first, count))


def _partial(in_set: tuple[int, int]) -> PartialSet:
    first, count = in_set
    cause = f"the log has only a part of the atomic set of {count} changes at entry {first}"
    return PartialSet(cause, REPORT)


def parse_line(line: bytes, seq: int | None = None) -> LogEntry:
    """Parse a line that the server shows. Raises `BadReceipt`."""
    try:
        return auditlog.parse(line, seq=seq)
    except LogError as exc:
        raise BadReceipt(f"the server returned a malformed log entry: {exc}", REPORT) from exc


def pack_contacts(contacts: dict[bytes, int]) -> bytes:
    """Encode {hash of the first statement: number of the last statement} for the state."""
    return b"".join(_CONTACT.pack(first, n) for first, n in sorted(contacts.items()))


def unpack_contacts(packed: bytes) -> dict[bytes, int]:
    """Decode the output of `pack_contacts`."""
    return dict(_CONTACT.iter_unpack(packed))


def pack_leaves(leaves: Iterable[SignedLeave]) -> bytes:
    """Encode leave records for the state."""
    return b"".join(
        _LEAVE.pack(len(one.body), one.signature, one.dropped) + one.body for one in leaves
    )


def unpack_leaves(packed: bytes) -> tuple[SignedLeave, ...]:
    """Decode the output of `pack_leaves`."""
    found, at = list[SignedLeave](), 0
    while at < len(packed):
        length, signature, dropped = _LEAVE.unpack_from(packed, at)
        start = at + _LEAVE.size
        at = start + length
        found.append(SignedLeave(packed[start:at], signature, dropped))
    return tuple(found)
