"""What the signers of files had seen of the log, proven to be of the log that we see.

Each record holds size and root of the newest checkpoint that its signer had proven. A server that
shows two people two logs must show each the other's records, and there they part.
"""

from __future__ import annotations

import base64
from typing import Final

from protocol.records.records import FileRecord
from protocol.wire.messages.log import CONSISTENCY, LogCheckpoint, LogHead, LogProof
from sfsc.session.pipeline import Window
from sfsc.session.server_errors import proof_in
from sfsc.session.session import Session
from sfsc.trust.file_records import VerifiedFile
from sfsc.trust.server_log import TreeHead

_MANY: Final = 4096
"""Points, of about 2 KB each, that should not wait for more to be proven."""
_REMEMBERED: Final = 65_536
"""Points of the log that were proven and are not asked about again."""


class Seen:
    """Collects what records have seen; `prove` asks about all that is new, in one window."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._proven: set[tuple[int, bytes]] = set()
        self._open: dict[tuple[int, bytes], TreeHead] = {}

    def note(self, file: VerifiedFile) -> None:
        """Take up what the records of a verified file have seen."""
        for record, body in ((file.head, file.head_body), (file.content, file.content_body)):
            seen = record.seen
            if seen[0] and not self._is_noted(seen):
                self._open[seen] = TreeHead(*seen, _quoted(record, body))

    def _is_noted(self, seen: tuple[int, bytes]) -> bool:
        return seen in self._open or seen in self._proven or self._session.trust.has_proven(seen)

    @property
    def are_many(self) -> bool:
        """Whether what was noted should be proven now, and not be kept in memory until the end."""
        return len(self._open) >= _MANY

    def prove(self) -> None:
        """Have the log proven to continue all that was noted. Raises `Fork` and `Rollback`."""
        session = self._session
        if not self._open:
            return
        if max(size for size, _ in self._open) > session.trust.newest.size:
            refresh(self._session)
        self._ask(list(self._open.values()))
        if len(self._proven) > _REMEMBERED:
            self._proven.clear()
        self._proven.update(self._open)
        self._open.clear()

    def _ask(self, points: list[TreeHead]) -> None:
        # Of one point for all: where the connection is lost meanwhile, the next one has a newer.
        newest = self._session.trust.newest
        window = Window[TreeHead](self._session)
        try:
            for point in points:
                if point.size >= newest.size:
                    self._judge(point, newest, ())
                    continue
                if window.full:
                    self._answer(window, newest)
                window.send(point, LogProof(CONSISTENCY, point.size, newest.size))
            while window:
                self._answer(window, newest)
        finally:
            window.abandon()

    def _answer(self, window: Window[TreeHead], newest: TreeHead) -> None:
        point, reply = window.take()
        self._judge(point, newest, proof_in(reply))

    def _judge(self, point: TreeHead, newest: TreeHead, proof: tuple[bytes, ...]) -> None:
        with self._session.judging():
            self._session.trust.check_continues(point, newest, proof)


def refresh(session: Session) -> None:
    """Have the newest point of the log proven: what is signed next has seen all that was read."""
    head = session.call(LogHead(), LogCheckpoint)
    with session.judging():
        session.trust.accept_checkpoint(head.checkpoint, head.consistency)
    session.join()


def _quoted(record: FileRecord, body: bytes) -> bytes:
    """A signed record as evidence of what its signer saw."""
    size, root = record.seen
    text = f"{record.actor} signed that the log had {size} entries under {root.hex()}:\n"
    return text.encode() + base64.b64encode(body) + b"\n"
