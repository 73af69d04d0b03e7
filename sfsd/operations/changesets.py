"""Decide the changes of one request together.

Each change is decided by the rules of its op, and accepted or refused alone, or with all others of
an atomic changeset; all accepted ones are submitted at once, so that they share a commit group. One
tree signs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from protocol.codec.encoding import Buffer
from protocol.codec.errors import LocalProtocolError
from protocol.codec.values import Value
from protocol.records.record_signatures import RecordTree
from protocol.records.records import (
    ACCESS,
    DELETE,
    MOVE,
    PURGE,
    PUT,
    REENCRYPT,
    RESTORE,
    FileRecord,
)
from protocol.wire.messages import Error
from protocol.wire.messages.base import Wrap
from protocol.wire.messages.changes import Commit, Committed, Outcome
from sfsd.errors import (
    OperationError,
    Refused,
    SfsdError,
    outcome_of,
    require,
    set_refused,
)
from sfsd.operations import records, sharing, uploads
from sfsd.operations.files import view_size
from sfsd.operations.signed_change import SignedChange, repeated_entry
from sfsd.rules.context import (
    USER,
    Changeset,
    Principal,
    ServerContext,
    Transaction,
    operation,
    weight_of_parts,
)
from sfsd.rules.record_rules import FileHead, SignedLeaf, Signer, not_found, parse_record

MAX_LINES: Final = 448 * 1024
"""Bytes of lines and heads in one reply, which also has leaf data and must fit a frame."""
_Heads = Mapping[str, FileHead | OperationError]
"""The head of each file, or its error."""
_Decide = Callable[[ServerContext, Principal, SignedChange], Transaction[int]]
_BY_OP: Final[dict[str, _Decide]] = {
    ACCESS: sharing.change_readers,
    DELETE: records.delete,
    MOVE: records.move,
    PURGE: records.purge,
    RESTORE: records.restore,
}


class _Part(Value):
    """A change of a request, without the present heads of its files."""

    record: FileRecord
    body: bytes
    signed: SignedLeaf
    metadata: bytes = b""
    wraps: tuple[tuple[int, Wrap], ...] = ()
    content: Buffer = b""
    upload: bytes | None = None
    left: _Part | None = None


def _weight(message: Commit) -> int:
    """Return about the bytes of memory that the request takes."""
    parts = sum(
        len(change.record) + len(change.tombstone) + len(change.metadata)
        for change in message.changes
    )
    wraps = len(message.wraps) + len(message.batches)
    return weight_of_parts(wraps=wraps) + len(message.contents) + parts


class SignedChangeset(Changeset):
    """Changes that one tree signs, decided in order on one thread."""

    def __init__(self, server: ServerContext, who: Principal, message: Commit) -> None:
        self._server = server
        self._who = who
        self._message = message
        self.is_atomic = message.atomic
        self.count = len(message.changes) or 1  # without changes, one error is the answer
        self._parts: list[_Part] | None = None

    def decide(
        self, places: Sequence[int], take_lines: Callable[[int], None]
    ) -> list[int | Transaction[int] | OperationError]:
        if self._parts is None:
            self._parts = _parts_of(self._message, self._who)
            self.is_valid = True
        parts = self._parts
        signer = self._server.admission.signer(self._who.user)
        heads = FileHead.load_for_changes(
            self._server.index.for_user(self._who.user),
            [one.record.file_id for at in places for one in (parts[at], parts[at].left) if one],
        )
        decided = list[int | Transaction[int] | OperationError]()
        try:
            for place in places:
                one = outcome_of(partial(self._decide, parts, place, heads, signer))
                if isinstance(one, Transaction) and not self.is_atomic:
                    one = outcome_of(partial(_counted, one, take_lines))
                decided.append(one)
        except BaseException:
            _undo(decided)  # a bug in one
            raise
        return _whole_set(decided, take_lines) if self.is_atomic else decided

    def answer(self, outcomes: Sequence[int | Error]) -> Committed:
        journal, who = self._server.journal, self._who
        room, found = MAX_LINES, list[Outcome]()
        for one in outcomes:
            if isinstance(one, Error):
                room -= 0 if one.head is None else view_size(one.head)
                # Without its head, the client asks for it.
                shown = one if room > 0 else Error(one.code, one.text, None, one.damaged)
                found.append(Outcome(0, b"", shown))
                continue
            line = journal.appended_line(one)
            room -= len(line)
            found.append(Outcome(one, line if room > 0 else b"", None))
        first, leaves, note, who.known_size = journal.unseen(who.known_size)
        return Committed(tuple(found), note, first, leaves)

    def _decide(
        self, parts: Sequence[_Part], index: int, heads: _Heads, signer: Signer
    ) -> int | Transaction[int]:
        change = _located(parts[index], heads, signer)
        if (seq := repeated_entry(self._server, change)) is not None:
            count = len(parts)
            if self.is_atomic and count > 1:
                made_as = self._server.journal.entry(seq).in_set
                require(made_as == (seq - index, count), "this change was not made in this set")
            return seq
        server, who, op = self._server, self._who, change.record.op
        require((change.left is not None) == (op == MOVE), "only a move has a tombstone")
        if op in (PUT, REENCRYPT):
            if change.upload is not None:
                require(not change.content, "a content is sent with its record, or before")
                return uploads.store_upload(server, who, change, change.upload)
            return uploads.store_inline(server, who, change)
        require(not change.content and change.upload is None, f"a {op} stores no new content")
        return _BY_OP[op](server, who, change)


def _located(part: _Part, heads: _Heads, signer: Signer) -> SignedChange:
    """Return the change with the present heads of its files. Raises the error of a head."""
    head = heads[part.record.file_id]
    if not isinstance(head, FileHead):
        raise head
    return SignedChange(
        part.record,
        part.body,
        part.signed,
        head,
        signer,
        part.metadata,
        part.wraps,
        part.content,
        part.upload,
        None if part.left is None else _located(part.left, heads, signer),
    )


def _counted(transaction: Transaction[int], take_lines: Callable[[int], None]) -> Transaction[int]:
    """Count the line of a change. Raises `Refused` if it is one too many."""
    try:
        take_lines(1)
    except Refused:
        _undo([transaction])
        raise
    return transaction


def _whole_set(
    decided: Sequence[int | Transaction[int] | OperationError], take_lines: Callable[[int], None]
) -> list[int | Transaction[int] | OperationError]:
    """Return what was decided for an atomic set: if anything is refused, an error for each change,
    and nothing to make. Raises `Refused` if it has too many lines."""
    new = [place for place, one in enumerate(decided) if isinstance(one, Transaction)]
    refused = {n: one for n, one in enumerate(decided) if isinstance(one, (SfsdError, OSError))}
    if not refused and 0 < len(new) < len(decided):
        refused = {new[0]: Refused("conflict", "only a part of the set was made before")}
    if refused:
        _undo(decided)
        return [refused.get(place) or set_refused() for place in range(len(decided))]
    if new:
        try:
            take_lines(len(new))
        except Refused:
            _undo(decided)
            raise
    return list(decided)


def _undo(decided: Iterable[object]) -> None:
    """Undo what was decided and is not submitted."""
    for one in decided:
        if isinstance(one, Transaction) and one.undo is not None:
            one.undo()


def _parts_of(message: Commit, who: Principal) -> list[_Part]:
    """Return the changes of a request. Raises `Refused` if it is malformed as a whole."""
    require(bool(message.changes), "a changeset has at least one change")
    try:
        tree = RecordTree(message.leaves)
    except LocalProtocolError as exc:
        raise Refused("bad-request", str(exc)) from exc
    packed, used, files = tree.pack(message.signature), set[int](), set[str]()

    def signed(body: bytes, leaf: int) -> tuple[FileRecord, bytes, SignedLeaf]:
        record = parse_record(body)
        if record.owner != who.user:
            raise not_found()
        require(leaf < len(packed) and leaf not in used, "each record has a leaf of its own")
        require(record.file_id not in files, "a changeset touches a file once")
        used.add(leaf)
        files.add(record.file_id)
        return record, body, SignedLeaf(tree, leaf, packed[leaf])

    wraps, at, parts = _wraps_of(message), 0, list[_Part]()
    for index, change in enumerate(message.changes):
        content = message.contents[at : at + change.inline_size]
        at += change.inline_size
        left = change.tombstone and _Part(*signed(change.tombstone, change.tombstone_leaf))
        parts.append(
            _Part(
                *signed(change.record, change.leaf),
                change.metadata,
                tuple(wraps.get(index, ())),
                content,
                change.upload,
                left or None,
            )
        )
    require(at == len(message.contents), "the sizes of the contents differ from their bytes")
    require(not wraps or max(wraps) < len(parts), "a wrap is for no change of the request")
    return parts


def _wraps_of(message: Commit) -> dict[int, list[tuple[int, Wrap]]]:
    """Return {number of the change: (version, self-contained wrap)}. Raises `Refused`."""
    found: dict[int, list[tuple[int, Wrap]]] = {}
    for one in message.wraps:
        require(one.batch < len(message.batches), "a wrap names no batch of the request")
        batch = message.batches[one.batch]
        wrapped = batch.batch_id + batch.enc + one.item
        wrap = Wrap(batch.user, batch.key_id, batch.algorithm, wrapped)
        found.setdefault(one.change, []).append((one.version, wrap))
    return found


@operation(
    Commit,
    access=USER,
    logged="upload, reencrypt, delete, restore, move, purge or access",
    after_data=True,
    weight=_weight,
)
def commit(server: ServerContext, who: Principal, message: Commit) -> SignedChangeset:
    """Decide a changeset."""
    return SignedChangeset(server, who, message)
