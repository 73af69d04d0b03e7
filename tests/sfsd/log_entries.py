"""Makes single entries of a log, valid but for their place."""

from __future__ import annotations

from protocol.log import auditlog
from protocol.log.auditlog import EntryDraft, LogEntry


def entry(draft: EntryDraft, seq: int = 7, time: str = "2026-11-24T09:30:00.123Z") -> LogEntry:
    """Return the entry `seq` of a draft. Raises UnicodeEncodeError for text without UTF-8."""
    line, _ = auditlog.encode(
        draft,
        seq=seq,
        time=time,
        salt=bytes(16),
        detail=draft.detail,
        accounts={},
        tags=(),
        prev=bytes(32),
    )
    return auditlog.parse(line)
