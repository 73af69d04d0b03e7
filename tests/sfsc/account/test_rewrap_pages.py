"""The wraps of an account are listed page by page."""

from __future__ import annotations

import threading

import pytest

from protocol.wire.messages import Reply, Request
from protocol.wire.messages.accounts import Usage
from protocol.wire.messages.base import GenerationSignature, SignedRecord
from protocol.wire.messages.rotation import GetWraps, WrapItem, WrapsPage
from sfsc.account import rewrap
from sfsc.account.rewrap import wrap_items
from sfsc.session.session import Session
from tests.sfsc.simulator import Simulator
from tests.waiting import until


def make_items(count: int) -> list[WrapItem]:
    content = SignedRecord(b"a record", (GenerationSignature(1, bytes(64)),))
    return [WrapItem("ada", f"{number:032x}", 1, content, None, None) for number in range(count)]


def serve_items(server: Simulator, items: list[WrapItem]) -> None:
    """Make the server list these items."""

    def page(request: Request) -> Reply | None:
        if not isinstance(request, GetWraps):
            return None
        start = int(request.after or "0")
        end = start + request.limit
        return WrapsPage(tuple(items[start:end]), str(end) if end < len(items) else "")

    server.intercept = page


def test_first_page_is_short(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = make_items(9)
    serve_items(server, items)
    assert list(wrap_items(session)) == items
    assert [one.limit for one in server.asked(GetWraps)] == [32]
    monkeypatch.setattr(rewrap, "_FIRST", 2)
    monkeypatch.setattr(rewrap, "MAX_BATCH", 4)
    server.requests.clear()
    assert list(wrap_items(session)) == items
    assert [one.limit for one in server.asked(GetWraps)] == [2, 4, 4]


def test_next_page_is_requested_early(
    server: Simulator, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrap, "MAX_BATCH", 1)
    serve_items(server, make_items(4))
    page, answers = server.intercept, threading.Event()

    def slow(request: Request) -> Reply | None:
        if isinstance(request, Usage):
            assert answers.wait(20)
        return page(request)

    server.intercept = slow
    pages = wrap_items(session)
    next(pages)
    others = [session.transport.submit(Usage()) for _ in range(2)]
    next(pages)
    # The third page is requested together with these two, without waiting for more requests.
    answers.set()
    until(lambda: len(server.asked(GetWraps)) >= 3)
    for ticket in others:
        session.transport.result(ticket)
    assert len(list(pages)) == 2
