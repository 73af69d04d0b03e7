"""Pipeline of requests over connections that may be lost: many small requests are sent without
waiting for each reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, Generic, TypeVar

from protocol.codec.values import Mutable
from protocol.wire.messages import Error, FileView, Reply, Request
from protocol.wire.messages.files import MAX_PAGE, List, Listing
from sfsc.errors import BadRecord, ProtocolFailure, SfscError
from sfsc.session.limits import MAX_REQUESTS, Ticket
from sfsc.session.server_errors import expect_reply
from sfsc.session.session import Session
from sfsc.trust.file_records import parse_cached, parse_record

Skip = Callable[[str, SfscError], None]
"""Called for each item that failed, with its path or name and the reason."""
_LISTED: Final = 128
"""Files that are asked for together: about as many views as a frame holds."""
_AHEAD: Final = 4
"""Such requests in flight."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Request = TypeVar("_Request", bound=Request)
_Page = TypeVar("_Page", bound=Reply)


class _Waiting(Mutable, Generic[_Item]):
    item: _Item
    request: Request | Callable[[], Request]
    ticket: Ticket | None = None


class Window(Generic[_Item]):
    """Items, oldest first, each with the request that was sent for it.

    Requests without a reply when a connection is lost are sent again on the next one, which is safe
    because every request of this protocol is idempotent.
    """

    def __init__(self, session: Session, size: int = MAX_REQUESTS) -> None:
        self._session = session
        self._size = size
        self._waiting: deque[_Waiting[_Item]] = deque()
        self._unsent: deque[_Waiting[_Item]] = deque()
        self._connection = session.connections

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._size

    @property
    def has_reply(self) -> bool:
        """Whether `take` would return without waiting."""
        if not self._waiting or self._connection != self._session.connections:
            return False
        ticket = self._waiting[0].ticket
        return ticket is not None and self._session.transport.has_reply(ticket)

    def send(self, item: _Item, request: Request | Callable[[], Request]) -> None:
        """Send `request` for `item`; a function builds it for each connection that it is sent
        over."""
        waiting = _Waiting(item, request)
        self._waiting.append(waiting)
        self._unsent.append(waiting)
        self._session.with_reconnect(self._submit)

    def take(self) -> tuple[_Item, Reply]:
        """Return the oldest item and its reply. If no connection can be opened again, all items are
        dropped."""
        try:
            reply = self._session.with_reconnect(self._oldest)
        except SfscError:
            self._clear()
            raise
        return self._waiting.popleft().item, reply

    def abandon(self) -> None:
        """Drop all items and discard their replies."""
        self._drop_foreign_tickets()
        for waiting in self._waiting:
            if waiting.ticket is not None:
                self._session.transport.abandon(waiting.ticket)
        self._clear()

    def _clear(self) -> None:
        self._waiting.clear()
        self._unsent.clear()

    def _submit(self) -> None:
        self._drop_foreign_tickets()
        while self._unsent:
            first = self._unsent[0]
            request = first.request if isinstance(first.request, Request) else first.request()
            first.ticket = self._session.transport.submit(request)
            self._unsent.popleft()

    def _oldest(self) -> Reply:
        self._submit()
        ticket = self._waiting[0].ticket
        if ticket is None:
            raise ProtocolFailure("a request was not sent")
        return self._session.transport.result(ticket)

    def _drop_foreign_tickets(self) -> None:
        """Mark all items as unsent if another connection was opened, here or while a reply was
        processed: a ticket belongs to one connection."""
        if self._connection != self._session.connections:
            for waiting in self._waiting:
                waiting.ticket = None
            self._unsent = deque(self._waiting)
            self._connection = self._session.connections


def pipelined(
    session: Session,
    items: Iterable[tuple[_Item, Request]],
    handle: Callable[[_Item, Reply], _Result],
    size: int = MAX_REQUESTS,
) -> Iterator[_Result]:
    """Send the request of each item without waiting for replies; yield `handle(item, reply)` in
    order. The next item is drawn only when its request can be sent."""
    window, source = Window[_Item](session, size), iter(items)
    try:
        while True:
            if not window.full and (following := next(source, None)) is not None:
                window.send(*following)
            elif window:
                yield handle(*window.take())
            else:
                return
    finally:
        window.abandon()


def pages(
    session: Session,
    first: _Request,
    kind: type[_Page],
    more: Callable[[_Page], _Request | None],
) -> Iterator[_Page]:
    """Yield the replies to `first` and to each request that `more` derives from the page before,
    until it returns None. Each page is requested while the caller processes the one before.

    Raises `ProtocolFailure` if a request would be repeated, and the exception of an `Error` reply.
    """
    window = Window[_Request](session)
    known = {first}
    try:
        window.send(first, first)
        while window:
            asked, reply = window.take()
            if isinstance(reply, Error):
                reply = session.ask(asked)  # with the new keys, if they were rotated meanwhile
            page = expect_reply(reply, kind)
            if (following := more(page)) is not None:
                if following in known:
                    raise ProtocolFailure("the server's list repeats a page")
                known.add(following)
                window.send(following, following)
                session.transport.push()
            yield page
    finally:
        window.abandon()


def newest_views(
    session: Session, file_ids: Iterable[str]
) -> Iterator[tuple[list[str], dict[str, FileView]]]:
    """Ask for the newest versions of many files of ours. Yield some of the file_ids, in order, with
    the views that are shown of them; of others there is none, or it is malformed. Nothing else in
    the views is verified."""
    coming = iter(file_ids)

    def requests() -> Iterator[tuple[List, List]]:
        while some := tuple(islice(coming, _LISTED)):
            asked = List("", MAX_PAGE, 0, some)
            yield asked, asked

    for asked, first in pipelined(session, requests(), lambda asked, reply: (asked, reply), _AHEAD):
        found: dict[str, FileView] = {}
        left = set(asked.wanted)
        reply = session.ask(asked) if isinstance(first, Error) else first  # with newer keys
        while True:
            page = expect_reply(reply, Listing)
            for view in page.views:
                with suppress(BadRecord):
                    found[parse_record(view.content, parse_cached).file_id] = view
            if not page.next:
                break
            if page.next not in left:
                raise ProtocolFailure("the server's list repeats a page")
            left.remove(page.next)
            reply = session.ask(List(page.next, MAX_PAGE, 0, asked.wanted))
        yield list(asked.wanted), {one: found[one] for one in asked.wanted if one in found}


def changed_since(session: Session, since: int) -> Iterator[Listing]:
    """Yield pages of all of our files that changed in the log from entry `since` on, ordered by
    file_id. Nothing in them is verified."""

    def more(page: Listing) -> List | None:
        return List(page.next, MAX_PAGE, since) if page.next else None

    return pages(session, List("", MAX_PAGE, since), Listing, more)
