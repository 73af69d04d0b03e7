"""What somebody does who may write the log's file: entries changed, their hashes made anew."""

from __future__ import annotations

import dataclasses

from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft


def rewritten(lines: list[bytes], seq: int, *, chain: bool) -> list[bytes]:
    """Entry `seq` by another actor and its hash made anew; with `chain`, all after it too."""
    changed = list(lines)
    for at in range(seq, len(lines) if chain else seq + 1):
        entry = auditlog.parse(lines[at])
        fields = [
            field.name for field in dataclasses.fields(EntryDraft) if field.name != "accounts"
        ]
        draft = EntryDraft(**{name: getattr(entry, name) for name in fields})
        prev = auditlog.line_hash(changed[at - 1]) if at > seq else entry.prev
        changed[at], _ = auditlog.encode(
            dataclasses.replace(draft, actor="mallory") if at == seq else draft,
            seq=at,
            time=entry.time,
            salt=entry.salt,
            detail=entry.detail,
            prev=prev,
        )
    return changed
