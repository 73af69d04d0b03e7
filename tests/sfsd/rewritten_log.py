"""Attack by a process that can write the log file: entries changed, with new hashes."""

from __future__ import annotations

from protocol.codec.values import changed
from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft


def rewritten(lines: list[bytes], seq: int, *, chain: bool) -> list[bytes]:
    """Change the actor of entry `seq` and its hash; with `chain`, the hashes of later ones too."""
    result = list(lines)
    for at in range(seq, len(lines) if chain else seq + 1):
        entry = auditlog.parse(lines[at])
        fields = [
            name
            for name in EntryDraft.__struct_fields__
            if name not in ("accounts", "identity", "tag_keys", "in_set")
        ]
        draft = EntryDraft(**{name: getattr(entry, name) for name in fields})
        if entry.in_set is not None:
            draft = changed(draft, in_set=(at - entry.in_set[0], entry.in_set[1]))
        prev = auditlog.line_hash(result[at - 1]) if at > seq else entry.prev
        result[at], _ = auditlog.encode(
            changed(draft, actor="mallory") if at == seq else draft,
            seq=at,
            time=entry.time,
            salt=entry.salt,
            detail=entry.detail,
            accounts=entry.accounts,
            tags=entry.tags,
            prev=prev,
        )
    return result
