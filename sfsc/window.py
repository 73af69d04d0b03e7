"""Requests under way, oldest first, over connections that may be lost: whoever has many small
things to ask for does not wait for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from protocol.messages import Reply, Request
from sfsc.errors import ProtocolFailure, SfscError
from sfsc.session import Session
from sfsc.transport import MAX_REQUESTS, Ticket

Skip = Callable[[str, SfscError], None]
"""Told of each of many that could not be done, by its path or name, and why."""
_Item = TypeVar("_Item")


class Window(Generic[_Item]):
    """Items, each with the request that was sent for it. Iterating gives those that wait.

    What was not answered when a connection was lost is sent again on the next: every request of
    this protocol may be.
    """

    def __init__(self, session: Session, size: int = MAX_REQUESTS) -> None:
        self._session = session
        self._size = size
        self._waiting: deque[tuple[_Item, Request, Ticket | None]] = deque()
        self._connection = session.connections

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[_Item]:
        return (item for item, _, _ in self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._size

    def send(self, item: _Item, request: Request) -> None:
        self._waiting.append((item, request, None))
        self._session.surviving(self._submit, lambda: None)

    def take(self) -> tuple[_Item, Reply]:
        """The oldest, and the answer to it. Where the server is lost for good, so are all."""
        try:
            reply = self._session.surviving(self._oldest, lambda: None)
        except SfscError:
            self._waiting.clear()
            raise
        item, _, _ = self._waiting.popleft()
        return item, reply

    def abandon(self) -> None:
        """Nobody asks any more what became of them."""
        self._drop_foreign_tickets()
        for _, _, ticket in self._waiting:
            if ticket is not None:
                self._session.transport.abandon(ticket)
        self._waiting.clear()

    def _submit(self) -> None:
        self._drop_foreign_tickets()
        for place, (item, request, ticket) in enumerate(self._waiting):
            if ticket is None:
                sent = self._session.transport.submit(request)
                self._waiting[place] = item, request, sent

    def _oldest(self) -> Reply:
        self._submit()
        _, _, ticket = self._waiting[0]
        if ticket is None:
            raise ProtocolFailure("a request that was not sent")
        return self._session.transport.result(ticket)

    def _drop_foreign_tickets(self) -> None:
        """A ticket is of its connection; another may have been opened, here or while an answer was
        judged. What has none is sent again."""
        if self._connection != self._session.connections:
            self._waiting = deque((item, request, None) for item, request, _ in self._waiting)
            self._connection = self._session.connections
