"""Uploads of large files among many that are opened before it is their turn, one at a time.

Whoever opens one waits for the server, which has others' requests to answer first; by the turn of
the file the answer has come. Nothing depends on it: what was not opened ahead is opened then.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable

from protocol.codec.values import Value
from protocol.wire.messages.uploads import PutAbort, PutOpen, UploadState
from sfsc.errors import NetworkError
from sfsc.session.limits import Ticket
from sfsc.session.session import Session


class _Asked(Value):
    file_id: str
    size: int
    ticket: Ticket
    connection: int


class Openings:
    """Over one session. No method raises what a request for an upload may come to: whoever opens
    one in its turn hears of that."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._coming: deque[tuple[str, int]] = deque()
        self._asked: _Asked | None = None

    def foresee(self, coming: Iterable[tuple[str, int]]) -> None:
        """(file_id, bytes of ciphertext) of the large files that come next, in order; of those
        that were foreseen before, all have had their turn."""
        self.abandon()
        self._coming.extend(coming)
        self._ask()

    def take(self, file_id: str, size: int) -> bytes | None:
        """The id of the upload that was opened for this file, if it was; then one is for the next.
        Waits for the answer."""
        asked = self._asked
        if asked is None or (asked.file_id, asked.size) != (file_id, size):
            return None
        self._asked, upload = None, None
        if asked.connection == self._session.connections:
            with contextlib.suppress(NetworkError):
                reply = self._session.transport.result(asked.ticket)
                upload = reply.upload if isinstance(reply, UploadState) else None
        self._ask()
        return upload

    def abandon(self) -> None:
        """Nobody wants what was opened ahead. An upload whose answer has not come yet is left to
        the server, which drops what gets no bytes."""
        asked, self._asked = self._asked, None
        self._coming.clear()
        if asked is None or asked.connection != self._session.connections:
            return
        transport = self._session.transport
        with contextlib.suppress(NetworkError):
            if transport.answered(asked.ticket):
                reply = transport.result(asked.ticket)
                if isinstance(reply, UploadState):
                    transport.abandon(transport.submit(PutAbort(reply.upload)))
                    transport.push()
            else:
                transport.abandon(asked.ticket)

    def _ask(self) -> None:
        if not self._coming:
            return
        file_id, size = self._coming.popleft()
        session = self._session
        with contextlib.suppress(NetworkError):
            ticket = session.transport.submit(PutOpen(session.account.user, file_id, size))
            session.transport.push()
            self._asked = _Asked(file_id, size, ticket, session.connections)
