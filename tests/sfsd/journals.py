"""Shared by the tests of the log: drafts, a small journal, and a full check of a journal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from protocol.codec import merkle
from protocol.log import auditlog, checkpoint
from protocol.log.auditlog import EntryDraft, LogEntry
from protocol.log.checkpoint import Checkpoint, Verifier
from protocol.log.tags import account_tag
from protocol.records.signatures import SigningKey
from sfsd import server_keys
from sfsd.fs.files import Files
from sfsd.log.journal import AppendedEntry, Journal

KEY = SigningKey.from_seed(bytes(32))
ORIGIN = checkpoint.origin_of(bytes(32))
VERIFIER = Verifier(ORIGIN, KEY.public)
RESERVE = 4096


def tag_key(user: str) -> bytes:
    """Return the tag key of a user of these tests."""
    return hashlib.sha256(user.encode()).digest()


def draft(note: str = "", *accounts: str) -> EntryDraft:
    keys = {user: tag_key(user) for user in accounts or ("alice",)}
    return EntryDraft(op="upload", actor="alice", detail={"note": note}, tag_keys=keys)


def drafts(count: int, *accounts: str) -> list[EntryDraft]:
    return [draft(str(number), *accounts) for number in range(count)]


class SmallJournal(Journal):
    """A journal without a store: an entry is in place once it is in the log."""

    def append(self, drafts: Sequence[EntryDraft]) -> list[AppendedEntry]:
        first = self.next_seq
        appended = super().append(drafts)
        if appended:
            self.latest.apply(first, [draft.detail.get("paths", {}) for draft in drafts])
        return appended


def open_journal(folder: Path, files: Files | None = None) -> SmallJournal:
    return SmallJournal(
        folder,
        KEY,
        ORIGIN,
        files=files,
        clock=lambda: datetime(2024, 5, 6, 7, 8, 9, 123_456, UTC),
        reserve=RESERVE,
    )


def check(journal: Journal) -> list[LogEntry]:
    """Check every statement of a journal as a client would; return its entries."""
    lines = list(journal.lines())
    entries = list(auditlog.verify_chain(lines))
    assert len(entries) == journal.size
    leaves = [merkle.leaf_hash(entry.leaf_data) for entry in entries]
    note = checkpoint.verify(journal.checkpoint(), VERIFIER)
    assert note == Checkpoint(ORIGIN, len(lines), merkle.root(leaves))
    counts: dict[str, int] = {}
    for entry, line in zip(entries, lines, strict=True):
        assert journal.line(entry.seq) == line
        assert journal.entry(entry.seq) == entry
        for user, count in entry.accounts.items():
            assert count == counts.get(user, 0)
            counts[user] = count + 1
        assert entry.tags == tuple(
            sorted(
                account_tag(tag_key(user), bytes(32), user, count)
                for user, count in entry.accounts.items()
            )
        )
        proof = journal.prove_inclusion(entry.seq, note.size)
        merkle.verify_inclusion(leaves[entry.seq], entry.seq, note.size, proof, note.root)
        proof = journal.prove_consistency(entry.seq, note.size)
        old_root = merkle.root(leaves[: entry.seq])
        merkle.verify_consistency(entry.seq, old_root, note.size, note.root, proof)
        assert journal.root_at(entry.seq) == old_root
    for user, count in counts.items():
        assert journal.count(user) == count
    data = [entry.leaf_data for entry in entries]
    bundle = b"".join(len(one).to_bytes(2) + one for one in data)
    assert journal.leaves(0, len(entries) + 5, 1 << 20) == bundle
    for size in range(len(entries) + 1):
        assert journal.root_at(size) == merkle.root(leaves[:size])
    return entries


def set_after(line: bytes, first: int, op: str, actor: str) -> list[bytes]:
    """Return the lines, without newlines, of an atomic set of three entries from seq `first` on,
    which follow `line`."""
    prev, lines = auditlog.line_hash(line), list[bytes]()
    for place in range(3):
        added, prev = auditlog.encode(
            EntryDraft(op, actor, in_set=(place, 3)),
            seq=first + place,
            time="2026-02-03T04:05:06.007Z",
            salt=bytes(16),
            detail={},
            accounts={},
            tags=(),
            prev=prev,
        )
        lines.append(added)
    return lines


def append_to_log(root: Path, drafts: Sequence[EntryDraft], times: Sequence[datetime] = ()) -> None:
    """Append entries to the log of a root, signed with its log key, as if the daemon had. The
    entries have the `times`, or the present one."""
    keys = server_keys.load(root / "keys")
    clock = iter(times)
    journal = SmallJournal(
        root / "logs", keys.log_key, keys.origin, clock=lambda: next(clock, datetime.now(UTC))
    )
    try:
        for draft in drafts:
            journal.append([draft])
        journal.mark_published()
        journal.checkpoint()
    finally:
        journal.close()
