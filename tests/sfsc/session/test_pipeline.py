"""Lists in pages: each page is requested once, and a list always ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle
from typing import cast

import pytest

from protocol.wire.messages import Reply, Request
from protocol.wire.messages.files import List, Listing
from protocol.wire.messages.rotation import GetWraps, WrapsPage
from protocol.wire.messages.sharing import Inbox, InboxPage
from sfsc.account.rewrap import wrap_items
from sfsc.errors import ProtocolFailure
from sfsc.files.contacts import Contacts
from sfsc.files.inbox import ReceivedFiles
from sfsc.session.pipeline import changed_since, newest_views, pages
from sfsc.session.session import Session
from tests.sfsc.simulator import Simulator


def shared(session: Session) -> Iterable[object]:
    nobody = cast(Contacts, None)  # of empty pages no owner is looked for
    return ReceivedFiles(session, nobody).list_files(lambda _what, _why: None)


ASKED = ("0" * 32, "1" * 32)

LISTS: dict[str, tuple[type[Request], Reply, Reply, Callable[[Session], Iterable[object]]]] = {
    "files": (List, Listing((), "a"), Listing((), "b"), lambda one: changed_since(one, 0)),
    "files asked for": (
        *(List, Listing((), ASKED[0]), Listing((), ASKED[1])),
        lambda one: newest_views(one, ASKED),
    ),
    "inbox": (Inbox, InboxPage((), "a.1"), InboxPage((), "b.1"), shared),
    "wraps": (GetWraps, WrapsPage((), "a.1.1"), WrapsPage((), "b.1.1"), wrap_items),
}


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_repeats_a_page(
    server: Simulator, session: Session, name: str, length: int
) -> None:
    """The present page, or an earlier one."""
    kind, one, other, read = LISTS[name]
    answers = cycle([one, other][:length])
    server.intercept = lambda asked: next(answers) if isinstance(asked, kind) else None
    with pytest.raises(ProtocolFailure, match="repeats"):
        list(read(session))
    assert len(server.asked(kind)) <= length + 2


def test_each_page_is_requested_once(server: Simulator, session: Session) -> None:
    ends = {"": "a", "a": "b", "b": ""}

    def answer(asked: Request) -> Reply | None:
        return Listing((), ends[asked.after]) if isinstance(asked, List) else None

    server.intercept = answer

    def more(page: Listing) -> List | None:
        return List(page.next, 1, 0) if page.next else None

    assert [page.next for page in pages(session, List("", 1, 0), Listing, more)] == ["a", "b", ""]
    assert [asked.after for asked in server.asked(List)] == ["", "a", "b"]
