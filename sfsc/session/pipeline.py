"""Requests under way, oldest first, over connections that may be lost: whoever has many small
things to ask for does not wait for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from protocol.codec.values import Mutable
from protocol.wire.messages import Error, Reply, Request
from protocol.wire.messages.files import MAX_PAGE, List, Listing
from sfsc.errors import ProtocolFailure, SfscError
from sfsc.session.limits import MAX_REQUESTS, Ticket
from sfsc.session.server_errors import answered
from sfsc.session.session import Session

Skip = Callable[[str, SfscError], None]
"""Told of each of many that could not be done, by its path or name, and why."""
_Item = TypeVar("_Item")
_Request = TypeVar("_Request", bound=Request)
_Page = TypeVar("_Page", bound=Reply)


class _Waiting(Mutable, Generic[_Item]):
    item: _Item
    request: Request
    key: str
    ahead: Callable[[], None] | None
    ticket: Ticket | None = None


class Window(Generic[_Item]):
    """Items, each with the request that was sent for it.

    What was not answered when a connection was lost is sent again on the next: every request of
    this protocol may be.
    """

    def __init__(self, session: Session, size: int = MAX_REQUESTS) -> None:
        self._session = session
        self._size = size
        self._waiting: deque[_Waiting[_Item]] = deque()
        self._unsent: deque[_Waiting[_Item]] = deque()
        self._keys: set[str] = set()
        self._connection = session.connections

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: str) -> bool:
        """Whether an item that was sent under `key` waits."""
        return key in self._keys

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._size

    @property
    def answered(self) -> bool:
        """Whether `take` has an answer to give without waiting."""
        if not self._waiting or self._connection != self._session.connections:
            return False
        ticket = self._waiting[0].ticket
        return ticket is not None and self._session.transport.answered(ticket)

    def send(
        self, item: _Item, request: Request, key: str = "", ahead: Callable[[], None] | None = None
    ) -> None:
        """`key`, where there is one, is that of no other item that waits. `ahead` is called before
        the request is sent over a connection, for what must come before it there."""
        waiting = _Waiting(item, request, key, ahead)
        self._waiting.append(waiting)
        self._unsent.append(waiting)
        if key:
            self._keys.add(key)
        self._session.surviving(self._submit, lambda: None)

    def take(self) -> tuple[_Item, Reply]:
        """The oldest, and the answer to it. Where the server is lost for good, so are all."""
        try:
            reply = self._session.surviving(self._oldest, lambda: None)
        except SfscError:
            self._clear()
            raise
        oldest = self._waiting.popleft()
        self._keys.discard(oldest.key)
        return oldest.item, reply

    def abandon(self) -> None:
        """Nobody asks any more what became of them."""
        self._drop_foreign_tickets()
        for waiting in self._waiting:
            if waiting.ticket is not None:
                self._session.transport.abandon(waiting.ticket)
        self._clear()

    def _clear(self) -> None:
        self._waiting.clear()
        self._unsent.clear()
        self._keys.clear()

    def _submit(self) -> None:
        self._drop_foreign_tickets()
        while self._unsent:
            first = self._unsent[0]
            if first.ahead is not None:
                first.ahead()
            first.ticket = self._session.transport.submit(first.request)
            self._unsent.popleft()

    def _oldest(self) -> Reply:
        self._submit()
        ticket = self._waiting[0].ticket
        if ticket is None:
            raise ProtocolFailure("a request that was not sent")
        return self._session.transport.result(ticket)

    def _drop_foreign_tickets(self) -> None:
        """A ticket is of its connection; another may have been opened, here or while an answer was
        judged. What has none is sent again."""
        if self._connection != self._session.connections:
            for waiting in self._waiting:
                waiting.ticket = None
            self._unsent = deque(self._waiting)
            self._connection = self._session.connections


def pages(
    session: Session,
    first: _Request,
    kind: type[_Page],
    more: Callable[[_Page], _Request | None],
) -> Iterator[_Page]:
    """The answers to `first` and to all that `more` makes of the page before, None for the last:
    each is asked for while the page before is worked on. Raises `ProtocolFailure` where the same
    would be asked for again, and what an `Error` stands for."""
    window = Window[_Request](session)
    known = {first}
    try:
        window.send(first, first)
        while window:
            asked, reply = window.take()
            if isinstance(reply, Error):
                reply = session.ask(asked)  # where keys were rotated since, with the new ones
            page = answered(reply, kind)
            if (following := more(page)) is not None:
                if following in known:
                    raise ProtocolFailure("the server's list goes round in circles")
                known.add(following)
                window.send(following, following)
                session.transport.push()
            yield page
    finally:
        window.abandon()


def changed_since(session: Session, since: int) -> Iterator[Listing]:
    """All of our files that changed in the log from entry `since` on, by file_id, in pages; each is
    asked for while the one before is worked on. Nothing of it is verified."""

    def more(page: Listing) -> List | None:
        return List(page.next, MAX_PAGE, since) if page.next else None

    return pages(session, List("", MAX_PAGE, since), Listing, more)
