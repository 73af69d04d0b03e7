"""The account's wraps, own and of files shared in, as the server lists them for a rotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.messages import Error
from protocol.messages.rotation import MAX_BATCH, GetWraps, WrapItem, WrapsPage
from sfsc.errors import ProtocolFailure
from sfsc.refusals import answered
from sfsc.session import Session
from sfsc.window import Window

_FIRST: Final = 32
"""Wraps in the first page, which nobody has other work to wait beside."""


def wrap_items(session: Session) -> Iterator[WrapItem]:
    """All versions, by owner, file_id and number; each page is asked for while the one before is
    worked on. Nothing of it is verified. Raises `ProtocolFailure` for a list without an end."""
    window = Window[GetWraps](session)
    try:
        window.send(first := GetWraps("", min(_FIRST, MAX_BATCH), all_of_them=True), first)
        while window:
            asked, reply = window.take()
            if isinstance(reply, Error):
                reply = session.ask(asked)  # where keys were rotated since, with the new ones
            page = answered(reply, WrapsPage)
            if page.next:
                if page.next == asked.after:
                    raise ProtocolFailure("the server's wraps go round in circles")
                window.send(more := GetWraps(page.next, MAX_BATCH, all_of_them=True), more)
                session.transport.push()
            yield from page.items
    finally:
        window.abandon()
